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
from enginehouse.contract.manifest import EngineKind
from enginehouse.pools.engine_calls import NEWEST
from enginehouse.transport.router_end import SILENT_S

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
        self._left_s: dict[Engine, float] = {}
        self._since = 0.0
        self._timer: Timer | None = None

    def compute(self, engine: Engine, work_s: float) -> None:
        """Have the engine compute what would take so long on the whole node."""
        self._advance()
        self._left_s[engine] = work_s
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
            for engine in self._left_s:
                self._left_s[engine] -= each

    def _plan(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._left_s:
            first = min(self._left_s, key=self._left_s.__getitem__)
            due = self._clock.now + max(0.0, self._left_s[first]) * len(self._left_s)
            self._timer = self._clock.at(due, lambda: self._done(first))

    def _done(self, engine: Engine) -> None:
        self._advance()
        del self._left_s[engine]
        self._plan()
        engine.done()


class Engine:
    """One model on a replica: a batch of its waiting calls at a time (`enginehouse.pools.batching.LoadedModel`)."""

    def __init__(self, clock: Clock, replica: Replica, model: Model, noise: Random) -> None:
        self._clock = clock
        self._replica = replica
        self._model = model
        # Calls that were sent and not answered.
        self._under_way: dict[Call, None] = {}
        self._noise = noise
        self._queue: deque[Call] = deque()
        self._row_ms = 0.0
        self._batch: list[Call] = []
        self._batch_rows = 0
        self._began = 0.0

    def backlog_ms(self) -> float:
        """What it says of itself: rows that somebody waits for, by how long rows took lately."""
        now = self._clock.now
        return self._row_ms * sum(call.rows for call in self._under_way if call.deadline > now)

    def submit(self, call: Call) -> None:
        """Take a call. On a node that is gone it waits until somebody notices."""
        self._under_way[call] = None
        self._replica.calls += 1
        if self._replica.machine.is_up:
            self._queue.append(call)
            if not self._batch:
                self._next()

    def done(self) -> None:
        """The batch is computed."""
        batch, rows, compute_ms = self._batch, self._batch_rows, (self._clock.now - self._began) * 1e3
        self._batch = []
        row_ms = compute_ms / rows
        self._row_ms += (row_ms - self._row_ms) * (NEWEST if self._row_ms else 1.0)
        for call in batch:
            self._ended(call)
        self._next()
        for call in batch:
            call.caller.answered(call, compute_ms, rows)

    def vanish(self) -> None:
        """Forget everything but that callers wait."""
        self._queue.clear()
        self._batch = []

    def fail(self) -> None:
        """Callers notice: what they sent is lost."""
        for call in list(self._under_way):
            self._ended(call)
            call.caller.lost(call)

    def _ended(self, call: Call) -> None:
        del self._under_way[call]
        self._replica.calls -= 1

    def _next(self) -> None:
        expired: list[Call] = []
        kind = self._replica.kind
        rows, most = 0, self._model.batch_rows[kind]
        while self._queue and (not self._batch or rows + self._queue[0].rows <= most):
            call = self._queue.popleft()
            if call.deadline <= self._clock.now:
                expired.append(call)
            else:
                rows += call.rows
                self._batch.append(call)
        if self._batch:
            table_s = self._model.tables[kind].predict_ms(rows) / 1e3
            work_s = table_s * self._model.truth[kind] * self._noise.lognormvariate(0.0, NOISE)
            self._batch_rows, self._began = rows, self._clock.now
            self._replica.machine.compute(self, work_s)
        # Last, because who hears of it may send more.
        for call in expired:
            self._ended(call)
            call.caller.expired(call)


class Replica:
    """A process on a node that hosts models. They have their own queues, and share what the node computes."""

    def __init__(self, clock: Clock, machine: Machine, kind: EngineKind, noise: Random) -> None:
        self.machine = machine
        self.kind: EngineKind = kind
        #: How many were sent and not answered.
        self.calls = 0
        self._clock = clock
        self._noise = noise
        self._engines: dict[Model, Engine] = {}

    def engine(self, model: Model) -> Engine:
        """That of a model, which is warm."""
        found = self._engines.get(model)
        if found is None:
            found = self._engines[model] = Engine(self._clock, self, model, self._noise)
        return found

    def submit(self, call: Call) -> None:
        """Take a call."""
        self.engine(call.model).submit(call)

    def vanish(self) -> None:
        """Forget everything but that callers wait."""
        for engine in self._engines.values():
            engine.vanish()

    def fail(self) -> None:
        """Callers notice: what they sent is lost."""
        for engine in self._engines.values():
            engine.fail()


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
                pool = self.live.setdefault((replica.kind, machine.node.cell), [])
                if machine not in without:
                    pool.append(replica)
