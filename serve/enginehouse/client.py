"""Client: inference from another Ray job, with this package's own errors."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from enginehouse import deploy
from enginehouse.errors import DeadlineExceeded, EnginehouseError, EngineUnavailable, InferenceFailed, RequestTooLarge
from enginehouse.tensors import Tensors

#: Added to a request's deadline before the client itself gives up: the router answers for the deadline, this only
#: bounds the wait for a router that has gone.
GRACE_S = 5.0


class Client:
    """Calls the Router of the cluster that this process is connected to.

    A job without this package uses `serve.get_app_handle("enginehouse").infer` instead, which raises builtins.
    """

    def __init__(self) -> None:
        self._handle: DeploymentHandle = deploy.router_handle()

    def infer(
        self,
        model: str,
        inputs: Tensors,
        *,
        version: str | None = None,
        deadline_s: float = 30.0,
        backend: str | None = None,
    ) -> dict[str, np.ndarray]:
        """Outputs by name. Raises RequestError, CapacityError or EngineError."""
        outputs: dict[str, np.ndarray] = self.answer(
            model, inputs, version=version, deadline_s=deadline_s, backend=backend
        )["outputs"]
        return outputs

    def answer(
        self,
        model: str,
        inputs: Tensors,
        *,
        version: str | None = None,
        deadline_s: float = 30.0,
        backend: str | None = None,
    ) -> dict[str, Any]:
        """As `infer`, with who answered: outputs, version, backend, precision, queue_ms, compute_ms, attempts."""
        response = self._handle.answer.remote(model, dict(inputs), version, deadline_s, backend)
        try:
            result: dict[str, Any] = response.result(timeout_s=deadline_s + GRACE_S)
        except Exception as error:
            raise _ours(error, deadline_s) from None
        return result

    async def answer_async(
        self,
        model: str,
        inputs: Tensors,
        *,
        version: str | None = None,
        deadline_s: float = 30.0,
        backend: str | None = None,
    ) -> dict[str, Any]:
        """`answer` for callers that run an event loop."""
        try:
            result: dict[str, Any] = await self._handle.answer.remote(model, dict(inputs), version, deadline_s, backend)
        except Exception as error:
            raise _ours(error, deadline_s) from None
        return result

    def status(self) -> dict[str, Any]:
        """Models, versions, backends, and why a backend is not live."""
        status: dict[str, Any] = self._handle.status.remote().result(timeout_s=GRACE_S)
        return status


def _ours(error: Exception, deadline_s: float) -> EnginehouseError:
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"the router did not answer within {deadline_s + GRACE_S:g} s")
    return translate(error)


def translate(error: Exception) -> EnginehouseError:
    """Ray's errors as ours: a lost Router is an engine that is not available; the rest is what the request met."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, EnginehouseError):
        return cause
    if isinstance(cause, RayActorError | BackPressureError | DeploymentUnavailableError):
        return EngineUnavailable("Router", f"{type(cause).__name__}: its replica is gone or full")
    if isinstance(cause, RayError | RayServeException | ConnectionError) and not isinstance(cause, RayTaskError):
        return EngineUnavailable("Router", f"{type(cause).__name__}: {cause}")
    if isinstance(cause, AioRpcError):
        return _of_grpc(cause)
    return InferenceFailed(f"Router: {type(cause).__name__}: {cause}")


def _of_grpc(error: AioRpcError) -> EnginehouseError:
    """Serve passes most of what its gRPC transport raises on as it is, such as CANCELLED from a replica that stops."""
    told = f"{error.code().name}: {error.details()}"
    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
        remedy = "send fewer rows, or start every node with RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH=2147483647"
        return RequestTooLarge(f"{told}; {remedy}")
    return EngineUnavailable("Router", told)
