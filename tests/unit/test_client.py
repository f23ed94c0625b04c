"""Ray's errors as ours, for those who call the Router: what was lost with it, and what the request itself did."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    OwnerDiedError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)

from enginehouse.app import Ingress, _builtin
from enginehouse.contract.errors import (
    ArtifactMissing,
    DeadlineExceeded,
    EnginehouseError,
    EngineUnavailable,
    InferenceFailed,
    InvalidInput,
    ModelNotFound,
    NoBackend,
    Overloaded,
    RequestTooLarge,
)
from enginehouse.faces.python.client import Client, translate
from enginehouse.routing.hints import Hints

SENDS = """
from ray import cloudpickle
from enginehouse.faces.python.client import Hints
print(cloudpickle.dumps(Hints(priority=3)).hex())
"""


def test_the_hints_of_a_request_are_pickled_by_reference() -> None:
    """In a process of its own: tests import the module of Hints anyway, and then it always works."""
    done = subprocess.run([sys.executable, "-c", SENDS], capture_output=True, text=True, timeout=60, check=True)
    data = bytes.fromhex(done.stdout)
    assert pickle.loads(data) == Hints(priority=3)
    assert len(data) < 200


LOST: list[Exception] = [
    ActorDiedError(),
    ActorUnavailableError("gone", b"0" * 16),
    RayActorError(),
    WorkerCrashedError(),
    NodeDiedError("gone"),
    ObjectLostError("0" * 56, "owner", "site"),
    OwnerDiedError("0" * 56, "owner", "site"),
    OutOfMemoryError("killed"),
    RaySystemError("gone"),
    TaskCancelledError(),
    GetTimeoutError("late"),
    BackPressureError(num_queued_requests=9, max_queued_requests=8),
    DeploymentUnavailableError(DeploymentID("pool")),
    ReplicaUnavailableError("replica"),
    RequestCancelledError("request"),
    ConnectionResetError("reset"),
]


def in_a_task(cause: Exception) -> RayTaskError:
    """As it arrives when the replica's own code raised it."""
    return RayTaskError("infer", "traceback", cause)


def over_grpc(code: grpc.StatusCode, details: str = "details") -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details)


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("wrap", [lambda error: error, in_a_task], ids=["bare", "in_a_task"])
def test_a_lost_router_is_not_available(error: Exception, wrap: type) -> None:
    ours = translate(wrap(error))
    assert isinstance(ours, EngineUnavailable)
    assert "Router" in str(ours)
    assert type(error).__name__ in str(ours)


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.ABORTED,
    ],
    ids=lambda code: code.name,
)
def test_so_is_one_whose_connection_broke(code: grpc.StatusCode) -> None:
    ours = translate(over_grpc(code, "stream reset"))
    assert isinstance(ours, EngineUnavailable)
    assert f"{code.name}: stream reset" in str(ours)


def test_a_message_over_the_limit_is_not_tried_again_and_names_the_setting() -> None:
    ours = translate(over_grpc(grpc.StatusCode.RESOURCE_EXHAUSTED, "message larger than max"))
    assert isinstance(ours, RequestTooLarge)
    assert "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH" in str(ours)


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("bad"),
        InferenceFailed("broke"),
        ModelNotFound("m"),
        DeadlineExceeded("late"),
        EngineUnavailable("tensorrt", "no GPU"),
        ArtifactMissing("m@1", "nothing here"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("wrap", [lambda error: error, in_a_task], ids=["bare", "in_a_task"])
def test_our_own_errors_stay_what_they_are(error: EnginehouseError, wrap: type) -> None:
    assert translate(wrap(error)) is error


@pytest.mark.parametrize("error", [ValueError("shape"), in_a_task(ValueError("shape")), MemoryError("shape")])
def test_anything_else_is_a_failed_inference_that_names_its_cause(error: Exception) -> None:
    ours = translate(error)
    assert isinstance(ours, InferenceFailed)
    kind = "MemoryError" if isinstance(error, MemoryError) else "ValueError"
    assert str(ours) == f"Router: {kind}: shape"


def test_an_error_without_a_cause_is_still_translated() -> None:
    assert isinstance(translate(RayError("?")), EngineUnavailable)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (InvalidInput("bad"), ValueError),
        (RequestTooLarge("big"), ValueError),
        (ModelNotFound("m"), LookupError),
        (DeadlineExceeded("late"), TimeoutError),
        (NoBackend("none"), RuntimeError),
        (Overloaded("full"), RuntimeError),
        (InferenceFailed("broke"), RuntimeError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_callers_without_this_package_get_builtins_with_the_whole_message(
    error: EnginehouseError, builtin: type[Exception]
) -> None:
    seen = pickle.loads(pickle.dumps(_builtin(error)))
    assert type(seen) is builtin
    assert str(seen).startswith(f"{type(error).__name__}: {error}")
    assert ("retryable" in str(seen)) == (error.retryable and builtin is RuntimeError)


@pytest.mark.parametrize("ask", ["infer", "answer", "explain"])
def test_a_name_that_is_no_hint_is_told_those_there_are(ask: str) -> None:
    client: Any = Client.__new__(Client)
    with pytest.raises(InvalidInput, match=r"'deadline_ms' is no hint; the hints are deadline_s=.* deadline_s=0.005"):
        getattr(client, ask)("m", {}, deadline_ms=5)


async def test_so_is_one_in_a_handle_call() -> None:
    ingress: Any = SimpleNamespace(plane=SimpleNamespace(refusals=lambda *_: contextlib.nullcontext()))
    infer: Any = Ingress.infer
    with pytest.raises(ValueError, match="^InvalidInput: 'deadline_ms' is no hint; the hints are deadline_s="):
        await infer(ingress, "m", {}, deadline_ms=5)
