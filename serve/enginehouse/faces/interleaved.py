"""Long work of a request on the event loop: between its pieces, whatever else waits has its turn.

What computes for longer than `SLICE_S` goes on piece by piece, in turn with the long work of other requests. After each
piece there is a pause in proportion, whose ever the next one is. Without that, each step of a small request (it has
some five: read, send, receive, write) would wait for a piece. JSON in particular is parsed in one call that nothing can
interrupt: a thread of its own does not help, for Python's other threads wait for that call too.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from enginehouse.contract.elements import Work

T = TypeVar("T")

#: Seconds that work may compute before others have their turn: of CPU time, for who only waits for a core is not long.
SLICE_S = 0.003
#: Length of the pause after a piece, as a part of the time that it took, and its most in seconds.
PAUSE, LONGEST_S = 0.5, 0.05


class _Pace:
    """Whose turn it is on one event loop, and when the next piece may begin."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        #: Held by those who may be there only once, from their first piece to their last.
        self.alone = asyncio.Lock()
        self._next_at = 0.0

    async def pause(self) -> None:
        await asyncio.sleep(max(0.0, self._next_at - time.perf_counter()))

    def spent(self, since: float) -> None:
        now = time.perf_counter()
        self._next_at = now + min(LONGEST_S, (now - since) * PAUSE)


_of_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Pace] = weakref.WeakKeyDictionary()


async def interleaved(work: Work[T], alone: bool = False) -> T:
    """The result of `work`. Short work is done at once, as if it were called.

    Work that takes much memory is `alone`: another such one begins when it has ended.
    """
    if alone:
        async with _pace().alone:
            return await _in_pieces(work)
    return await _in_pieces(work)


def _pace() -> _Pace:
    loop = asyncio.get_running_loop()
    return _of_loop.get(loop) or _of_loop.setdefault(loop, _Pace())


async def _in_pieces(work: Work[T]) -> T:
    try:
        # Most requests are small: all is done in this one piece. The clock of CPU time is a system call, so it is asked
        # only after that, and again only where the other one says that it took long, which may be waiting for a core.
        began = time.perf_counter()
        call = next(work)
        used = time.thread_time() - (time.perf_counter() - began)
        while call is None and (time.perf_counter() - began < SLICE_S or time.thread_time() - used < SLICE_S):
            call = next(work)
        pace = _pace()
        while True:
            async with pace.turn:
                await pace.pause()
                since, began = time.perf_counter(), time.thread_time()
                try:
                    if call is not None:
                        call = _handed_over(work, await _ended(call))
                    while call is None and time.thread_time() - began < SLICE_S:
                        call = next(work)
                finally:
                    pace.spent(since)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        work.close()


def _handed_over(work: Work[Any], ended: asyncio.Future[Any]) -> Callable[[], Any] | None:
    """Give `work` what a call that it asked for has returned or raised, and return what comes next."""
    error = ended.exception()
    try:
        return work.send(ended.result()) if error is None else work.throw(error)
    finally:
        # The error's traceback refers to this call: a cycle, which would keep the body of the request for long.
        del error, ended


async def _ended(call: Callable[[], Any]) -> asyncio.Future[Any]:
    """Make the call in a thread and wait for its end, even when the request is cancelled: then the next may begin."""
    future = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        await asyncio.wait([future])
    finally:
        if not future.done():
            await asyncio.wait([future])
    return future
