"""Engine calls: computes the items of a batch on a model's engine, in worker threads, and knows how long that takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from enginehouse.contract.errors import DeadlineExceeded, EnginehouseError, InferenceFailed, Overloaded
from enginehouse.contract.manifest import Artifact, EngineKind
from enginehouse.contract.tensors import Computed, Tensors, Timing, split, stack
from enginehouse.counts.engines import BatchCounts
from enginehouse.engines import Engine
from enginehouse.engines.padding import Padder
from enginehouse.pools import isolation
from enginehouse.pools.line import Item

#: An engine counts as stuck when one call has taken both STUCK_S seconds and STUCK times its usual duration.
STUCK_S, STUCK = 10.0, 10.0
#: Seconds for which an isolated call waits for its turn, behind others that are isolated.
TURN_S = 10.0
#: Seconds after an isolated call for its answer to leave this process, before another call begins.
DELIVERED_S = 0.01
#: Weight of the newest call in the moving averages of the time and the rows of a call.
NEWEST = 0.1


@dataclass(frozen=True, slots=True)
class Split:
    """A second engine of a model that computes `count` calls of up to `rows` rows at once, with `cores` cores each.

    `short_rows` are those of a call that is short and hardly answers fewer: other models need not wait for it long.
    """

    engine: Engine
    count: int
    rows: int
    cores: int
    short_rows: int


@dataclass(frozen=True, slots=True)
class Lane:
    """What a call computes with: `engine`, at most `rows` rows at once, and this `share` of the process's cores."""

    engine: Engine
    rows: int
    share: float = 1.0


class EngineCalls:
    """Engine calls of one model. Called from several threads at once when the model has several lanes.

    Items of several lengths are made equally long by `padder`, and their outputs cut back.
    """

    def __init__(
        self, kind: EngineKind, artifact: Artifact, flag: AbstractContextManager[None], padder: Padder | None = None
    ) -> None:
        #: Where what is computed is counted, if anywhere.
        self.counts: BatchCounts | None = None
        #: Seconds of computing so far, of all cores.
        self.busy_s = 0.0
        #: Milliseconds that all cores together lately took for a row.
        self.row_ms = 0.0
        self._usual_s = self._usual_rows = 0.0
        self._kind = kind
        self._artifact = artifact
        self._flag = flag
        self._padder = padder
        # Of each call in progress: when it began, and after how many seconds it counts as stuck.
        self._under_way: dict[object, tuple[float, float]] = {}

    @property
    def stuck_s(self) -> float:
        """Seconds for which the engine has been computing one call if it counts as stuck, else 0."""
        now = time.monotonic()
        # Copied: the engine's threads change it meanwhile.
        stuck = (now - since for since, after_s in list(self._under_way.values()) if now - since > after_s)
        return max(stuck, default=0.0)

    def check_not_stuck(self) -> None:
        """Raise Overloaded if a call is stuck: another replica of the pool may have a working engine."""
        if (stuck_s := self.stuck_s) > 0:
            raise Overloaded(f"{self._kind} has been computing one call for {stuck_s:.0f} s", STUCK_S)

    def run(self, lane: Lane, items: list[Item]) -> list[Computed | EnginehouseError]:
        """Compute `items` beside other models, as soon as no isolated call computes."""
        try:
            with isolation.of_this_process.beside(max(item.deadline for item in items)):
                return self._timely(lane, items)
        except TimeoutError:
            now = time.monotonic()
            return [self.late(item, now) for item in items]

    def run_alone(
        self,
        lane: Lane,
        item: Item,
        company: bool,
        begin: Callable[[bool], bool],
        deliver: Callable[[Computed | EnginehouseError], object],
    ) -> None:
        """Compute `item` while no other model of this process computes, and `deliver` its answer while that holds.

        With `company`, that may be beside what is lasting (see `isolation`); else Overloaded is delivered then. Not
        computed when `begin`, called right before with whether it is alone, says no. Only the first answer that
        `deliver` is called with counts.
        """
        until = min(item.deadline, time.monotonic() + TURN_S)
        answer: Computed | EnginehouseError
        answer = Overloaded(f"{self._kind}: other engines of this process compute or are being loaded")
        try:
            with suppress(TimeoutError), isolation.of_this_process.alone(until, company) as is_alone:
                if begin(is_alone):
                    (answer,) = self._timely(lane, [item])
                    deliver(answer)
                    # The next call may end this process, and this one would be blamed.
                    time.sleep(DELIVERED_S)
        finally:
            # What was delivered is not delivered again.
            deliver(answer)

    def _timely(self, lane: Lane, items: list[Item]) -> list[Computed | EnginehouseError]:
        """Fail expired items and compute the others, whose rows have one shape, together."""
        now = time.monotonic()
        timely = [item for item in items if item.deadline > now]
        computed = iter(self._compute(lane, timely) if timely else [])
        return [next(computed) if item.deadline > now else self.late(item, now) for item in items]

    def late(self, item: Item, now: float) -> DeadlineExceeded:
        """The error of an item whose deadline has passed before it was computed."""
        return DeadlineExceeded(f"{now - item.arrived:.3f} s in the queue of {self._artifact.name!r}")

    def _compute(self, lane: Lane, items: list[Item]) -> list[Computed | EnginehouseError]:
        rows = [item.rows for item in items]
        started = time.monotonic()
        try:
            requests = [request for item in items for request in item.requests]
            inputs = stack(requests) if self._padder is None else self._padder.joined(requests)
            most, stacked = self._most_rows(lane, inputs), time.monotonic()
            with self._timed(started, lane.share, sum(rows)), self._flag:
                outputs = _infer_in_pieces(lane.engine, most, inputs, sum(rows))
        except Exception as error:
            if len(items) == 1:
                if isinstance(error, EnginehouseError):
                    return [error]
                return [InferenceFailed(f"{self._kind}: {type(error).__name__}: {error}")]
            # One item may have broken the batch: compute each by itself, so that the others get their answers.
            return [self._compute(lane, [item])[0] for item in items]
        computed = time.monotonic()
        taken = computed - started
        self._note(taken * lane.share, sum(rows))
        answers: list[Computed | EnginehouseError] = [
            (self._cut(part, item), Timing((started - item.arrived) * 1e3, taken * 1e3, sum(rows)))
            for item, part in zip(items, split(outputs, rows), strict=True)
        ]
        if self.counts is not None:
            self.counts.computed(sum(rows), most, stacked - started, computed - stacked, time.monotonic() - computed)
        return answers

    def _most_rows(self, lane: Lane, inputs: Tensors) -> int:
        padder = self._padder
        return lane.rows if padder is None else padder.most_rows(lane.rows, padder.length(inputs))

    def _cut(self, outputs: dict[str, np.ndarray], item: Item) -> dict[str, np.ndarray]:
        padder = self._padder
        return outputs if padder is None else padder.cut(outputs, padder.length(item.requests[0]))

    @contextmanager
    def _timed(self, started: float, share: float, rows: int) -> Iterator[None]:
        call = object()
        # The first call has no average to be compared with.
        usual_s = self.row_ms / share * rows / 1e3 or math.inf
        self._under_way[call] = started, max(STUCK_S, STUCK * usual_s)
        try:
            yield
        finally:
            del self._under_way[call]

    def _note(self, seconds: float, rows: int) -> None:
        self.busy_s += seconds
        weight = NEWEST if self._usual_rows else 1.0
        self._usual_s += (seconds - self._usual_s) * weight
        self._usual_rows += (rows - self._usual_rows) * weight
        # Not the average of each call's time per row: a single row takes far longer than one of many.
        self.row_ms = self._usual_s / self._usual_rows * 1e3


def _infer_in_pieces(engine: Engine, most: int, inputs: Tensors, rows: int) -> dict[str, np.ndarray]:
    if rows <= most:
        return engine.infer(inputs)
    pieces: Sequence[dict[str, np.ndarray]] = [
        engine.infer({name: array[start : start + most] for name, array in inputs.items()})
        for start in range(0, rows, most)
    ]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
