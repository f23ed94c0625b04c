"""Client: inference from any process of a Ray job, routed in that process, with this package's errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Unpack

import grpc
import numpy as np
from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from enginehouse.cluster import deploy
from enginehouse.contract.errors import (
    DeadlineExceeded,
    EnginehouseError,
    EngineUnavailable,
    InferenceFailed,
    RequestTooLarge,
)
from enginehouse.contract.tensors import Tensors, checked_arrays, checked_name
from enginehouse.faces.python import local_router
from enginehouse.routing.hints import Hints, HintsByName

#: Seconds after a request's deadline at which the client itself stops waiting. The router enforces the deadline; this
#: bounds the wait for a router that died.
GRACE_S = 5.0
#: Seconds assumed for a request without a deadline: the router's default is not known here.
UNSTATED_S = 30.0


class Client:
    """Inference on the cluster that this process is connected to.

    Requests are routed in this process, straight to the replicas. While that is not possible, for instance because it
    cannot connect to one, they take the extra hop through the deployed routers; with `is_embedded` False they always
    do. Works in a driver, a task, a sync and an async actor. `deadline_s`, `priority`, `backend` and `min_precision` of
    a request are those of `Hints`. A job without this package uses `serve.get_app_handle("enginehouse").infer` instead,
    which raises builtins.
    """

    def __init__(self, is_embedded: bool = True) -> None:
        self._handle: DeploymentHandle = deploy.router_handle()
        self._router = local_router.of_this_process(deploy.router_handle) if is_embedded else None

    def infer(
        self, model: str, inputs: Tensors, *, version: str | None = None, **hints: Unpack[HintsByName]
    ) -> dict[str, np.ndarray]:
        """Outputs by name. Raises RequestError, CapacityError or EngineError."""
        outputs: dict[str, np.ndarray] = self.answer(model, inputs, version=version, **hints)["outputs"]
        return outputs

    def answer(
        self, model: str, inputs: Tensors, *, version: str | None = None, **hints: Unpack[HintsByName]
    ) -> dict[str, Any]:
        """As `infer`, with the origin: outputs, version, backend, precision, queue_ms, compute_ms, attempts."""
        model, parsed, arrays = checked_name(model), Hints.named(hints), dict(checked_arrays(inputs))
        if self._router and self._router.is_up:
            return self._wait(self._router.submit(model, arrays, parsed, version).result, parsed.deadline_s)
        return self._wait(_result(self._handle.answer.remote(model, arrays, parsed, version)), parsed.deadline_s)

    async def answer_async(
        self, model: str, inputs: Tensors, *, version: str | None = None, **hints: Unpack[HintsByName]
    ) -> dict[str, Any]:
        """`answer` for callers with an event loop, which never call a handle: that belongs to the router's loop."""
        model, parsed, arrays = checked_name(model), Hints.named(hints), dict(checked_arrays(inputs))
        router = self._router if self._router and self._router.is_up else None
        router = router or local_router.of_this_process(deploy.router_handle)
        give_up_s = _give_up_s(parsed.deadline_s)
        try:
            async with asyncio.timeout(give_up_s):
                return await asyncio.wrap_future(
                    router.submit(model, arrays, parsed, version, here=self._router is not None)
                )
        except TimeoutError:
            raise DeadlineExceeded(f"the router did not answer within {give_up_s:g} s") from None
        except Exception as error:
            raise translate(error) from None

    def explain(
        self,
        model: str,
        rows: int = 1,
        size: int | None = None,
        *,
        version: str | None = None,
        **hints: Unpack[HintsByName],
    ) -> dict[str, Any]:
        """How one of the deployed routers would route a request of `rows` rows now; see `Router.explain`."""
        parsed = Hints.named(hints)
        return self._wait(_result(self._handle.explain.remote(model, rows, size, parsed, version)), None)

    def status(self) -> dict[str, Any]:
        """Models, versions, backends, and why a backend is not live."""
        return self._wait(_result(self._handle.status.remote()), None)

    def _wait(self, result_within: Callable[[float], dict[str, Any]], deadline_s: float | None) -> dict[str, Any]:
        give_up_s = _give_up_s(deadline_s)
        try:
            return result_within(give_up_s)
        except TimeoutError:
            raise DeadlineExceeded(f"the router did not answer within {give_up_s:g} s") from None
        except Exception as error:
            raise translate(error) from None


def _give_up_s(deadline_s: float | None) -> float:
    return (UNSTATED_S if deadline_s is None else deadline_s) + GRACE_S


def _result(response: DeploymentResponse) -> Callable[[float], dict[str, Any]]:
    return lambda timeout_s: response.result(timeout_s=timeout_s)


def translate(error: Exception) -> EnginehouseError:
    """The EnginehouseError for an error of Ray: a router that died or is full becomes EngineUnavailable.

    Errors that a router raised keep their class if they are ours, and become InferenceFailed otherwise.
    """
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
    """For errors of Serve's gRPC transport, most of which Serve raises unchanged (CANCELLED when a replica stops)."""
    reason = f"{error.code().name}: {error.details()}"
    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
        remedy = "send fewer rows, or start every node with RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH=2147483647"
        return RequestTooLarge(f"{reason}; {remedy}")
    return EngineUnavailable("Router", reason)
