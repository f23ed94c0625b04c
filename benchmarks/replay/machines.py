"""Nodes and replicas at work: queues, batches, shared hardware, and nodes that vanish with what they compute."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from benchmarks.replay.book import Request
from benchmarks.replay.clock import Clock, Timer
from benchmarks.replay.fleet import ENGINES, Fleet, Model, Node
from enginehouse.batching import NEWEST
from enginehouse.channel import SILENT_S
from enginehouse.manifest import EngineKind

#: Spread of the time of one batch, log-normal: 0.1 is a p99 of 1.26 times the median. Assumed.
NOISE = 0.1

Pool = tuple[EngineKind, int]


class Caller(Protocol):
    """Who sent calls, and hears of each once: answered, or expired before it was computed, or lost with the node."""

    def answered(self, call: Call, compute_ms: float, rows: int) -> None: ...

    def expired(self, call: Call) -> None: ...

    def lost(self, call: Call) -> None: ...


@dataclass(slots=True, eq=False)
class Call:
    """Requests for one model that travel together; not begun after `deadline`."""

    model: Model
    requests: list[Request]
    rows: int
    deadline: float
    caller: Caller


class Machine:
    """A node. Engines that compute at the same time share it equally; `busy_s` is how long any of them did."""

    def __init__(self, clock: Clock, node: Node) -> None:
        self.node = node
        self.is_up = True
        self.busy_s = 0.0
        self.replicas: list[Replica] = []
        self._clock = clock
        self._left_s: dict[Replica, float] = {}
        self._since = 0.0
        self._timer: Timer | None = None

    def compute(self, replica: Replica, work_s: float) -> None:
        """Have the replica compute what would take so long on the whole node."""
        self._advance()
        self._left_s[replica] = work_s
        self._plan()

    def vanish(self) -> None:
        """Nothing on it goes on, and nobody is told."""
        self._advance()
        self.is_up = False
        self._left_s.clear()
        self._plan()
        for replica in self.replicas:
            replica.vanish()

    def _advance(self) -> None:
        elapsed, self._since = self._clock.now - self._since, self._clock.now
        if self._left_s:
            self.busy_s += elapsed
            each = elapsed / len(self._left_s)
            for replica in self._left_s:
                self._left_s[replica] -= each

    def _plan(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._left_s:
            first = min(self._left_s, key=self._left_s.__getitem__)
            due = self._clock.now + max(0.0, self._left_s[first]) * len(self._left_s)
            self._timer = self._clock.at(due, lambda: self._done(first))

    def _done(self, replica: Replica) -> None:
        self._advance()
        del self._left_s[replica]
        self._plan()
        replica.done()


class Replica:
    """One engine on a node: a batch at a time, of waiting calls for one model, whose models take turns."""

    def __init__(self, clock: Clock, machine: Machine, engine: EngineKind, noise: Random) -> None:
        self.machine = machine
        self.engine: EngineKind = engine
        #: Calls that were sent and not answered.
        self.under_way: dict[Call, None] = {}
        self._clock = clock
        self._noise = noise
        self._queue: dict[Model, deque[Call]] = {}
        self._row_ms: dict[Model, float] = {}
        self._batch: list[Call] = []
        self._batch_rows = 0
        self._began = 0.0

    def backlog_ms(self) -> float:
        """What it says of itself: rows that somebody waits for, by how long those of their model took lately."""
        now, row_ms = self._clock.now, self._row_ms
        return sum(call.rows * row_ms.get(call.model, 0.0) for call in self.under_way if call.deadline > now)

    def submit(self, call: Call) -> None:
        """Take a call. On a node that is gone it waits until somebody notices."""
        self.under_way[call] = None
        if not self.machine.is_up:
            return
        waiting = self._queue.get(call.model)
        if waiting is None:
            self._queue[call.model] = deque([call])
        else:
            waiting.append(call)
        if not self._batch:
            self._next()

    def done(self) -> None:
        """The batch is computed."""
        batch, rows, compute_ms = self._batch, self._batch_rows, (self._clock.now - self._began) * 1e3
        self._batch = []
        row_ms, model = compute_ms / rows, batch[0].model
        before = self._row_ms.get(model, row_ms)
        self._row_ms[model] = before + NEWEST * (row_ms - before)
        for call in batch:
            del self.under_way[call]
        self._next()
        for call in batch:
            call.caller.answered(call, compute_ms, rows)

    def vanish(self) -> None:
        """Forget everything but that callers wait."""
        self._queue.clear()
        self._batch = []

    def fail(self) -> None:
        """Callers notice: what they sent is lost."""
        lost, self.under_way = list(self.under_way), {}
        for call in lost:
            call.caller.lost(call)

    def _next(self) -> None:
        expired: list[Call] = []
        while self._queue and not self._batch:
            model = next(iter(self._queue))
            calls = self._queue.pop(model)
            self._batch, self._batch_rows = self._taken(calls, model.batch_rows[self.engine], expired)
            if calls:
                self._queue[model] = calls
        if self._batch:
            model = self._batch[0].model
            table_s = model.tables[self.engine].predict_ms(self._batch_rows) / 1e3
            work_s = table_s * model.truth[self.engine] * self._noise.lognormvariate(0.0, NOISE)
            self._began = self._clock.now
            self.machine.compute(self, work_s)
        # Last, because who hears of it may send more.
        for call in expired:
            del self.under_way[call]
            call.caller.expired(call)

    def _taken(self, calls: deque[Call], most: int, expired: list[Call]) -> tuple[list[Call], int]:
        batch: list[Call] = []
        rows = 0
        while calls:
            if calls[0].deadline <= self._clock.now:
                expired.append(calls.popleft())
            elif batch and rows + calls[0].rows > most:
                break
            else:
                rows += calls[0].rows
                batch.append(calls.popleft())
        return batch, rows


class Machines:
    """All nodes of a fleet, and what is known of them."""

    def __init__(self, clock: Clock, fleet: Fleet, seed: int) -> None:
        noise = Random(seed)
        self.all = [Machine(clock, node) for node in fleet.nodes]
        #: The replicas of each pool that are known to be there.
        self.live: dict[Pool, list[Replica]] = {}
        #: Goes up whenever that changes.
        self.changes = 0
        self._clock = clock
        for machine in self.all:
            machine.replicas = [Replica(clock, machine, engine, noise) for engine in ENGINES[machine.node.accelerator]]
        self._look(set())

    def lose(self, nodes: Iterable[int], until_s: float) -> None:
        """These vanish now, which is noticed after `SILENT_S`, and are back at `until_s`."""
        lost = [self.all[index] for index in nodes]
        for machine in lost:
            machine.vanish()
        self._clock.at(self._clock.now + SILENT_S, lambda: self._notice(lost))
        self._clock.at(until_s, lambda: self._return(lost))

    def _notice(self, lost: list[Machine]) -> None:
        self._look(set(lost))
        for machine in lost:
            for replica in machine.replicas:
                replica.fail()

    def _return(self, lost: list[Machine]) -> None:
        for machine in lost:
            machine.is_up = True
        self._look(set())

    def _look(self, without: set[Machine]) -> None:
        self.changes += 1
        self.live.clear()
        for machine in self.all:
            for replica in machine.replicas:
                pool = self.live.setdefault((replica.engine, machine.node.cell), [])
                if machine not in without:
                    pool.append(replica)
