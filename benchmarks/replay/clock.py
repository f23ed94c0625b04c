"""Simulated time: what is due when, in order."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

Action = Callable[[], None]


class Timer:
    """Something that is due once, unless it is cancelled."""

    __slots__ = ("_action",)

    def __init__(self, action: Action) -> None:
        self._action: Action | None = action

    def cancel(self) -> None:
        """It is not to happen any more; no matter whether it has."""
        self._action = None

    def fire(self) -> None:
        """It happens now."""
        action, self._action = self._action, None
        if action is not None:
            action()


class Clock:
    """`now` in seconds; what is due at the same time happens in the order in which it was asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def at(self, time_s: float, action: Action) -> Timer:
        """Have `action` happen at `time_s`, which is not before now."""
        timer = Timer(action)
        heapq.heappush(self._due, (time_s, next(self._numbers), timer))
        return timer

    def run(self) -> None:
        """Until nothing is due any more."""
        while self._due:
            self.now, _, timer = heapq.heappop(self._due)
            timer.fire()
