"""enginehouse's router in simulated time: `FastestInTime` over the state that a router has.

Each router knows its own calls, and of others' only what replicas tell with an answer. Left out are sizes, priorities,
admission, residents, requests suspected of a crash, and the time that routers take. The rest is as in
`enginehouse.routing` and `transport.router_end`, whose constants it uses: states are 5 ms old at most, a call is
waited for until its deadline, and what takes longer teaches `Pace` nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from benchmarks.replay.backend import Attempt, Backend
from benchmarks.replay.book import Book, Ended, Request
from benchmarks.replay.channel import Channel
from benchmarks.replay.clock import Clock
from benchmarks.replay.fleet import ENGINES, Fleet, Model
from benchmarks.replay.machines import Machines, Pool, Replica
from enginehouse.contract.manifest import ACCELERATOR_OF
from enginehouse.routing.backends import attempt_s
from enginehouse.routing.failover import BACKOFF_S
from enginehouse.routing.pace import Contention, Pace
from enginehouse.routing.policy import BackendState, Choice, Demand, FastestInTime, Policy
from enginehouse.routing.view import LIVE_FOR_S

NAME = "enginehouse"
FASTEST_KIND = "enginehouse, fastest kind"


class OfFastestKind:
    """The policy where only the kind of hardware that the tables call fastest may be used, like static preference."""

    def rank(self, backends: Sequence[BackendState], demand: Demand) -> Sequence[Choice]:
        """As `FastestInTime`, of the kind that is fastest and alive."""
        fastest = min(backends, key=_row_ms, default=None)
        kind = ACCELERATOR_OF[fastest.engine] if fastest else ""
        return FastestInTime().rank([known for known in backends if ACCELERATOR_OF[known.engine] == kind], demand)


def _row_ms(backend: BackendState) -> float:
    return backend.table.predict_ms(backend.batch_rows) / backend.batch_rows if backend.table else math.inf


class PolicyRouter:
    """Sends each request to the backends that `policy` ranks, or refuses it when none may be tried."""

    def __init__(
        self, clock: Clock, fleet: Fleet, machines: Machines, book: Book, seed: int, policy: Policy, is_alone: bool
    ) -> None:
        self._clock = clock
        self._machines = machines
        self._book = book
        self._policy = policy
        # Calls under way for each replica (`enginehouse.routing.backends`): alone, a second one hides the way.
        self._calls = 2 if is_alone else 1
        self._random = Random(seed)
        self._channels: dict[Replica, Channel] = {}
        self._pools: dict[Pool, tuple[list[Channel], frozenset[str]]] = {}
        self._changes = -1
        self._backends: dict[tuple[str, Model], Backend] = {}
        self._contentions: dict[tuple[str, int], Contention] = {}
        self._of: dict[Model, list[Backend]] = {model: self._made(model) for model in fleet.models}
        self._known: dict[Model, tuple[float, list[tuple[BackendState, Backend]]]] = {}

    def arrive(self, request: Request) -> None:
        """Answer a request or have it end otherwise."""
        attempt = Attempt(request)
        self._rank(attempt, (request.deadline - self._clock.now) * 1e3, fresh=False)
        if attempt.choices:
            self._try_next(attempt)
        else:
            self._book.end(request, Ended.REFUSED)

    def answered(self, attempt: Attempt) -> None:
        """Hears of an attempt."""
        self._book.answer(attempt.request)

    def expired(self, attempt: Attempt) -> None:
        """Hears of an attempt."""
        self._book.end(attempt.request, Ended.EXPIRED)

    def failed(self, attempt: Attempt) -> None:
        """Hears of an attempt."""
        if self._clock.now >= attempt.request.deadline:
            self._book.end(attempt.request, Ended.LOST)
        else:
            self._try_next(attempt)

    def _made(self, model: Model) -> list[Backend]:
        made = []
        for accelerator, engines in ENGINES.items():
            pace, contention = Pace(), self._contentions.setdefault((accelerator, model.cell), Contention())
            for engine in engines:
                if engine in model.tables:
                    pool, calls = (engine, model.cell), self._calls
                    backend = Backend(self._clock, model, pool, pace, contention, self._freest, self, calls)
                    self._backends[backend.state.pool, model] = backend
                    made.append(backend)
        return made

    def _rank(self, attempt: Attempt, budget_ms: float, fresh: bool) -> None:
        demand = Demand(attempt.request.rows, budget_ms=budget_ms, stated=True)
        ranked = self._policy.rank(self._states(attempt.request.model, fresh), demand)
        attempt.choices = [choice for choice in ranked if not choice.reason]
        attempt.tried = 0

    def _try_next(self, attempt: Attempt) -> None:
        request, now = attempt.request, self._clock.now
        if attempt.tried == len(attempt.choices) and attempt.refused:
            # Whoever states a deadline hears at once that it will not be met.
            self._book.end(request, Ended.REFUSED)
            return
        if attempt.tried == len(attempt.choices):
            self._clock.at(now + BACKOFF_S, lambda: self._try_again(attempt))
            return
        choice = attempt.choices[attempt.tried]
        attempt.tried += 1
        has_others = len(attempt.choices) > 1 or choice.backend.replicas > 1
        given_s = attempt_s(choice.predicted_ms) if has_others else request.deadline - now
        attempt.until = min(request.deadline, now + given_s)
        self._backends[choice.backend.pool, request.model].infer(attempt)

    def _try_again(self, attempt: Attempt) -> None:
        if self._clock.now >= attempt.request.deadline:
            self._book.end(attempt.request, Ended.LOST)
            return
        # It was taken on; whether it is late by now will show.
        self._rank(attempt, math.inf, fresh=True)
        self._try_next(attempt)

    def _states(self, model: Model, fresh: bool) -> list[BackendState]:
        now = self._clock.now
        until, known = self._known.get(model, (-1.0, []))
        if fresh or now > until:
            known = []
            for backend in self._of[model]:
                channels, nodes = self._pool(backend.pool)
                if channels:
                    wait_ms = min(channel.wait_ms(now, model) for channel in channels)
                    known.append((backend.update(len(channels), nodes, wait_ms), backend))
            self._known[model] = now + LIVE_FOR_S, known
        # Who waits is known at any time.
        waiting = [(state, backend.waiting_rows()) for state, backend in known]
        return [state._replace(queued_rows=rows) if rows else state for state, rows in waiting]

    def _pool(self, pool: Pool) -> tuple[list[Channel], frozenset[str]]:
        if self._changes != self._machines.changes:
            self._changes = self._machines.changes
            self._pools.clear()
        found = self._pools.get(pool)
        if found is None:
            replicas = self._machines.live.get(pool, [])
            channels = [self._channel(replica) for replica in replicas]
            found = self._pools[pool] = channels, frozenset(replica.machine.node.name for replica in replicas)
        return found

    def _channel(self, replica: Replica) -> Channel:
        channel = self._channels.get(replica)
        if channel is None:
            channel = self._channels[replica] = Channel(replica)
        return channel

    def _freest(self, pool: Pool, model: Model) -> list[Channel]:
        channels, _ = self._pool(pool)
        now = self._clock.now
        return sorted(
            channels,
            key=lambda channel: (channel.wait_ms(now, model), channel.load_ms(now), self._random.random()),
        )


class Routers:
    """So many routers behind a load balancer, which sends each request to any of them."""

    def __init__(
        self,
        routers: int,
        clock: Clock,
        fleet: Fleet,
        machines: Machines,
        book: Book,
        seed: int,
        policy: Policy | None = None,
    ) -> None:
        self._random = Random(seed)
        policy = policy or FastestInTime()
        self._routers = [
            PolicyRouter(clock, fleet, machines, book, seed + number, policy, routers == 1) for number in range(routers)
        ]

    def arrive(self, request: Request) -> None:
        """Answer a request or have it end otherwise."""
        self._random.choice(self._routers).arrive(request)
