"""What serving processes ask of the memory allocator and of the garbage collector."""

from __future__ import annotations

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
#: glibc's own upper bound for allocations that do not get a mapping of their own.
_LARGEST = 32 << 20
_KEPT = 256 << 20
#: New objects until the young ones are searched for cycles, and how often that until older ones are, and until all are.
#: By default 700, 10 and 10, which costs a router 6 % of a small model's answer.
_COLLECT_AFTER = 2_000, 20, 50


def keep_freed() -> None:
    """Have freed memory used again instead of given back, up to some 256 MiB of it; elsewhere than on glibc nothing.

    Bodies and batches are some MiB each and live for milliseconds. By default every one of them is mapped, filled with
    zeros page by page, and unmapped again: a third of a router's CPU time per 602 KB request (see benchmarks/README).
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _KEPT), (_M_TOP_PAD, _LARGEST)):
        mallopt(parameter, value)


def collect_less() -> None:
    """Have Python look for garbage less often: requests leave little of it, and are made of many objects."""
    gc.set_threshold(*_COLLECT_AFTER)
