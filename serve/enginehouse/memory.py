"""What serving processes ask of the memory allocator."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
#: glibc's own upper bound for allocations that do not get a mapping of their own.
_LARGEST = 32 << 20
_KEPT = 256 << 20


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
