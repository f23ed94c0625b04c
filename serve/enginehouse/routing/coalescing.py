"""Coalescing: requests for one backend that arrive while calls to it are in flight are sent together in the next call.

A call to a pool costs 0.5 ms of CPU, router and replica together, or more if large. A request that finds a free slot
is sent at once and alone: nothing ever waits for company (the queue is work-conserving). Waiting requests are sent by
priority, then by deadline; without stated deadlines that is the order of arrival.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass

from enginehouse.contract.config import LAST, USUAL
from enginehouse.contract.errors import DeadlineExceeded, EnginehouseError
from enginehouse.contract.tensors import Computed, Tensors, Timing, nbytes, split
from enginehouse.engines.padding import Padder, Place
from enginehouse.routing import timers

#: Seconds past its predicted time after which a call frees its slot.
HOLD_S = 0.25

#: Weight of the newest interval in the drain rate of a queue, and seconds for which that rate is used.
NEWEST, KNOWN_S = 0.2, 2.0

#: How many requests of other lengths a call is chosen from.
NEAR = 64

#: One call: the requests of a group, their rows, and seconds to the last deadline of them.
Call = Callable[[Sequence[Tensors], int, float], Awaitable[Computed]]


class Recalled(Exception):
    """The request was taken out of the queue unsent, because a better backend may be there now."""


@dataclass(slots=True, eq=False)
class _Waiting:
    inputs: Tensors
    rows: int
    size: int
    place: Place
    arrived: float
    deadline: float
    priority: int
    answer: asyncio.Future[Computed]
    #: Whether its rows are counted among those that wait.
    counted: bool = True


class Coalescer:
    """The queue of one backend in this process.

    - A call takes one of `slots` slots and frees it after `hold_s` seconds even if unanswered, so that one that is
      stuck or large delays others no longer.
    - A call carries one request, or several whose rows have the same shape: at most `max_rows` rows and `max_bytes`
      bytes in all. With a `padder`, rows of several lengths too, those that are nearest to the first in length.
    - A group's call may take until the last deadline in it; each of its requests is heard by its own.
    - A waiting request with under `least_s` seconds left is failed, not sent: no call is answered faster.
    - A call that fails, or may have failed, because of its content is halved and sent again, until the request at fault
      is alone with its error.
    """

    def __init__(self, call: Call, max_rows: int, max_bytes: int) -> None:
        self.slots = 1
        self.hold_s = HOLD_S
        self.least_s = 0.0
        self.max_rows = max_rows
        self.padder: Padder | None = None
        #: Rows of the requests that wait.
        self.waiting_rows = 0
        self._rows_of = [0] * (LAST + 1)
        # When the last group was sent, whether others still waited then, and the milliseconds a row until the next one.
        self._left_at = 0.0
        self._stayed = False
        self._row_ms = 0.0
        self._row_known_at = -math.inf
        self._call = call
        self._max_bytes = max_bytes
        self._under_way = 0
        self._waiting: list[tuple[int, float, int, _Waiting]] = []
        self._numbers = itertools.count()
        self._groups: set[asyncio.Task[None]] = set()

    @property
    def is_unused(self) -> bool:
        """Whether nothing waits and no slot is taken."""
        return not self._waiting and not self._under_way

    def waiting_before(self, priority: int) -> int:
        """Rows of waiting requests that a new request of this priority would be sent after, or together with."""
        return sum(self._rows_of[: priority + 1])

    def drain_ms(self, now: float) -> float:
        """Milliseconds per row at which the queue drained lately; 0 when there was no queue.

        Measured, so that other routers' requests and whatever else the replicas do are in it.
        """
        return self._row_ms if now - self._row_known_at < KNOWN_S else 0.0

    async def infer(self, inputs: Tensors, rows: int, deadline: float, priority: int = USUAL) -> Computed:
        """Send one request of `rows` rows and return its own part of the answer.

        `deadline` is a time of `time.monotonic`. Raises what the call raises, DeadlineExceeded, and Recalled.
        """
        now = time.monotonic()
        if self._under_way < self.slots and not self._waiting:
            release = self._slot()
            try:
                return await self._call([inputs], rows, deadline - now)
            finally:
                release()
        place = self.padder.place(inputs) if self.padder else Place(_shapes(inputs))
        answer: asyncio.Future[Computed] = asyncio.get_running_loop().create_future()
        item = _Waiting(inputs, rows, nbytes(inputs), place, now, deadline, priority, answer)
        # A timer alone: `asyncio.timeout` also makes a context and a cancellation, for every request that waits.
        timer = timers.call_later(deadline - now, lambda: _expire(item, deadline - now))
        heapq.heappush(self._waiting, (priority, deadline, next(self._numbers), item))
        self.waiting_rows += rows
        self._rows_of[priority] += rows
        try:
            # A caller that gives up cancels the future: the request is then dropped from the queue, or its part of the
            # group's answer is.
            return await answer
        finally:
            timer.cancel()
            self._leave(item)

    def recall(self) -> None:
        """Raise Recalled in every waiting request, in the order in which they would have been sent."""
        waiting, self._waiting = sorted(self._waiting), []
        for *_, item in waiting:
            self._leave(item)
            if not item.answer.done():
                item.answer.set_exception(Recalled())

    def _leave(self, item: _Waiting) -> None:
        if item.counted:
            item.counted = False
            self.waiting_rows -= item.rows
            self._rows_of[item.priority] -= item.rows

    def _slot(self) -> Callable[[], None]:
        """Take a slot; the function returned frees it, or `hold_s` does."""
        self._under_way += 1
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                timer.cancel()
                self._under_way -= 1
                self._fill_slots()

        timer = timers.call_about(self.hold_s, release)
        return release

    def _fill_slots(self) -> None:
        while self._under_way < self.slots:
            group = self._next_group()
            if not group:
                self._stayed = False
                return
            self._note_leaving(sum(item.rows for item in group))
            # In an empty context: Serve would otherwise attribute the call to whichever request runs here.
            sending = self._send(group, self.padder, self._slot())
            task = asyncio.create_task(sending, context=contextvars.Context())
            self._groups.add(task)
            task.add_done_callback(self._groups.discard)

    def _note_leaving(self, rows: int) -> None:
        now = time.monotonic()
        if self._stayed:
            row_ms = (now - self._left_at) * 1e3 / rows
            known = now - self._row_known_at < KNOWN_S
            self._row_ms += (row_ms - self._row_ms) * (NEWEST if known else 1.0)
            self._row_known_at = now
        self._left_at = now
        self._stayed = self.waiting_rows > 0

    def _next_group(self) -> list[_Waiting]:
        """The next request to be sent and, in order, those that fit beside it; drops cancelled, fails late ones."""
        group: list[_Waiting] = []
        # Of the lengths that it may have beside it.
        near: list[tuple[int, float, int, _Waiting]] = []
        others: list[tuple[int, float, int, _Waiting]] = []
        rows = size = 0
        earliest = time.monotonic() + self.least_s
        while self._waiting and rows < self.max_rows and len(near) < NEAR:
            entry = heapq.heappop(self._waiting)
            item = entry[-1]
            if item.answer.done():
                self._leave(item)
                continue
            if item.deadline < earliest:
                self._leave(item)
                item.answer.set_exception(DeadlineExceeded("too little time was left when its turn came"))
                continue
            fits = not group or (
                item.place.shape == group[0].place.shape
                and (item.place.edge or rows + item.rows <= self.max_rows)
                and size + item.size <= self._max_bytes
            )
            if not fits:
                others.append(entry)
            elif group and item.place.edge:
                near.append(entry)
            else:
                group.append(item)
                rows, size = rows + item.rows, size + item.size
        for entry in self._companions(group[0], near) if near else ():
            group.append(entry[-1])
            near.remove(entry)
        for item in group:
            self._leave(item)
        for entry in (*others, *near):
            heapq.heappush(self._waiting, entry)
        return group

    def _companions(
        self, first: _Waiting, others: list[tuple[int, float, int, _Waiting]]
    ) -> list[tuple[int, float, int, _Waiting]]:
        """Those of `others` that are sent with `first`, nearest in length; of a later priority only what has room."""
        if self.padder is None:
            return []
        chosen: list[tuple[int, float, int, _Waiting]] = []
        rows, edge, size = first.rows, first.place.edge, first.size / first.place.edge
        for _, turn in itertools.groupby(others, key=lambda entry: entry[0]):
            entries = list(turn)
            known = [(entry[-1].rows, entry[-1].place.edge) for entry in entries]
            for at in self.padder.companions((rows, edge), known, self.max_rows):
                item = entries[at][-1]
                longest, more = max(edge, item.place.edge), item.size / item.place.edge
                if (size + more) * longest > self._max_bytes:
                    return chosen
                chosen.append(entries[at])
                rows, edge, size = rows + item.rows, longest, size + more
        return chosen

    async def _send(self, group: list[_Waiting], padder: Padder | None, release: Callable[[], None]) -> None:
        try:
            await self._answer(group, padder)
        finally:
            for item in group:
                # Pending only if this task was cancelled, because the process ends.
                item.answer.cancel()
            release()

    async def _answer(self, group: list[_Waiting], padder: Padder | None) -> None:
        # Of a group that is sent again in halves some may be out of time by now.
        group[:] = [item for item in group if not item.answer.done()]
        if not group:
            return
        rows = [item.rows for item in group]
        requests: Sequence[Tensors] = [item.inputs for item in group]
        sent = time.monotonic()
        if padder is not None and len({padder.length(request) for request in requests}) > 1:
            requests = [padder.joined(requests)]
        else:
            padder = None
        try:
            outputs, timing = await self._call(requests, sum(rows), max(item.deadline for item in group) - sent)
            parts = split(outputs, rows)
            if padder is not None:
                parts = [padder.cut(part, padder.length(item.inputs)) for item, part in zip(group, parts, strict=True)]
        except EnginehouseError as error:
            if len(group) == 1 or not error.fault.is_of_content:
                _fail(group, error)
                return
            await self._answer(group[: len(group) // 2], padder)
            await self._answer(group[len(group) // 2 :], padder)
        except Exception as error:
            _fail(group, error)
        else:
            for item, part in zip(group, parts, strict=True):
                if not item.answer.done():
                    waited_ms = (sent - item.arrived) * 1e3
                    queue_ms = timing.queue_ms + waited_ms
                    item.answer.set_result((part, Timing(queue_ms, timing.compute_ms, timing.batch_rows)))


def _shapes(inputs: Tensors) -> Hashable:
    # Sorted by name: two requests may list their inputs in different orders.
    return tuple(sorted((name, array.shape[1:], array.dtype.kind) for name, array in inputs.items()))


def _expire(item: _Waiting, budget_s: float) -> None:
    """The request's own deadline has passed, whatever the others of its call may still take."""
    if not item.answer.done():
        waited = "waiting to be sent" if item.counted else "in a call with others"
        text = f"{waited} when the {budget_s:.3f} s that were left had passed"
        item.answer.set_exception(DeadlineExceeded(text))


def _fail(group: list[_Waiting], error: Exception) -> None:
    for item in group:
        if not item.answer.done():
            item.answer.set_exception(error)
    # The error's traceback refers to the group and the group to the error: a cycle that would keep the inputs.
    group.clear()
