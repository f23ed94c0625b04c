"""Work that can be interrupted: a generator that stops now and then, so that other work may go on meanwhile.

It yields None wherever it may be left for a moment, after a few milliseconds at most, or a function that takes longer
and cannot be interrupted; what the function returns is sent back. Whoever runs it decides what happens in between.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Work: TypeAlias = Generator[Callable[[], Any] | None, Any, T]

#: Elements for which Python takes some 2 ms, one after the other.
ELEMENTS = 1 << 13
#: Bytes of numbers for which numpy takes some 2 ms.
NUMBER_BYTES = 1 << 22


def finished(work: Work[T]) -> T:
    """Run `work` to its end without a break, and return its result."""
    try:
        call = next(work)
        while True:
            try:
                result = call() if call is not None else None
            except Exception as error:
                call = work.throw(error)
            else:
                call = work.send(result)
    except StopIteration as end:
        value: T = end.value
        return value
