"""The router: the one inference path. Signature check, ranking, deadline, failover; HTTP and handles both come here."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.serve.handle import DeploymentHandle

from enginehouse import availability
from enginehouse.admission import Admission, Admitted
from enginehouse.calls import PoolCall
from enginehouse.coalescing import HOLD_S, Coalescer
from enginehouse.config import AppConfig
from enginehouse.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InvalidInput,
    ModelNotFound,
    NoBackend,
)
from enginehouse.hosting import HostedModels
from enginehouse.metrics import RequestMetrics
from enginehouse.policy import HOP_MS, BackendState, Choice, FastestLive, Policy, RequestHints
from enginehouse.served import RESIDENT, Served, ServedModels
from enginehouse.tensors import Answer as Computed
from enginehouse.tensors import Tensors, Timing, nbytes

#: Pause before the ranking is tried again when every backend of a request has failed.
BACKOFF_S = 0.05
#: Bytes of inputs in one call to a pool, a single request excepted: a call of this size blocks the event loop of both
#: sides for some 10 ms.
MAX_CALL_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """Outputs of one request, and who made them."""

    outputs: dict[str, np.ndarray]
    served: Served
    choice: Choice
    timing: Timing
    attempts: int

    def origin(self) -> dict[str, Any]:
        """Who answered and how long it took, as plain data; the response headers carry the same."""
        return {
            "version": self.served.config.version,
            "backend": self.choice.backend.pool,
            "precision": self.choice.backend.precision,
            "queue_ms": round(self.timing.queue_ms, 3),
            "compute_ms": round(self.timing.compute_ms, 3),
            "attempts": self.attempts,
        }


class Router:
    """Gets every request answered on the best live backend, or refused, within its deadline.

    `handles` maps the name of each pool to the handle of its deployment; `residents` are engines of this process.
    """

    def __init__(
        self,
        config: AppConfig,
        handles: Mapping[str, DeploymentHandle],
        residents: HostedModels | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.models = ServedModels(config.pools, residents.reports if residents else {})
        self._residents = residents
        self._handles = handles
        self._config = config.router
        self._metrics = RequestMetrics()
        self._policy: Policy = policy or FastestLive()
        self._coalescers: dict[tuple[str, str], tuple[Served, Coalescer]] = {}
        self.admission = Admission(config.router.max_ongoing_requests, config.router.max_ongoing_bytes)
        for handle in self._handles.values():
            availability.watch(handle)

    def is_ready(self, model: str, version: str | None = None) -> bool:
        """Whether a request for `model` would find a live backend now. Raises ModelNotFound."""
        try:
            return bool(self.models.live(self.models.get(model, version)))
        except NoBackend:
            return False

    async def infer(
        self,
        model: str,
        inputs: Tensors,
        *,
        version: str | None = None,
        deadline_s: float | None = None,
        backend: str | None = None,
    ) -> Answer:
        """Answer one request on the best live backend, trying the next one when a backend fails.

        Inference is pure, so an attempt that was lost with its replica is repeated elsewhere until `deadline_s` seconds
        have passed. Raises RequestError, CapacityError or InferenceFailed.
        """
        served = self.models.get(model, version)
        rows = served.signature.check(inputs)
        with Admitted(self.admission) as request:
            request.take(nbytes(inputs))
            return await self.answer(served, inputs, rows, deadline_s, backend)

    async def answer(
        self, served: Served, inputs: Tensors, rows: int, deadline_s: float | None, backend: str | None
    ) -> Answer:
        """As `infer`, for an admitted request of so many rows that was checked against the signature of `served`."""
        default = self._config.default_deadline_s
        budget = default if deadline_s is None else deadline_s
        if not math.isfinite(budget):
            raise InvalidInput(f"deadline of {budget} s is not a time; leave it out for {default:g} s")
        if budget <= 0:
            raise DeadlineExceeded(f"deadline of {budget * 1e3:g} ms had passed on arrival")
        if backend is not None and backend not in self._handles and not backend.startswith(RESIDENT):
            raise InvalidInput(f"backend {backend!r} is not known; the backends are {', '.join(self._handles)}")
        hints = RequestHints(rows, served.config.numerics, backend, served.manifest.size_of(inputs))
        failures: list[str] = []
        began = time.monotonic()
        outcome, by = "ok", ""
        try:
            async with asyncio.timeout(budget):
                answer = await self._until(began + budget, served, inputs, hints, failures)
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

    async def _until(
        self, deadline: float, served: Served, inputs: Tensors, hints: RequestHints, failures: list[str]
    ) -> Answer:
        attempts = 0
        while True:
            ranked = self._policy.rank(self.models.live(served, fresh=attempts > 0), hints)
            if not ranked and not attempts:
                raise NoBackend(self._nothing_live(served, hints))
            for choice in ranked:
                attempts += 1
                # What was lost with a replica may have killed it: from then on it travels alone.
                coalescer = self._coalescer(choice, served) if attempts == 1 else self._new_coalescer(choice, served)
                try:
                    outputs, timing = await coalescer.infer(inputs, hints.rows, deadline)
                except (EngineUnavailable, ModelNotFound, NoBackend) as error:
                    failures.append(f"{choice.backend.pool}: {error}")
                else:
                    return Answer(outputs, served, choice, timing, attempts)
            await asyncio.sleep(BACKOFF_S)

    def _coalescer(self, choice: Choice, served: Served) -> Coalescer:
        backend = choice.backend
        key = (backend.pool, served.config.id)
        made_for, coalescer = self._coalescers.get(key, (None, None))
        if coalescer is None:
            # Those of versions that are no longer served go when a new one comes.
            self._coalescers = {k: known for k, known in self._coalescers.items() if not known[1].is_idle}
            coalescer = self._new_coalescer(choice, served)
        if made_for is not served:
            coalescer.max_rows = _most_rows(served, backend)
            self._coalescers[key] = served, coalescer
        full_ms = backend.table.predict_ms(coalescer.max_rows) if backend.table else 0.0
        coalescer.slots = self._slots(choice, served, coalescer.max_rows, full_ms)
        coalescer.hold_s = HOLD_S + full_ms / 1e3
        return coalescer

    def _slots(self, choice: Choice, served: Served, max_rows: int, full_ms: float) -> int:
        """How many calls to a backend are worth having under way: more are smaller ones, and calls are the cost.

        `full_ms` is what a call of `max_rows` takes to compute.
        """
        if served.config.batch_wait_ms:
            # Batches are to be waited for where routers meet, so nothing is held back here.
            return choice.backend.replicas * max_rows
        if full_ms <= HOP_MS:
            # The way takes longer than the computing: one replica keeps up with whatever a router can send.
            return 1
        # One at each replica: other routers' calls hide the way behind the computing. Alone, one needs a second call.
        is_alone = choice.backend.resident or self._config.num_replicas == 1
        return choice.backend.replicas * (2 if is_alone else 1)

    def _new_coalescer(self, choice: Choice, served: Served) -> Coalescer:
        pool = choice.backend.pool
        model_id = served.config.id
        max_rows = _most_rows(served, choice.backend)
        if choice.backend.resident:
            return Coalescer(functools.partial(self._call_resident, model_id), max_rows, MAX_CALL_BYTES)
        return Coalescer(PoolCall(pool, model_id), max_rows, MAX_CALL_BYTES)

    async def _call_resident(self, model_id: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        loaded = self._residents.models.get(model_id) if self._residents else None
        if loaded is None:
            raise EngineUnavailable(RESIDENT, f"{model_id} is no longer loaded")
        return await loaded.infer(requests, rows, budget_s)

    def _nothing_live(self, served: Served, hints: RequestHints) -> str:
        parts = []
        for status in self.models.backends(served):
            if hints.pool not in (None, status.pool):
                continue
            live = f"live, but its {status.artifact} is not of the numerics class {hints.numerics!r}"
            parts.append(f"{status.pool}: {live if status.ready else status.reason or status.state}")
        return f"no live backend for {served.config.id!r} ({'; '.join(parts)})"


def _most_rows(served: Served, backend: BackendState) -> int:
    """Rows that travel together at most: as many as one batch of the engine is worth having."""
    if not served.signature.batched:
        return 1
    return served.config.max_batch_size or served.manifest.efficient_rows(backend.engine, backend.artifact)
