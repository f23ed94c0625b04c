"""Runs a function on a node with a GPU, for machines that have none.

The process must already be connected to the cluster (see `enginehouse.cluster.connect.connected`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorDiedError, ActorUnschedulableError, GetTimeoutError, RayError, RayTaskError

from enginehouse.contract.config import ACCELERATOR_LABEL
from enginehouse.contract.errors import BuildError, ConfigError, EnginehouseError

T = TypeVar("T")

#: Timeout in seconds for starting a process on the node; after it the GPU counts as taken.
START_S = 60.0
#: Timeout in seconds for the call; TensorRT takes the better part of an hour for large transformers.
LIMIT_S = 2 * 3600.0


def on_gpu_node(function: Callable[..., T], *arguments: Any, start_s: float = START_S, limit_s: float = LIMIT_S) -> T:
    """Result of `function(*arguments)`, called on a node with the GPU label, in a process that has one GPU to itself.

    The function is imported there by module and name; arguments and result are pickled. Raises ConfigError when no node
    has the label or none has a free GPU within `start_s` seconds, an EnginehouseError that the function raised, and
    BuildError for its other errors, for a process that died, and after `limit_s` seconds.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Labels"].get(ACCELERATOR_LABEL) == "gpu"]
    if not nodes:
        raise ConfigError(
            f"no node of the cluster is labelled {ACCELERATOR_LABEL}=gpu; start one with `ray start --address ... "
            f"--num-gpus 1 --labels {ACCELERATOR_LABEL}=gpu`, or build without --on-cluster"
        )
    where = ", ".join(sorted(node["NodeManagerAddress"] for node in nodes))
    # An actor rather than a task: it is known when it has its GPU and the call begins.
    actor = _Worker.options(  # type: ignore[attr-defined]
        num_cpus=0, num_gpus=1, label_selector={ACCELERATOR_LABEL: "gpu"}, max_restarts=0
    ).remote()
    try:
        _started(actor, where, start_s)
        result: T = _result(actor.call.remote(function, arguments), where, limit_s)
        return result
    finally:
        ray.kill(actor)


@ray.remote
class _Worker:
    """One process on the node, which has one of its GPUs."""

    def call(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        return function(*arguments)


def _started(actor: Any, where: str, start_s: float) -> None:
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=start_s)
    except (GetTimeoutError, ActorUnschedulableError):
        raise ConfigError(
            f"no whole GPU became free on {where} within {start_s:g} s; pools that serve hold theirs: stop them, "
            "give them a smaller num_gpus, or add a node"
        ) from None
    except RayError as error:
        raise BuildError(f"the node could not start a process: {_text(error)}") from None


def _result(reference: Any, where: str, limit_s: float) -> Any:
    try:
        return ray.get(reference, timeout=limit_s)
    except RayTaskError as error:
        if isinstance(error.cause, EnginehouseError):
            raise error.cause from None
        raise BuildError(f"on {where}: {_text(error.cause or error)}") from None
    except GetTimeoutError:
        raise BuildError(f"{where} did not finish within {limit_s:g} s; it was stopped") from None
    except ActorDiedError:
        raise BuildError(f"the process on {where} died; its log is in Ray's session folder on that node") from None


def _text(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[-1]}"
