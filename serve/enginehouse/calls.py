"""Calls to one pool over its Ray Serve handle: bounded in time, given up on when the pool is lost, errors as ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from enginehouse import availability
from enginehouse.batching import Answer
from enginehouse.config import APP_NAME
from enginehouse.errors import (
    DeadlineExceeded,
    EnginehouseError,
    EngineUnavailable,
    InferenceFailed,
    RequestTooLarge,
)
from enginehouse.tensors import Tensors

#: How often a call that is under way is checked for having lost its pool.
LOST_CHECK_S = 0.1


class PoolCall:
    """What sends requests to `pool` for one model; see `Pool.infer`.

    Raises EngineUnavailable for what was lost with a replica, DeadlineExceeded, InferenceFailed or RequestTooLarge.
    """

    def __init__(self, handle: DeploymentHandle, pool: str, model_id: str) -> None:
        # Options make a new handle, so they are not set anew for every call.
        self._infer = handle.options(method_name="infer", multiplexed_model_id=model_id)
        self._pool = pool

    async def __call__(self, requests: Sequence[Tensors], rows: int, budget_s: float) -> Answer:
        if budget_s <= 0:
            raise DeadlineExceeded(f"{self._pool} was not tried: no time was left")
        response = self._infer.remote(requests, rows, budget_s)
        try:
            async with asyncio.timeout(budget_s):
                answer: Answer = await _unless_lost(response, self._pool)
        except TimeoutError:
            response.cancel()
            raise DeadlineExceeded(f"{self._pool} did not answer within the {budget_s:.3f} s that were left") from None
        except asyncio.CancelledError:
            response.cancel()
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not ours: the replica was stopped under the call.
            raise EngineUnavailable(self._pool, "the call was cancelled there") from None
        except Exception as error:
            raise translate(error, self._pool) from None
        return answer


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
