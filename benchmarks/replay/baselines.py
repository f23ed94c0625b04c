"""What others do: round robin, static preference and least loaded.

Each sends a request straight to a replica, where requests wait and become batches as everybody's do. Of the engines of
one kind of node they use only the one that the tables call faster for the model, as somebody would deploy it. Nothing
is refused; what a node loses is sent elsewhere within its deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from benchmarks.replay.book import Book, Ended, Request
from benchmarks.replay.clock import Clock
from benchmarks.replay.fleet import Fleet, Model
from benchmarks.replay.machines import Call, Machines, Replica


class Baseline:
    """Sends each request to the replica that `_pick` names."""

    def __init__(self, clock: Clock, fleet: Fleet, machines: Machines, book: Book, seed: int) -> None:
        self._clock = clock
        self._machines = machines
        self._book = book
        self._random = Random(seed)
        self._pools = {model: [(engine, model.cell) for engine in model.engines()] for model in fleet.models}

    def arrive(self, request: Request) -> None:
        """Answer a request or have it end otherwise."""
        live = [found for pool in self._pools[request.model] if (found := self._machines.live.get(pool))]
        if not live:
            self._book.end(request, Ended.REFUSED)
            return
        call = Call(request.model, [request], request.rows, request.deadline, self)
        self._pick(request.model, live).submit(call)

    def answered(self, call: Call, compute_ms: float, rows: int) -> None:
        """Hears of a call."""
        self._book.answer(call.requests[0])

    def expired(self, call: Call) -> None:
        """Hears of a call."""
        self._book.end(call.requests[0], Ended.EXPIRED)

    def lost(self, call: Call) -> None:
        """Hears of a call."""
        if self._clock.now < call.deadline:
            self.arrive(call.requests[0])
        else:
            self._book.end(call.requests[0], Ended.LOST)

    def _pick(self, model: Model, live: list[list[Replica]]) -> Replica:
        """One of the live replicas, which are there by pool, the fastest pool first."""
        raise NotImplementedError

    def _freest(self, replicas: list[Replica]) -> Replica:
        fewest = min(replica.calls for replica in replicas)
        return self._random.choice([replica for replica in replicas if replica.calls == fewest])


class RoundRobin(Baseline):
    """The replicas of a model in turn."""

    def __init__(self, clock: Clock, fleet: Fleet, machines: Machines, book: Book, seed: int) -> None:
        super().__init__(clock, fleet, machines, book, seed)
        self._turns = dict.fromkeys(fleet.models, 0)

    def _pick(self, model: Model, live: list[list[Replica]]) -> Replica:
        replicas = [replica for pool in live for replica in pool]
        turn = self._turns[model]
        self._turns[model] = turn + 1
        return replicas[turn % len(replicas)]


class StaticPreference(Baseline):
    """The fastest pool by the tables that is alive, and there the replica with the fewest requests."""

    def _pick(self, model: Model, live: list[list[Replica]]) -> Replica:
        return self._freest(live[0])


class LeastLoaded(Baseline):
    """The replica with the fewest requests, of whatever kind."""

    def _pick(self, model: Model, live: list[list[Replica]]) -> Replica:
        return self._freest([replica for pool in live for replica in pool])


STATIC = "static preference"
BASELINES: Mapping[str, type[Baseline]] = {
    "round robin": RoundRobin,
    STATIC: StaticPreference,
    "least loaded": LeastLoaded,
}
