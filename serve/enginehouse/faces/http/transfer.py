"""Bodies that arrive and answers that leave: who is too slow for one of them is not waited for.

What hangs holds a place among the requests under way, or the memory of an answer. So every transfer has to keep up
`LEAST_RATE`. Where many are under way at the same time, which is how one client would keep all others out, each has to
be faster: the slow ones are ended until few enough are left.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from enginehouse.routing import timers
from enginehouse.routing.timers import Timeout

#: Bytes a second that a transfer has to make in each `WINDOW_S`: as ASP.NET's Kestrel, less than any modem.
LEAST_RATE, WINDOW_S = 240, 5.0
#: Seconds until a transfer is looked at for the first time, and between two looks.
FIRST_LOOK_S, LOOK_S = 0.25, 1.0
#: Bytes a second that each has to make between two looks while too many are under way.
CROWDED_RATE = 16 << 10
#: Seconds that a transfer of a known size may take while those under way hold too many bytes.
CROWDED_S = 10.0
#: A look that comes so many seconds late says nothing: this process was busy, and what has come is still unread.
_LATE_S = 0.1


class Transfers:
    """Those of one kind in one process: more than `most`, or than `most_bytes` that they hold, are too many."""

    def __init__(self, most: int, most_bytes: int = 0) -> None:
        self.most = most
        self.most_bytes = most_bytes
        self.under_way = 0
        self.bytes = 0

    def are_too_many(self) -> bool:
        return self.under_way > self.most or self.bytes > self.most_bytes > 0


class Whole:
    """In the place of a `Transfer` whose bytes are all there when it begins, as those of small requests are."""

    __slots__ = ("began", "moved")

    def __init__(self) -> None:
        self.began = 0.0
        self.moved = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Transfer(Timeout):
    """`with Transfer(transfers, most_s) as one: one.moved += ...` raises TimeoutError where that is too slow.

    `size` is what it holds in memory until its end, where that is known.
    """

    __slots__ = ("_looked", "_most_s", "_size", "_transfers", "_window", "began", "moved")

    def __init__(self, transfers: Transfers, most_s: float = float("inf"), size: int = 0) -> None:
        super().__init__(min(FIRST_LOOK_S, most_s))
        self._transfers = transfers
        self._most_s = most_s
        self._size = size
        #: Bytes so far.
        self.moved = 0

    def __enter__(self) -> Self:
        super().__enter__()
        self._count(1)
        self.began = time.monotonic()
        # When, and how many bytes had moved then.
        self._looked = self._window = self.began, 0
        return self

    def _restart(self, after_s: float) -> None:
        self._after_s = after_s
        self._timer = timers.call_about(after_s, self._expire)

    def _expire(self) -> None:
        now = time.monotonic()
        if now - self.began >= self._most_s or self._is_too_slow(now):
            # Now, and not when it has ended: else all whose time to be looked at it is would go with it.
            self._count(-1)
            super()._expire()
            return
        self._looked = now, self.moved
        self._restart(min(LOOK_S, max(0.0, self.began + self._most_s - now)))

    def _is_too_slow(self, now: float) -> bool:
        since_s, moved = now - self._looked[0], self.moved - self._looked[1]
        if since_s > self._after_s + _LATE_S:
            return False
        if self._transfers.are_too_many():
            wanted = self._size / CROWDED_S if self._size else CROWDED_RATE
            if moved < wanted * since_s:
                return True
        since_s, moved = now - self._window[0], self.moved - self._window[1]
        if since_s < WINDOW_S:
            return False
        self._window = now, self.moved
        return moved < LEAST_RATE * since_s

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._is_late:
            self._count(-1)
        super().__exit__(kind, error, traceback)

    def _count(self, one: int) -> None:
        self._transfers.under_way += one
        self._transfers.bytes += one * self._size
