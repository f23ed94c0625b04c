"""The waiting room: calls wait before the batch queue while the engine is busy, and enter it together when it is free.

`@serve.batch` forms a batch as soon as one call is there, and only then waits for its turn. A call that entered while
the engine computes would therefore be a batch of its own, and so would the next one. So:

1. A call joins those that wait, in order of deadline; it fails when its deadline passes there.
2. Nothing is let in while the model's lanes or all cores compute, or what was let in has not reached the engine yet,
   except what arrives in the same turn of the event loop as a call that found the engine idle, has its shape and fits
   beside it.
3. Then the first call is let in, with those after it whose rows have the same shape, up to as many rows as the engine
   computes at once. Those that wait are divided among the lanes that are free. Where rows may be padded, those that are
   nearest in length go first.
4. They enter the batch queue in one turn of the event loop. Serve takes all that is queued at once: they are one batch.
5. With `wait_s`, a group that does not fill a batch is let in when its oldest call has waited that long.
6. Calls of the last priority wait apart, for what all these leave: see `yielding`.

A model that is *split* computes as many calls at once as it has lanes, each with its share of the cores; a call that is
alone in the process takes all cores. Any other model has one lane, which takes all cores that are free.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from enginehouse.pools.cores import Cores
from enginehouse.pools.line import Item, Line, Waiting, expire, first, still
from enginehouse.pools.yielding import Pieces

#: Which of others, by their places, go with the first: it and they are (rows, edge), in at most so many rows together.
Companions = Callable[[tuple[int, int], Sequence[tuple[int, int]], int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Lanes:
    """How many calls of a model are computed at once: `count`, with at most `rows` rows and `cores` cores each.

    Beside calls of other models they have at most `short_rows` rows.
    """

    count: int
    rows: int
    cores: int
    short_rows: int


class WaitingRoom:
    """The room before one engine's batch queue. Used on one event loop.

    `max_rows` rows are let in at once, or one item that has more; with `lanes`, which only a split model has, `rows` of
    them unless the call is alone. `cores` are those of the process: without any this room has one of its own. With an
    idle engine and a `wait_s` of 0 an item passes at once, and so does what arrives in the same turn of the loop and
    fits beside it. `companions` says who goes with whom among items that have an edge.
    """

    def __init__(
        self,
        max_rows: int,
        cores: Cores | None = None,
        lanes: Lanes | None = None,
        companions: Companions | None = None,
    ) -> None:
        self._max_rows = max_rows
        self._cores = cores or Cores(1)
        self._lanes = lanes
        self._companions = companions
        self._wait_s = 0.0
        self._waiting: Line = []
        # Those of the last priority.
        self._yielding: Line = []
        #: How they are computed while others call.
        self.pieces = Pieces()
        self._overdue_look: asyncio.TimerHandle | None = None
        self._numbers = itertools.count()
        # Let in, but not in an engine call yet, and the cores that are taken for them.
        self._entering: set[Item] = set()
        self._taken = 0
        self._computing = 0
        # Of what found the engine idle in this turn of the loop: its shape, and how many rows fit beside it.
        self._room: tuple[Hashable, int] | None = None
        self._next_look: asyncio.Handle | None = None

    @property
    def oldest(self) -> float:
        """When the one that waits longest arrived; infinite when none waits."""
        return min((entry[-1].item.arrived for entry in self._waiting), default=math.inf)

    def set_limits(self, max_rows: int, wait_s: float, lanes: Lanes | None = None) -> None:
        """Change `max_rows`, `wait_s` and `lanes`, for those that wait already too."""
        self._max_rows, self._wait_s, self._lanes = max_rows, wait_s, lanes
        if self._waiting or self._yielding:
            self._look_soon()

    async def enter(self, item: Item) -> int | None:
        """Wait until `item` is let in; `leave` must follow. Raises TimeoutError when its deadline passes before.

        How many rows of one that yields may be computed now, as a piece; None for any other, and for all of it.
        """
        if not item.yields and self._passes(item):
            self._entering.add(item)
            return None
        loop = asyncio.get_running_loop()
        waiting = Waiting(item, loop.create_future())
        bisect.insort(self._yielding if item.yields else self._waiting, (item.deadline, next(self._numbers), waiting))
        if item.yields:
            self._cores.wait_last(self)
            if len(self._yielding) == 1:
                now = time.monotonic()
                self.pieces.wait(now)
                self._look_when_overdue(now)
        else:
            self._cores.wait(self)
        if self._is_free:
            self._look_soon()
        # Relative: the loop's clock is not `time.monotonic` on uvloop.
        timer = loop.call_later(max(0.0, item.deadline - time.monotonic()), expire, waiting.admitted)
        try:
            return await waiting.admitted
        except BaseException:
            # Let in at the very moment at which the caller gave up.
            self.leave(item)
            self._look_soon()
            raise
        finally:
            timer.cancel()

    def _passes(self, item: Item) -> bool:
        """Whether `item` need not wait, which costs a lone caller a future and a turn of the loop (some 50 us)."""
        if self._waiting or self._wait_s > 0 or item.deadline <= time.monotonic():
            return False
        if not self._entering:
            if not self._is_free:
                return False
            # Serve's queue is read in the next turn: until then others may join.
            self._room = ((item.shape, item.edge), self._take(is_alone=True) - item.rows)
            asyncio.get_running_loop().call_soon(self._forget_room)
            return True
        if self._room is None or self._room[0] != (item.shape, item.edge) or self._room[1] < item.rows:
            return False
        self._room = (self._room[0], self._room[1] - item.rows)
        return True

    def _forget_room(self) -> None:
        self._room = None

    def _take(self, is_alone: bool) -> int:
        """Take cores for the next call and return how many rows it may have."""
        if self._lanes is None or (is_alone and self._cores.is_idle):
            self._taken = self._cores.take(self._cores.count, self)
            return self._max_rows
        rows = self._lanes.short_rows if self._cores.has_company(self) else self._lanes.rows
        self._taken = self._cores.take(self._lanes.cores, self)
        return rows

    def _give(self) -> None:
        taken, self._taken = self._taken, 0
        self._cores.give(taken)

    def leave(self, item: Item) -> None:
        """`item` was answered, or its caller has given up; an item that never reached the engine holds nobody up."""
        if item in self._entering:
            self._entering.discard(item)
            if not self._entering:
                self._give()
            if self._waiting:
                self.look()
            elif self._yielding:
                self._look_soon()
        if item.yields:
            self._cores.end_piece(item)

    def cut(self, item: Item, piece: Item) -> None:
        """Of `item`, which was let in, `piece` is computed now; `leave` follows for that."""
        self._entering.discard(item)
        self._entering.add(piece)
        self._cores.piece = piece

    def begin_call(self, items: Iterable[Item]) -> int:
        """The engine computes `items`, from this room or not, with so many cores; `end_call` must follow with them.

        0 cores for what is not from this room.
        """
        taken = 0
        if not self._entering.isdisjoint(items):
            taken, self._taken = self._taken, 0
            self._entering.difference_update(items)
        self._computing += 1
        if self._waiting or self._yielding:
            # Another lane may be free.
            self._look_soon()
        return taken

    def end_call(self, taken: int = 0) -> None:
        """The engine has computed a call that had `taken` cores, or will not."""
        self._computing -= 1
        self._cores.give(taken)
        if self._waiting:
            self.look()
        elif self._yielding:
            # In a turn of its own: what has arrived meanwhile goes first.
            self._look_soon()

    @property
    def _is_free(self) -> bool:
        return self._computing < self._most_calls and not self._entering and self._cores.free > 0

    @property
    def _most_calls(self) -> int:
        return self._lanes.count if self._lanes else 1

    def _look_soon(self, after_s: float = 0.0) -> None:
        """Look for whom to let in after so many seconds; 0 is the next turn of the loop."""
        if self._next_look is not None:
            self._next_look.cancel()
        loop = asyncio.get_running_loop()
        self._next_look = loop.call_later(after_s, self.look) if after_s > 0 else loop.call_soon(self.look)

    def look(self) -> None:
        """Let in whom the lanes and the free cores allow."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        # Who has given up or is late leaves first, or a group could be full of them.
        now = time.monotonic()
        self._waiting = still(self._waiting, now)
        self._yielding = still(self._yielding, now)
        if not self._waiting:
            self._cores.done(self)
        if not self._yielding:
            self._cores.done_last(self)
        elif self._lets_last_in(now):
            return
        if not self._waiting or not self._is_free:
            return
        due_s = float("inf")
        groups: dict[Hashable, list[Waiting]] = {}
        for *_, waiting in self._waiting:
            groups.setdefault(waiting.item.shape, []).append(waiting)
        for group in groups.values():
            entering = first(group, self._max_rows)
            is_full = len(entering) < len(group) or sum(waiting.item.rows for waiting in entering) >= self._max_rows
            group_due_s = min(waiting.item.arrived for waiting in group) + self._wait_s - now
            if is_full or group_due_s <= 0:
                self._let_in(group)
                return
            due_s = min(due_s, group_due_s)
        self._look_soon(due_s)

    def _lets_last_in(self, now: float) -> bool:
        """Let in who yields, if that may be now, and return whether."""
        cores, is_overdue = self._cores, now >= self.pieces.overdue_at
        if self._waiting and not is_overdue:
            return False
        if not self._waiting and not cores.others_call:
            if is_free := self._is_free:
                shape = self._yielding[0][-1].item.shape
                self._let_in([entry[-1] for entry in self._yielding if entry[-1].item.shape == shape])
                self._last_begins(now)
            return is_free
        if self._entering or self._computing >= (self._most_calls if is_overdue else 1):
            return False
        if not is_overdue and (cores.piece is not None or not cores.is_idle):
            return False
        *_, waiting = self._yielding.pop(0)
        self._last_begins(now)
        self._entering.add(waiting.item)
        cores.piece = waiting.item
        waiting.admitted.set_result(self.pieces.rows)
        return True

    def _last_begins(self, now: float) -> None:
        self.pieces.begin(now, bool(self._yielding))
        self._look_when_overdue(now)

    def _look_when_overdue(self, now: float) -> None:
        if self._overdue_look is not None:
            self._overdue_look.cancel()
            self._overdue_look = None
        # Of what is overdue already and cannot be let in, the end of a call reminds.
        if self._yielding and (after_s := self.pieces.overdue_at - now) > 0:
            self._overdue_look = asyncio.get_running_loop().call_later(after_s, self.look)

    def _let_in(self, group: list[Waiting]) -> None:
        is_alone = len(self._yielding if group[0].item.yields else self._waiting) == 1
        if is_alone:
            # It waits no more, so it may be alone in the process.
            self._cores.done(self)
        free = self._cores.free
        entering = self._together(group, self._take(is_alone))
        if self._lanes is not None and not is_alone:
            entering = entering[: math.ceil(len(group) / min(self._lanes.count, max(1, free // self._lanes.cores)))]
        self._entering.update(waiting.item for waiting in entering)
        for waiting in entering:
            waiting.admitted.set_result(None)
        now = time.monotonic()
        self._waiting, self._yielding = still(self._waiting, now), still(self._yielding, now)
        if not self._waiting:
            self._cores.done(self)

    def _together(self, group: list[Waiting], max_rows: int) -> list[Waiting]:
        """The first of `group`, and those that go with it, in up to `max_rows` rows."""
        leader = group[0].item
        if self._companions is None or not leader.edge:
            return first(group, max_rows)
        others = [(waiting.item.rows, waiting.item.edge) for waiting in group[1:]]
        chosen = self._companions((leader.rows, leader.edge), others, max_rows)
        return [group[0], *(group[1 + at] for at in chosen)]
