"""Timers and timeouts for the path of every request, which hardly ever expire.

A request has four: for its body, its deadline, its place in a queue, and to see whether its client has gone. One of
uvloop takes 2 us to set and to cancel, one of these 0.5: those that expire in the same `TICK_S` share one.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

#: Seconds that one of these may be late.
TICK_S = 0.05
#: Shorter ones are the event loop's own, for which so much would be late.
LEAST_S = 1.0


class Timer(Protocol):
    """What was set and may be cancelled, also when it has expired."""

    def cancel(self) -> None: ...


def call_later(after_s: float, callback: Callable[[], object]) -> Timer:
    """Call `callback` on this event loop after `after_s` seconds; from `LEAST_S` on, up to `TICK_S` later than that."""
    if after_s < LEAST_S:
        return asyncio.get_running_loop().call_later(max(0.0, after_s), callback)
    return call_about(after_s, callback)


def call_about(after_s: float, callback: Callable[[], object]) -> Timer:
    """Call `callback` on this event loop after `after_s` to `after_s + TICK_S` seconds."""
    global _latest
    loop = asyncio.get_running_loop()
    ticks = _latest
    if ticks.loop is not loop:
        ticks = _latest = _Ticks(loop)
    return ticks.set(after_s, callback)


class _Shared:
    """A timer that expires together with the others of its tick."""

    __slots__ = ("_callback", "_together")

    def __init__(self, callback: Callable[[], object], together: set[_Shared]) -> None:
        self._callback: Callable[[], object] | None = callback
        self._together = together
        together.add(self)

    def cancel(self) -> None:
        # It may have expired in this turn of the loop, and be called in the next.
        self._callback = None
        self._together.discard(self)

    def expire(self) -> None:
        if self._callback is not None:
            self._callback()


class _Ticks:
    """The timers of one event loop, by the number of the tick at which they expire.

    It ticks while there are any; when none is left, it stops.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.loop = loop
        self._due: dict[int, set[_Shared]] = {}
        self._is_ticking = False

    def set(self, after_s: float, callback: Callable[[], object]) -> _Shared:
        tick = int((time.monotonic() + after_s) / TICK_S) + 1
        together = self._due.get(tick)
        if together is None:
            together = self._due[tick] = set()
            if not self._is_ticking:
                self._tick_later()
        return _Shared(callback, together)

    def _tick_later(self) -> None:
        assert self.loop is not None
        self._is_ticking = True
        # In an empty context: not in that of whichever request was the first.
        self.loop.call_later(TICK_S, self._tick, context=contextvars.Context())

    def _tick(self) -> None:
        assert self.loop is not None
        now = math.floor(time.monotonic() / TICK_S)
        for tick in [tick for tick in self._due if tick <= now or not self._due[tick]]:
            # Not called here: one that fails must not keep the others.
            for timer in self._due.pop(tick):
                self.loop.call_soon(timer.expire)
        self._is_ticking = False
        if self._due:
            self._tick_later()


#: That of the loop that asked last: the only one, in most processes.
_latest = _Ticks(None)


class Timeout:
    """`with Timeout(s):` cancels what the task awaits in the block after `s` seconds, and raises TimeoutError.

    `asyncio.timeout` for the path of every request, at a third of its cost on uvloop.
    """

    __slots__ = ("_after_s", "_cancelling", "_is_late", "_task", "_timer")

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._is_late = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "a timeout cancels a task"
        self._task = task
        self._cancelling = task.cancelling()
        self._restart(self._after_s)
        return self

    def _restart(self, after_s: float) -> None:
        self._after_s = after_s
        self._timer = call_later(after_s, self._expire)

    def _expire(self) -> None:
        self._is_late = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        # Where another has cancelled the task as well, it stays cancelled.
        if self._is_late and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
