"""What a step was doing when its process died: said in its log before what may crash, and read from there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from enginehouse.contract.tensors import Tensors

_MARK = "now: "
#: What is being done in this process, the innermost last.
_doing: list[str] = []


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Say in the log, for the time of the context, what is done; a crash of a library leaves no other trace.

    Contexts may be nested: at the end of one it is said again what it was part of.
    """
    _doing.append(what)
    _say(what)
    try:
        yield
    finally:
        _doing.pop()
        _say(_doing[-1] if _doing else "")


@contextmanager
def asking(who: str, request: Tensors, axis: str = "NAME") -> Iterator[None]:
    """The same for a `request` to `who` if it has an extent of 0, of `axis`, where runtimes have crashed."""
    empty = [f"{name} {list(array.shape)}" for name, array in request.items() if not array.size]
    if not empty:
        yield
        return
    what = f"{who} was asked for {', '.join(empty)}; --axis {axis}=1:OPT:MAX leaves out the extent of 0"
    with telling(what):
        yield


def last_words(log: str) -> str:
    """What was being done at the end of the text `log`; empty where nothing was said or it was over."""
    said = [line for line in log.splitlines() if line.startswith(_MARK.rstrip())]
    return said[-1].removeprefix(_MARK.rstrip()).strip() if said else ""


def _say(what: str) -> None:
    sys.stderr.write(f"{_MARK}{what}\n")
    sys.stderr.flush()
