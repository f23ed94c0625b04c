"""The router: the one inference path. Signature check, ranking, deadline, failover; HTTP and handles both come here."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from enginehouse.contract.config import AppConfig
from enginehouse.contract.errors import (
    DeadlineExceeded,
    EnginehouseError,
    EngineUnavailable,
    InferenceFailed,
    InvalidInput,
    ModelNotFound,
    NoBackend,
    Overloaded,
    ReplicaLost,
)
from enginehouse.contract.tensors import Answer as Computed
from enginehouse.contract.tensors import Tensors, nbytes
from enginehouse.pools.hosting import HostedModels
from enginehouse.routing import ray_private
from enginehouse.routing.admission import Admission, Admitted
from enginehouse.routing.answer import Answer, Explained
from enginehouse.routing.backends import Backend, Backends, Sender, attempt_s
from enginehouse.routing.coalescing import Recalled
from enginehouse.routing.hints import NO_HINTS, Hints
from enginehouse.routing.policy import Choice, Demand, FastestInTime, Policy
from enginehouse.routing.pool_call import PoolCall
from enginehouse.routing.remote_versions import Models
from enginehouse.routing.telemetry import RequestMetrics
from enginehouse.routing.view import RESIDENT, Reports, Served
from enginehouse.routing.waking import Waker
from enginehouse.transport.router_end import ALONE

#: Pause before the ranking is tried again when every backend of a request has failed.
BACKOFF_S = 0.05
#: How often it is looked whether a pool that rests would be better for a model.
WAKE_PERIOD_S = 1.0
#: Replicas that are lost within this time of each other may have been lost for one reason, such as their node.
ONE_EVENT_S = 0.25


class Router:
    """Gets every request answered on the best live backend, or refused, within its deadline.

    `models` says which version answers, `reports` on which backends. `handles` maps the name of each pool to the handle
    of its deployment; `residents` are engines of this process.
    """

    def __init__(
        self,
        config: AppConfig,
        models: Models,
        reports: Reports,
        handles: Mapping[str, DeploymentHandle],
        residents: HostedModels | None = None,
        policy: Policy | None = None,
    ) -> None:
        self._residents = residents
        self._handles = handles
        self._config = config
        self._metrics = RequestMetrics()
        self._policy: Policy = policy or FastestInTime()
        self._reports = reports
        self.models = models
        self._backends = Backends(self._sender, config.router.num_replicas)
        self.admission = Admission(config.router.max_ongoing_requests, config.router.max_ongoing_bytes)
        self._waker = Waker(handles)
        self._may_rest = any(not pool.min_replicas for pool in config.pools.values())
        self._wake_at: dict[str, float] = {}
        for handle in self._handles.values():
            ray_private.watch(handle)

    def reaches(self, model: str, version: str | None = None) -> bool:
        """Whether this process is connected to a replica that has the model."""
        try:
            return bool(self._reports.live(self.models.get(model, version)))
        except (NoBackend, ModelNotFound):
            return False

    def is_ready(self, model: str, version: str | None = None) -> bool:
        """Whether a request for `model` would find a backend now, or wake one. Raises ModelNotFound."""
        try:
            served = self.models.get(model, version)
            return bool(self._reports.live(served) or self._reports.resting(served))
        except NoBackend:
            return False

    async def infer(self, model: str, inputs: Tensors, hints: Hints = NO_HINTS, version: str | None = None) -> Answer:
        """Answer one request on the best live backend, trying the next one when a backend fails.

        Inference is pure, so an attempt that was lost with its replica is repeated elsewhere until the deadline has
        passed. Raises RequestError, CapacityError or InferenceFailed.
        """
        served = self.models.get(model, version)
        rows = served.signature.check(inputs)
        with Admitted(self.admission, model, hints.priority) as request:
            request.take(nbytes(inputs))
            return await self.answer(served, inputs, rows, hints)

    async def answer(self, served: Served, inputs: Tensors, rows: int, hints: Hints) -> Answer:
        """As `infer`, for an admitted request of so many rows that was checked against the signature of `served`."""
        demand = self._demand(served, rows, served.manifest.size_of(inputs), hints)
        budget = demand.budget_ms / 1e3
        failures: list[str] = []
        began = time.monotonic()
        outcome, by = "ok", ""
        try:
            async with asyncio.timeout(budget):
                answer = await self._until(began + budget, served, inputs, demand, hints.priority, failures)
            by = answer.choice.backend.pool
            return answer
        except TimeoutError:
            outcome = DeadlineExceeded.__name__
            told = f" ({'; '.join(failures[-3:])})" if failures else ""
            raise DeadlineExceeded(f"no answer within {budget:g} s after {len(failures) + 1} attempts{told}") from None
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            self._metrics.record(served.config.name, served.config.version, by, outcome, time.monotonic() - began)

    def explain(self, model: str, rows: int, size: int | None, hints: Hints, version: str | None = None) -> Explained:
        """How a request would be routed now: the backends in the order in which they would be tried, and why not.

        Raises what `infer` raises before it asks a backend.
        """
        served = self.models.get(model, version)
        choices = self._rank(served, self._demand(served, rows, size, hints), hints.priority, fresh=True)
        live = {choice.backend.pool for choice in choices}
        out = {status.pool: status.reason or status.state for status in self._reports.backends(served)}
        return Explained(served, choices, {pool: reason for pool, reason in out.items() if pool not in live})

    def _demand(self, served: Served, rows: int, size: int | None, hints: Hints) -> Demand:
        deadline_s, backend = hints.deadline_s, hints.backend
        budget = self._config.router.default_deadline_s if deadline_s is None else deadline_s
        if budget <= 0:
            raise DeadlineExceeded(f"deadline of {budget * 1e3:g} ms had passed on arrival")
        if backend is not None and backend not in self._handles and not backend.startswith(RESIDENT):
            raise InvalidInput(f"backend {backend!r} is not known; the backends are {', '.join(self._handles)}")
        return Demand(
            rows,
            served.config.numerics,
            backend,
            size,
            hints.min_precision,
            budget * 1e3,
            deadline_s is not None,
        )

    def _rank(self, served: Served, demand: Demand, priority: int, fresh: bool = False) -> Sequence[Choice]:
        return self._policy.rank(self._backends.states(served, self._reports.live(served, fresh), priority), demand)

    async def _until(
        self, deadline: float, served: Served, inputs: Tensors, demand: Demand, priority: int, failures: list[str]
    ) -> Answer:
        attempts = 0
        lost_at = math.inf
        failed_in = ""
        is_new, is_counted = True, False
        while True:
            choices = self._rank(served, demand, priority, fresh=not is_new)
            ranked = [choice for choice in choices if not choice.reason]
            if is_new:
                is_new = False
                self._wake(served, demand, ranked[:1])
                if not ranked and (self._is_late(choices) or not self._reports.is_coming(served)):
                    raise self._refusal(served, choices, demand)
            elif not ranked and not self._reports.may_come(served, demand.pool):
                # Those that had it are gone with their nodes, and no others are there to wait for.
                raise self._refusal(served, choices, demand)
            # Not the error itself: with its traceback it would keep this request's inputs.
            refused: tuple[Any, ...] | None = None
            for place, choice in enumerate(ranked, 1):
                attempts += 1
                backend = self._backends.get(served, choice.backend)
                if not is_counted:
                    is_counted = True
                    backend.ask(demand.rows, demand.size)
                began = time.monotonic()
                has_others = len(ranked) > 1 or choice.backend.replicas > 1
                # Only while somebody else may have an answer is one given up before the deadline.
                until = min(deadline, began + attempt_s(choice.predicted_ms)) if has_others else deadline
                try:
                    # What was lost with a replica may have killed it: from then on it travels alone.
                    if lost_at < math.inf:
                        outputs, timing = await backend.infer_alone(inputs, demand.rows, until)
                    else:
                        outputs, timing = await backend.infer(inputs, demand.rows, until, priority)
                except Recalled:
                    # Nobody was asked.
                    attempts -= 1
                    break
                except ReplicaLost as error:
                    failures.append(str(error))
                    if error.stage == ALONE and time.monotonic() - lost_at > ONE_EVENT_S:
                        raise _poisonous(error) from None
                    lost_at = min(lost_at, time.monotonic())
                except Overloaded as error:
                    failures.append(f"{choice.backend.pool}: {error}")
                    refused = error.args
                except InferenceFailed as error:
                    # A backend that fails others too may be at fault. What fails in two of them is so itself.
                    if failed_in or place == len(ranked) or not backend.fails_others:
                        raise
                    failed_in = choice.backend.pool
                    failures.append(f"{failed_in}: {error}")
                except (EngineUnavailable, ModelNotFound, NoBackend) as error:
                    failures.append(f"{choice.backend.pool}: {error}")
                except DeadlineExceeded as error:
                    if until == deadline:
                        raise
                    failures.append(f"{choice.backend.pool}: {error}")
                else:
                    return Answer(outputs, served, choice, timing, attempts)
            else:
                if refused is not None and demand.stated:
                    # Whoever states a deadline hears at once that it will not be met.
                    raise Overloaded(*refused)
                await asyncio.sleep(BACKOFF_S)
            # It was taken on; whether it is late by now will show.
            demand = demand._replace(budget_ms=math.inf)

    def _sender(self, backend: Backend) -> Sender:
        pool, model_id = backend.state.pool, backend.served.config.id
        if backend.state.resident:
            return functools.partial(self._call_resident, pool, model_id)
        return PoolCall(pool, model_id, backend.call_ms, backend.take_demand_ms)

    async def _call_resident(
        self,
        pool: str,
        model_id: str,
        requests: Sequence[Tensors],
        rows: int,
        budget_s: float,
        alone: bool = False,
    ) -> Computed:
        loaded = self._residents.models.get(model_id) if self._residents else None
        if loaded is None:
            raise EngineUnavailable(pool, f"{model_id} is no longer loaded")
        return await loaded.infer(requests, rows, budget_s)

    def _wake(self, served: Served, demand: Demand, best: Sequence[Choice]) -> None:
        """Wake what rests and would be better than the best that lives; looked at once a second for each model."""
        now = time.monotonic()
        if not self._may_rest or (best and now < self._wake_at.get(served.config.id, 0.0)):
            return
        self._wake_at[served.config.id] = now + WAKE_PERIOD_S
        # By the tables alone, as what rests is known: the pace of the hour is no reason to start a pool.
        live = [choice.backend._replace(pace={}) for choice in best]
        resting = self._reports.resting(served)
        ranked = self._policy.rank([*live, *resting], demand)
        usable = [choice.backend for choice in ranked if not choice.reason]
        # One that was never measured comes last, and is measured when it comes up.
        unknown = [backend for backend in usable if backend.table is None and backend not in live]
        # Nor is one waited for alone that was called and does not come up.
        called = [] if live else [backend for backend in usable[1:] if self._waker.is_slow(usable[0].pool)]
        for backend in [*usable[:1], *called, *unknown]:
            if backend not in live:
                self._waker.wake(backend.pool)
                if not called:
                    return

    @staticmethod
    def _is_late(choices: Sequence[Choice]) -> bool:
        return any(choice.reason and choice.predicted_ms < math.inf for choice in choices)

    def _refusal(self, served: Served, choices: Sequence[Choice], demand: Demand) -> EnginehouseError:
        late = [choice for choice in choices if choice.predicted_ms < math.inf]
        if not late:
            return NoBackend(self._nothing_live(served, choices))
        soonest = min(late, key=lambda choice: choice.predicted_ms)
        # Refused is not unwanted: more replicas would have answered it.
        self._backends.get(served, soonest.backend).ask(demand.rows, demand.size)
        told = "; ".join(f"{choice.backend.pool} {choice.reason}" for choice in late)
        what = f"the deadline of {demand.budget_ms:.4g} ms would pass: {told}"
        if soonest.predicted_ms - soonest.wait_ms > demand.budget_ms:
            return DeadlineExceeded(what)
        return Overloaded(what, max(0.001, round((soonest.predicted_ms - demand.budget_ms) / 1e3, 3)))

    def _nothing_live(self, served: Served, choices: Sequence[Choice]) -> str:
        reasons = {choice.backend.pool: choice.reason for choice in choices}
        parts = [
            f"{status.pool}: {reasons.get(status.pool) or status.reason or status.state}"
            for status in self._reports.backends(served)
        ]
        return f"no live backend for {served.config.id!r} ({'; '.join(parts)})"


def _poisonous(error: ReplicaLost) -> InferenceFailed:
    return InferenceFailed(f"two replicas were lost while they computed this request, the second time alone: {error}")
