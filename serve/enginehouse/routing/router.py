"""The router: picks the backend for each request, among those that are alive now, and wakes idle ones that are better.

Given a model version and checked inputs it ranks the backends by the policy and hands the request to `Failover`. Names,
admission and statistics are the data plane's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import Mapping, Sequence

from ray.serve.handle import DeploymentHandle

from enginehouse.contract.bounds import Values
from enginehouse.contract.config import LAST, USUAL, AppConfig
from enginehouse.contract.elements import NUMBER_BYTES
from enginehouse.contract.errors import (
    DeadlineExceeded,
    EnginehouseError,
    EngineUnavailable,
    InvalidInput,
    NoBackend,
    Overloaded,
)
from enginehouse.contract.tensors import Computed, Tensors
from enginehouse.pools.hosting import HostedModels
from enginehouse.routing import ray_private
from enginehouse.routing.answer import Answer, Explained, never, way_out
from enginehouse.routing.backends import Backend, Backends, Sender
from enginehouse.routing.failover import Failover
from enginehouse.routing.hints import NO_HINTS, Hints
from enginehouse.routing.policy import Choice, Demand, FastestInTime, Policy, told_ms
from enginehouse.routing.pool_call import PoolCall
from enginehouse.routing.timers import Timeout
from enginehouse.routing.versions import Versions
from enginehouse.routing.view import RESIDENT, ModelVersion, View
from enginehouse.routing.waking import Waker

#: Seconds between two checks whether an idle pool would be better for a model.
WAKE_PERIOD_S = 1.0


class Router:
    """Gets every request answered on the best live backend, or refused, within its deadline.

    `versions` knows which models are served, `view` which backends a model version has. `handles` maps the name of each
    pool to the handle of its deployment; `residents` are engines of this process.
    """

    def __init__(
        self,
        config: AppConfig,
        versions: Versions,
        view: View,
        handles: Mapping[str, DeploymentHandle],
        residents: HostedModels | None = None,
        policy: Policy | None = None,
        waker: Waker | None = None,
    ) -> None:
        self._config = config
        self._versions = versions
        self._view = view
        self._handles = handles
        self._residents = residents
        self._policy: Policy = policy or FastestInTime()
        self._backends = Backends(self._sender, config.router.num_replicas)
        self._waker = waker or Waker(handles)
        self._has_idle_pools = any(not pool.min_replicas for pool in config.pools.values())
        self._wake_at: dict[str, float] = {}
        for handle in self._handles.values():
            ray_private.watch(handle)

    def reaches(self, version: ModelVersion) -> bool:
        """Whether the version is warm here or on a connected replica."""
        return bool(self._view.live(version))

    def is_ready(self, version: ModelVersion) -> bool:
        """Whether a request of one row would be answered now: it is ranked as one, or would wait for an idle pool."""
        demand = self._demand(version, 1, None, NO_HINTS)
        choices = self.rank(version, demand, NO_HINTS.priority, fresh=True)
        if any(not choice.reason for choice in choices):
            # Those whose last calls failed are tried, but would hardly answer.
            return any(not choice.reason and not choice.backend.fails for choice in choices)
        return self.may_wait(version, choices, demand, is_new=True)

    async def infer(self, version: ModelVersion, inputs: Tensors, rows: int, hints: Hints) -> Answer:
        """Answer a request of `rows` rows, already checked against the signature, within its deadline.

        Inference is pure, so what was lost with its replica is repeated elsewhere until then. Raises
        EnginehouseError.
        """
        values = Values(inputs)
        if sum(array.nbytes for array in inputs.values()) > NUMBER_BYTES:
            bounds = [backend.inputs_only for backend in self._view.live(version) if backend.inputs_only]
            if bounds:
                # Looking at so many takes long, and numpy lets others compute meanwhile. What was seen is kept.
                await asyncio.to_thread(lambda: [values.beyond(only) for only in bounds])
        demand = self._demand(version, rows, version.manifest.size_of(inputs), hints, values)
        budget_s = demand.budget_ms / 1e3
        failover = Failover(self, version, inputs, demand, hints.priority, time.monotonic() + budget_s)
        try:
            with Timeout(budget_s):
                return await failover.answer()
        except TimeoutError:
            raise DeadlineExceeded(_unanswered(version, failover, budget_s)) from None

    def explain(self, version: ModelVersion, rows: int, size: int | None, hints: Hints) -> Explained:
        """How a request would be routed now: the backends in the order they would be tried, why not others."""
        choices = self.rank(version, self._demand(version, rows, size, hints), hints.priority, fresh=True)
        live = {choice.backend.pool for choice in choices}
        out = {status.pool: status.reason or status.state for status in self._view.backends(version)}
        return Explained(version, choices, {pool: reason for pool, reason in out.items() if pool not in live})

    def rank(self, version: ModelVersion, demand: Demand, priority: int, fresh: bool = False) -> Sequence[Choice]:
        """The live backends by the policy; see `failover.Ranking`. `fresh` looks anew at which are alive."""
        return self._policy.rank(self._backends.states(version, self._view.live(version, fresh), priority), demand)

    def backend(self, version: ModelVersion, choice: Choice) -> Backend:
        """See `failover.Ranking`."""
        return self._backends.get(version, choice.backend)

    def may_wait(self, version: ModelVersion, choices: Sequence[Choice], demand: Demand, is_new: bool) -> bool:
        """See `failover.Ranking`. A new request waits only for an idle or loading pool."""
        if is_new:
            if _some_are_late(choices):
                return False
            # One may have come up since the list was made that was ranked.
            return len(self._view.live(version, fresh=True)) > len(choices) or self._view.is_coming(version, demand)
        # Replicas that had it may be gone for good, with their nodes.
        return self._view.may_come(version, demand)

    def check_served(self, version: ModelVersion) -> None:
        """See `failover.Ranking`. Another version of the model is no reason to give up: this one is still loaded."""
        with contextlib.suppress(NoBackend):
            self._versions.get(version.config.name)

    def wake_better(self, version: ModelVersion, demand: Demand, best: Sequence[Choice]) -> None:
        """See `failover.Ranking`. Looks once in `WAKE_PERIOD_S` for each model, and whenever it has no backend."""
        now = time.monotonic()
        if not self._has_idle_pools or (best and now < self._wake_at.get(version.key, 0.0)):
            return
        self._wake_at[version.key] = now + WAKE_PERIOD_S
        # Without the pace, which idle ones lack: that a live one is slow just now is no reason to start a pool.
        live = [choice.backend._replace(pace={}) for choice in best]
        ranked = self._policy.rank([*live, *self._view.idle(version)], demand)
        usable = [choice.backend for choice in ranked if not choice.reason]
        # One that was never measured comes last, and is measured when it comes up.
        unknown = [backend for backend in usable if backend.table is None and backend not in live]
        # When nothing lives and the best one is slow to come up, the others are woken as well.
        others = [] if live else [backend for backend in usable[1:] if self._waker.is_slow(usable[0].pool)]
        for backend in [*usable[:1], *others, *unknown]:
            if backend not in live:
                self._waker.wake(backend.pool)
                if not others:
                    return

    def refusal(self, version: ModelVersion, choices: Sequence[Choice], demand: Demand) -> EnginehouseError:
        """See `failover.Ranking`: DeadlineExceeded or Overloaded when all of them would be late, else NoBackend.

        InvalidInput when no backend could ever answer, because of values in the request or its hints.
        """
        late = [choice for choice in choices if choice.predicted_ms < math.inf]
        if not late:
            refused = never(version, self._view, [choice.backend for choice in choices], demand)
            if refused is not None:
                return refused
            helps = "" if not choices or self._view.may_come(version, demand) else way_out(version, self._view, demand)
            return NoBackend("; ".join(filter(None, (self._nothing_live(version, choices), helps))))
        # What is behind another one would be no help: that one's queue holds up both.
        ahead = [choice for choice in late if not choice.behind]
        soonest = min(ahead or late, key=lambda choice: choice.predicted_ms)
        # A refused request is demand all the same: more replicas might have answered it.
        self.backend(version, soonest).count_demand(demand.rows, demand.size)
        reasons = "; ".join(f"{choice.backend.pool} {choice.reason}" for choice in late)
        stated = "" if demand.stated else "default "
        text = f"the {stated}deadline of {told_ms(demand.budget_ms)} would pass: {reasons}"
        if soonest.predicted_ms - soonest.wait_ms > demand.budget_ms:
            return DeadlineExceeded(text)
        return Overloaded(text, max(0.001, round((soonest.predicted_ms - demand.budget_ms) / 1e3, 3)))

    def _demand(
        self, version: ModelVersion, rows: int, size: int | None, hints: Hints, values: Values | None = None
    ) -> Demand:
        deadline_s, pool = hints.deadline_s, hints.backend
        budget_s = self._config.router.default_deadline_s if deadline_s is None else deadline_s
        if budget_s <= 0:
            raise DeadlineExceeded(f"deadline of {budget_s * 1e3:g} ms had passed on arrival")
        if pool is not None and pool not in self._handles and not pool.startswith(RESIDENT):
            raise InvalidInput(f"backend {pool!r} is not known; the backends are {', '.join(self._handles)}")
        return Demand(
            rows,
            version.numerics,
            pool,
            size,
            hints.min_precision,
            budget_s * 1e3,
            deadline_s is not None,
            values=values,
        )

    def _sender(self, backend: Backend) -> Sender:
        """What sends requests to `backend`: to this process's own engine, or to the replicas of a pool."""
        pool, version = backend.state.pool, backend.version
        if backend.state.resident:
            return functools.partial(self._call_resident, pool, version)
        return PoolCall(pool, version.key, backend.delay_ms, backend.take_demand_ms)

    async def _call_resident(
        self,
        pool: str,
        version: ModelVersion,
        requests: Sequence[Tensors],
        rows: int,
        budget_s: float,
        isolated: bool = False,
        priority: int = USUAL,
    ) -> Computed:
        if isolated:
            raise EngineUnavailable(pool, "a router computes nothing that may have crashed a replica")
        loaded = self._residents.models.get(version.key) if self._residents else None
        if loaded is None:
            raise EngineUnavailable(pool, f"{version.config.id} is no longer loaded")
        return await (loaded.infer_last if priority == LAST else loaded.infer)(requests, rows, budget_s)

    def _nothing_live(self, version: ModelVersion, choices: Sequence[Choice]) -> str:
        reasons = {choice.backend.pool: choice.reason for choice in choices}
        parts = [
            f"{status.pool}: {reasons.get(status.pool) or status.reason or status.state}"
            for status in self._view.backends(version)
        ]
        return f"no live backend for {version.config.id!r} ({'; '.join(parts)})"


def _unanswered(version: ModelVersion, failover: Failover, budget_s: float) -> str:
    """What became of a request until its deadline: who was asked, and what came of it."""
    attempts, failures = failover.attempts, failover.failures
    where = f" in {', '.join(dict.fromkeys(failover.asked))}" if failover.asked else ""
    told = f"{attempts} attempt{'' if attempts == 1 else 's'}{where}" if attempts else "waiting for a backend"
    reasons = f" ({'; '.join(failures[-3:])})" if failures else ""
    return f"{version.config.id}: no answer within {budget_s:g} s after {told}{reasons}"


def _some_are_late(choices: Sequence[Choice]) -> bool:
    return any(choice.reason and choice.predicted_ms < math.inf for choice in choices)
