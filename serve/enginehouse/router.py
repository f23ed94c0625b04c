"""The router: the one inference path. Signature check, ranking, deadline, failover; HTTP and handles both come here."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from enginehouse import availability
from enginehouse.batching import Timing
from enginehouse.config import APP_NAME, AppConfig
from enginehouse.errors import (
    DeadlineExceeded,
    EnginehouseError,
    EngineUnavailable,
    InferenceFailed,
    InvalidInput,
    ModelNotFound,
    NoBackend,
    RequestTooLarge,
)
from enginehouse.policy import Choice, FastestLive, Policy, RequestHints
from enginehouse.served import Served, ServedModels
from enginehouse.tensors import Tensors

#: Pause before the ranking is tried again when every backend of a request has failed.
BACKOFF_S = 0.05
#: How often a call that is under way is checked for having lost its pool.
LOST_CHECK_S = 0.1


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

    `handles` maps the name of each pool to the handle of its deployment.
    """

    def __init__(
        self,
        config: AppConfig,
        handles: Mapping[str, DeploymentHandle],
        policy: Policy | None = None,
    ) -> None:
        self.models = ServedModels(config.pools)
        self._handles = handles
        self._default_deadline_s = config.router.default_deadline_s
        self._policy: Policy = policy or FastestLive()
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
        budget = self._default_deadline_s if deadline_s is None else deadline_s
        if not math.isfinite(budget):
            raise InvalidInput(f"deadline of {budget} s is not a time; leave it out for {self._default_deadline_s:g} s")
        if budget <= 0:
            raise DeadlineExceeded(f"deadline of {budget * 1e3:g} ms had passed on arrival")
        if backend is not None and backend not in self._handles:
            raise InvalidInput(f"backend {backend!r} is not known; the backends are {', '.join(self._handles)}")
        hints = RequestHints(rows, served.config.numerics, backend, served.manifest.size_of(inputs))
        return await self._until(time.monotonic() + budget, budget, served, inputs, hints)

    async def _until(
        self, deadline: float, budget: float, served: Served, inputs: Tensors, hints: RequestHints
    ) -> Answer:
        failures: list[str] = []
        attempts = 0
        while True:
            ranked = self._policy.rank(self.models.live(served), hints)
            if not ranked and not attempts:
                raise NoBackend(self._nothing_live(served, hints))
            for choice in ranked:
                attempts += 1
                try:
                    outputs, timing = await self._attempt(choice, served, inputs, hints.rows, deadline)
                except (EngineUnavailable, ModelNotFound, NoBackend) as error:
                    failures.append(f"{choice.backend.pool}: {error}")
                else:
                    return Answer(outputs, served, choice, timing, attempts)
            left = deadline - time.monotonic()
            if left <= BACKOFF_S:
                raise DeadlineExceeded(
                    f"no answer within {budget:g} s after {attempts} attempts ({'; '.join(failures[-3:])})"
                )
            await asyncio.sleep(BACKOFF_S)

    async def _attempt(
        self, choice: Choice, served: Served, inputs: Tensors, rows: int, deadline: float
    ) -> tuple[dict[str, np.ndarray], Timing]:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"{choice.backend.pool} was not tried: no time was left")
        handle = self._handles[choice.backend.pool].options(multiplexed_model_id=served.config.id)
        response = handle.infer.remote(inputs, rows, left)
        try:
            async with asyncio.timeout(left):
                outputs, timing = await _unless_lost(response, choice.backend.pool)
        except TimeoutError:
            response.cancel()
            raise DeadlineExceeded(
                f"{choice.backend.pool} did not answer within the {left:.3f} s that were left"
            ) from None
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:
            raise translate(error, choice.backend.pool) from None
        return outputs, timing

    def _nothing_live(self, served: Served, hints: RequestHints) -> str:
        parts = []
        for status in self.models.backends(served):
            if hints.pool not in (None, status.pool):
                continue
            live = f"live, but its {status.artifact} is not of the numerics class {hints.numerics!r}"
            parts.append(f"{status.pool}: {live if status.ready else status.reason or status.state}")
        return f"no live backend for {served.config.id!r} ({'; '.join(parts)})"


async def _unless_lost(response: DeploymentResponse, pool: str) -> Any:
    """The result of a call. Raises EngineUnavailable when its pool has lost its last replica.

    Serve does not fail such a call but keeps it until a new replica is up, which can take longer than its deadline.
    """
    result = asyncio.ensure_future(response)
    try:
        while not (await asyncio.wait({result}, timeout=LOST_CHECK_S))[0]:
            if not availability.replicas(APP_NAME, pool):
                response.cancel()
                raise EngineUnavailable(pool, "its last replica is gone")
        return result.result()
    finally:
        result.cancel()


def translate(error: Exception, pool: str) -> EnginehouseError:
    """Ray's errors as ours: lost replicas become EngineUnavailable, which is tried elsewhere; the rest is final."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, EnginehouseError):
        return cause
    if isinstance(cause, RayActorError | BackPressureError | DeploymentUnavailableError):
        return EngineUnavailable(pool, f"{type(cause).__name__}: the replica is gone or full")
    if isinstance(cause, RayError | RayServeException | ConnectionError) and not isinstance(cause, RayTaskError):
        return EngineUnavailable(pool, f"{type(cause).__name__}: {cause}")
    if isinstance(cause, AioRpcError):
        return _of_grpc(cause, pool)
    return InferenceFailed(f"{pool}: {type(cause).__name__}: {cause}")


def _of_grpc(error: AioRpcError, pool: str) -> EnginehouseError:
    """Serve passes most of what its gRPC transport raises on as it is, such as CANCELLED from a replica that stops."""
    told = f"{error.code().name}: {error.details()}"
    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
        remedy = "send fewer rows, or start every node with RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH=2147483647"
        return RequestTooLarge(f"{pool}: {told}; {remedy}")
    return EngineUnavailable(pool, told)
