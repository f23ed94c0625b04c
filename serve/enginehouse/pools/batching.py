"""Batching: one warm engine and its queue; calls that arrive while the engine is busy are computed as one batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace

from enginehouse.contract.config import ModelConfig
from enginehouse.contract.errors import EnginehouseError, EngineUnavailable, Overloaded
from enginehouse.contract.manifest import Artifact, EngineKind, Manifest
from enginehouse.contract.tensors import Computed, Tensors, stack
from enginehouse.engines import Engine
from enginehouse.engines.padding import Padder, Place
from enginehouse.pools.batch_queue import Queue, Together, serve_queue
from enginehouse.pools.cores import Cores
from enginehouse.pools.engine_calls import EngineCalls, Lane, Split
from enginehouse.pools.engine_threads import EngineThreads
from enginehouse.pools.line import Item
from enginehouse.pools.waiting_room import Lanes, WaitingRoom
from enginehouse.pools.yielding import first_rows, in_pieces

#: In Serve a call of more rows than this many full batches is queued in slices of that many.
SLICE_BATCHES = 8
#: Seconds for which closing waits for the calls in flight; a call that is stuck keeps its engine until it ends.
CLOSE_S = 60.0
#: Timeout in seconds for the event loop to run `begun` before an isolated call.
BEGUN_S = 1.0


class LoadedModel:
    """A warm engine with a batch queue of its own: models never share a batch or wait for another model's.

    An engine call has at most `best_rows` rows, unless the catalog sets `max_batch_size`, and runs inside `flag`.
    `measured` are (rows, milliseconds) timed in this process. An engine that is not `is_shared` has one caller, which
    coalesces its requests itself: its calls skip the batch queue, unless the catalog sets `batch_wait_ms`. Calls take
    `cores`, which all models of the process share (None: no other model counts); with `splits` several calls are
    computed at once while there is more than one. With a `padder` calls of several lengths share an engine call. What
    is not `in_serve`, in no replica, has a batch queue that needs none.
    """

    def __init__(
        self,
        engine: Engine,
        kind: EngineKind,
        manifest: Manifest,
        artifact: Artifact,
        best_rows: int,
        measured: Sequence[tuple[int, float]] = (),
        flag: AbstractContextManager[None] | None = None,
        is_shared: bool = True,
        cores: Cores | None = None,
        splits: Split | None = None,
        padder: Padder | None = None,
        in_serve: bool = True,
    ) -> None:
        self.engine = engine
        self.kind = kind
        self.artifact = artifact
        self.measured = list(measured)
        #: What crashes of its engine are recorded under (`crashes.engine_id`).
        self.identity = ""
        self._padder = padder
        self.engine_calls = EngineCalls(kind, artifact, flag or nullcontext(), padder)
        self._is_shared, self._in_serve = is_shared, in_serve
        self._cores = cores or Cores(1)
        self._splits = splits
        self._waits_for_batches = False
        self._best_rows = best_rows
        # Of more rows in a call nobody has looked whether each stays as it is alone.
        self._verified_rows = manifest.max_batch
        #: Limit of rows in one engine call.
        self.max_rows = best_rows
        companions = padder.companions if padder else None
        self._waiting_room = WaitingRoom(self._rows_at_once, self._cores, self._lanes, companions)
        self.last_used = time.monotonic()
        self._pending_rows = 0
        # Calls in flight, isolated ones too.
        self._calls = 0
        self._closing = False
        self._no_calls = asyncio.Event()
        # One engine call at a time for each lane: a CPU engine already uses all of its threads.
        self._threads = EngineThreads(kind, manifest.name, self.lanes, self._waiting_room, self._cores, self._lane)

        async def run(items: list[Item]) -> list[Computed | EnginehouseError]:
            return await self._threads.run(self.engine_calls.run, items)

        # Those that make a batch have waited together, and enter together: it never waits for more.
        self._batched: Queue = serve_queue(run, self.max_rows, self.lanes) if in_serve else Together(run)

    def set_batching(self, config: ModelConfig) -> None:
        """Apply `max_batch_size` and `batch_wait_ms` of the catalog; calls in the queue stay there."""
        self.max_rows = min(config.max_batch_size or self._best_rows, self._verified_rows)
        if self._padder is not None:
            self._padder.is_limited = config.max_batch_size is not None
        # Serve counts calls, not rows; each call has at least one row.
        most = self.max_rows if self._padder is None else self._padder.most_rows(self.max_rows)
        self._batched.set_max_batch_size(most)
        self._waiting_room.set_limits(self._rows_at_once, config.batch_wait_ms / 1e3, self._lanes)
        self._waits_for_batches = config.batch_wait_ms > 0

    @property
    def _rows_at_once(self) -> int:
        # Without a batch axis there is nothing to wait for: every call is an engine call of its own.
        return self.max_rows if self.engine.signature.batched else 1

    @property
    def lanes(self) -> int:
        """How many calls it computes at once."""
        return self._splits.count if self._splits else 1

    @property
    def pads(self) -> bool:
        """Whether calls of several lengths share one."""
        return self._padder is not None

    @property
    def _lanes(self) -> Lanes | None:
        if (splits := self._splits) is None:
            return None
        # What a user has set holds for every call.
        limits = (splits.rows, splits.short_rows) if self.max_rows == self._best_rows else (self.max_rows,) * 2
        rows, short_rows = (min(limit, self._rows_at_once) for limit in limits)
        return Lanes(splits.count, rows, splits.cores, short_rows)

    @property
    def busy_s(self) -> float:
        """Seconds of computing so far; a call that has a share of the cores counts for that share."""
        return self.engine_calls.busy_s

    @property
    def backlog_ms(self) -> float:
        """Predicted milliseconds until all but isolated and last calls are computed, by the average time per row."""
        return self._pending_rows * self.engine_calls.row_ms

    @property
    def stuck_s(self) -> float:
        """Seconds for which the engine has been computing one call if it counts as stuck, else 0."""
        return self.engine_calls.stuck_s

    async def infer(self, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        """Outputs of `requests`, concatenated along dim 0, and their timing.

        `rows` is the number of rows together, `budget_s` the seconds from now until the deadline. Raises Overloaded at
        once when the backlog alone would take longer or the engine is stuck, DeadlineExceeded when the deadline passes
        in the queue, InferenceFailed, and EngineUnavailable once it is being closed.
        """
        self.engine_calls.check_not_stuck()
        if self.backlog_ms > budget_s * 1e3:
            raise Overloaded(
                f"{self.kind} is busy for {self.backlog_ms:.3g} ms with what others sent", self.backlog_ms / 1e3
            )
        self._begin_call()
        self._pending_rows += rows
        self._cores.note_other()
        try:
            outputs, timing = await self._infer(requests, rows, budget_s)
            self._waiting_room.pieces.note_other(timing.compute_ms / 1e3)
            return outputs, timing
        finally:
            self._pending_rows -= rows
            self._cores.note_other()
            self._end_call()

    async def infer_last(self, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        """As `infer`, after all others: see `yielding`. Waits as long as there is time."""
        self.engine_calls.check_not_stuck()
        self._begin_call()
        try:
            return await self._infer(requests, rows, budget_s, yields=True)
        finally:
            self._end_call()

    async def infer_isolated(
        self, requests: Sequence[Tensors], rows: int, budget_s: float, begun: Callable[[bool], None], company: bool
    ) -> Computed:
        """As `infer`, alone in the process, or with `company` beside what is lasting there (see `isolation`).

        For a request that may crash the process: `begun` runs on the event loop right before the engine computes, with
        whether it is alone: the router must know. Skips the batch queue. Raises Overloaded when others take too long.
        """
        self.engine_calls.check_not_stuck()
        loop, now = asyncio.get_running_loop(), time.monotonic()
        item = Item(requests, rows, now, now + budget_s)
        answered: asyncio.Future[Computed | EnginehouseError] = loop.create_future()

        async def begin(is_alone: bool) -> bool:
            # Cancelled: the thread may still wait, and nobody would be to blame for what it computed then.
            if not answered.cancelled():
                begun(is_alone)
            return not answered.cancelled()

        def deliver(answer: Computed | EnginehouseError) -> None:
            if not answered.done():
                answered.set_result(answer)

        def run(lane: Lane, items: list[Item]) -> list[Computed | EnginehouseError]:
            self.engine_calls.run_alone(
                lane,
                item,
                company,
                # Waited for: computing may end this process, and then nothing could be sent.
                lambda is_alone: asyncio.run_coroutine_threadsafe(begin(is_alone), loop).result(BEGUN_S),
                lambda answer: loop.call_soon_threadsafe(deliver, answer),
            )
            return []

        self.last_used = now
        self._begin_call()
        try:
            self._threads.run(run, [item])
            answer = await answered
        finally:
            self._end_call()
        if isinstance(answer, EnginehouseError):
            raise answer
        return answer

    def free_cores(self) -> None:
        """See `EngineThreads.free_cores`."""
        self._threads.free_cores()

    async def close(self) -> None:
        """Refuse further calls, and release the engine's memory when those in flight have ended.

        Returns after two times CLOSE_S seconds at the latest; a stuck engine is then closed when its call ends.
        """
        self._closing = True
        if self._calls:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._no_calls.wait()
        closed = asyncio.wrap_future(self._threads.end(self.close_engines))
        await asyncio.wait([closed], timeout=CLOSE_S)
        if closed.done():
            closed.result()

    def close_engines(self) -> None:
        """Release the engines' memory at once, whatever they compute."""
        try:
            self.engine.close()
        finally:
            if self._splits:
                self._splits.engine.close()

    def _begin_call(self) -> None:
        if self._closing:
            raise EngineUnavailable(self.kind, "it has just been unloaded")
        self._calls += 1

    def _end_call(self) -> None:
        self._calls -= 1
        if self._closing and not self._calls:
            self._no_calls.set()

    async def _infer(self, requests: Sequence[Tensors], rows: int, budget_s: float, yields: bool = False) -> Computed:
        until, most = time.monotonic() + budget_s, self.max_rows * SLICE_BATCHES
        if not yields and (not self.engine.signature.batched or rows <= most or not self._in_serve):
            place = self._place(requests) if self._is_shared or self._waits_for_batches else Place(())
            return await self._queued(Item(requests, rows, time.monotonic(), until, *place))
        inputs = stack(requests)
        place = self._place([inputs])

        async def ask(rest: Tensors, left: int) -> tuple[int, Computed]:
            now, count = time.monotonic(), min(most, left)
            if yields:
                return await self._yielded(Item([rest], left, now, until, *place, yields=True))
            # One slice at a time, so that calls of others are computed in between.
            return count, await self._queued(Item([first_rows(rest, count)], count, now, until, *place))

        return await in_pieces(inputs, rows, ask)

    async def _queued(self, item: Item) -> Computed:
        self.last_used = time.monotonic()
        if not (self._is_shared or self._waits_for_batches):
            (answer,) = await self._threads.run(self.engine_calls.run, [item])
            return _raised(answer)
        await self._enter(item)
        try:
            return _raised(await self._batched(item))
        finally:
            self._waiting_room.leave(item)

    async def _yielded(self, item: Item) -> tuple[int, Computed]:
        """The answer to as many of the first rows of `item` as may be computed when its turn comes, and how many."""
        self.last_used = time.monotonic()
        most = await self._enter(item)
        piece, room = item, self._waiting_room
        try:
            if most is None:
                return item.rows, _raised(await self._batched(item))
            if most < item.rows and self.engine.signature.batched:
                piece = replace(item, requests=[first_rows(item.requests[0], most)], rows=most)
                room.cut(item, piece)
            (computed,) = await self._threads.run(self.engine_calls.run, [piece])
            answer = _raised(computed)
            room.pieces.note(piece.rows, answer[1].compute_ms / 1e3)
            return piece.rows, answer
        finally:
            room.leave(piece)

    async def _enter(self, item: Item) -> int | None:
        try:
            return await self._waiting_room.enter(item)
        except TimeoutError:
            raise self.engine_calls.late(item, time.monotonic()) from None

    def _lane(self, cores: int) -> Lane:
        """What a call with so many cores computes with; 0 is for those that do not share the engine."""
        splits, lanes = self._splits, self._lanes
        if splits is None or lanes is None or not 0 < cores < self._cores.count:
            return Lane(self.engine, self.max_rows)
        return Lane(splits.engine, lanes.rows, cores / self._cores.count)

    def _place(self, requests: Sequence[Tensors]) -> Place:
        # Of requests of one shape, which a router sent together, one that may not be padded keeps the others from it.
        if not self.engine.signature.batched:
            return Place(())
        if self._padder is not None:
            return min(map(self._padder.place, requests), key=lambda place: place.edge)
        return Place(tuple((name, array.shape[1:]) for name, array in sorted(requests[0].items())))


def _raised(answer: Computed | EnginehouseError) -> Computed:
    # Errors are returned per item: one raised in the batch function would fail every item of the batch.
    if isinstance(answer, EnginehouseError):
        raise answer
    return answer
