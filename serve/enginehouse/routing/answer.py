"""What a router returns: an answer with its origin, how a request would be routed and why, or why nothing is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from enginehouse.contract.bounds import described
from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.manifest import ACCELERATOR_OF, ENGINE_KINDS, FORMAT_OF, Artifact, EngineKind
from enginehouse.contract.numerics import admits, is_servable
from enginehouse.contract.tensors import Timing
from enginehouse.routing.policy import BackendState, Choice, Demand, unfit
from enginehouse.routing.view import ModelVersion, View


class Answer(NamedTuple):
    """The outputs of one request, and the backend that computed them."""

    outputs: dict[str, np.ndarray]
    version: ModelVersion
    choice: Choice
    timing: Timing
    attempts: int

    def origin(self) -> dict[str, Any]:
        """Version, backend, precision, times in milliseconds and attempts, as plain data for the response headers."""
        predicted_ms = self.choice.predicted_ms
        return {
            "version": self.version.config.version,
            "backend": self.choice.backend.pool,
            "precision": self.choice.backend.precision,
            "queue_ms": round(self.timing.queue_ms, 3),
            "compute_ms": round(self.timing.compute_ms, 3),
            **({"predicted_ms": round(predicted_ms, 3)} if predicted_ms < math.inf else {}),
            "attempts": self.attempts,
        }


class Explained(NamedTuple):
    """How a request for `version` would be routed: the policy's choices, and in `out` why other pools are not live."""

    version: ModelVersion
    choices: Sequence[Choice]
    out: dict[str, str]

    def document(self) -> dict[str, Any]:
        """As plain data; times in milliseconds, None where nothing was measured."""
        backends = [
            {
                "pool": choice.backend.pool,
                "artifact": choice.backend.artifact,
                "precision": choice.backend.precision,
                "replicas": choice.backend.replicas,
                "wait_ms": choice.wait_ms,
                "compute_ms": _finite(choice.compute_ms),
                "predicted_ms": _finite(choice.predicted_ms),
                "cost": _finite(choice.cost),
                "reason": choice.reason or choice.backend.fails or (choice.behind and f"behind {choice.behind}"),
                "may_answer": not choice.reason,
                "inputs_only": described(choice.backend.inputs_only),
            }
            for choice in self.choices
        ]
        return {"model": self.version.config.id, "backends": backends, "out": self.out}


def wrong_values(
    version: ModelVersion, view: View, live: Sequence[BackendState], demand: Demand
) -> InvalidInput | None:
    """The error if the values of the request are why no backend, live or not, could ever answer it; else None."""
    if demand.values is None or view.could_answer(version, demand):
        return None
    of_any_values = demand._replace(values=None)
    if not view.could_answer(version, of_any_values) and all(unfit(state, of_any_values) for state in live):
        return None
    # What a replica has found on its own node counts as well.
    bounds = {(artifact.name, kind): artifact.bounds_on(kind) for artifact, kind in _servable(version)}
    bounds |= {(state.artifact, state.engine): state.inputs_only for state in live}
    beyond = {name: only for name, only in bounds.items() if demand.values.beyond(only)}
    place = demand.values.place(next(iter(beyond.values())))
    known = "; ".join(f"{name} on {kind} answers {described(only)} only" for (name, kind), only in beyond.items())
    return InvalidInput(
        f"{place}, for which nothing that may answer {version.config.id!r} is right ({known}); "
        f"{_way_out(version, view, demand)}"
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _way_out(version: ModelVersion, view: View, demand: Demand) -> str:
    assert demand.values is not None
    if view.could_answer(version, demand._replace(pool=None, min_precision="int8")):
        return "leave out the hint that restricts who may answer"
    right = [each for each in _servable(version) if not demand.values.beyond(each[0].bounds_on(each[1]))]
    within = [each for each in right if admits(version.numerics, each[0])]
    if within:
        artifact, kind = within[0]
        return f"{artifact.name} of the bundle is right for it: serve it on a pool of {kind} too"
    if right:
        artifact, kind = right[0]
        name = version.config.id
        return f"{artifact.name} is right for it: `enginehouse models add {name} --numerics {artifact.numerics_class}`"
    if not any(artifact.format == "onnx" for artifact, _ in _servable(version)):
        return "build the model with `--formats onnx` too, which answers as the reference does"
    return "send other values"


def _servable(version: ModelVersion) -> list[tuple[Artifact, EngineKind]]:
    """What could be loaded, with the engines that the build knows something about."""
    manifest = version.manifest
    return [
        (artifact, kind)
        for kind in ENGINE_KINDS
        for artifact in manifest.artifacts
        if artifact.format == FORMAT_OF[kind] and is_servable(artifact)
        if ACCELERATOR_OF[kind] == "cpu" or artifact.bounds_on(kind) or manifest.latency_of(kind, artifact.name)
    ]
