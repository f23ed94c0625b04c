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
from enginehouse.routing.policy import EXACTNESS, BackendState, Choice, Demand, unfit
from enginehouse.routing.view import RESIDENT, ModelVersion, View


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


def never(version: ModelVersion, view: View, live: Sequence[BackendState], demand: Demand) -> InvalidInput | None:
    """The error if no backend, live or not, could ever answer the request, for its values or its hints; else None."""
    if view.could_answer(version, demand) or not all(unfit(state, demand) for state in live):
        return None
    of_any_values = demand._replace(values=None)
    right_but_for_values = [state for state in live if not unfit(state, of_any_values)]
    if demand.values is not None and (right_but_for_values or view.could_answer(version, of_any_values)):
        return _wrong_values(version, view, right_but_for_values, demand)
    free = of_any_values._replace(pool=None, min_precision="int8")
    if view.would_load(version, of_any_values) or not view.would_load(version, free):
        return None
    if demand.pool is not None and demand.pool.startswith(RESIDENT) and version.config.resident:
        # What routers host themselves comes and goes with them.
        return None
    return InvalidInput(
        f"nothing that is loaded for {version.config.id!r} may answer a request with {_hints(demand)} (numerics "
        f"{version.numerics!r} is what answers); {way_out(version, view, demand) or 'leave that out'}"
    )


def way_out(version: ModelVersion, view: View, demand: Demand) -> str:
    """What would have such a request answered: fewer hints, other numerics, another pool; "" for nothing of these."""
    ways = []
    free = demand._replace(pool=None, min_precision="int8")
    without_hints = f"leave out the hint that restricts who may answer ({_hints(demand)})"
    if free != demand and view.may_come(version, free):
        ways.append(without_hints)
    right = [
        (artifact, kind)
        for artifact, kind in _servable(version)
        if EXACTNESS[artifact.precision] >= EXACTNESS[demand.min_precision]
        if demand.values is None or not demand.values.beyond(artifact.bounds_on(kind))
    ]
    pools = view.engines(version, demand.pool)
    others = [artifact for artifact, kind in right if kind in pools and artifact.numerics_class != version.numerics]
    apart = [(artifact, kind) for artifact, kind in right if kind not in view.engines(version)]
    if others:
        too = "" if version.numerics == "any" else " (or any)"
        numerics = f"`enginehouse models add {version.config.name} --numerics {others[0].numerics_class}`{too}"
        ways.append(f"{others[0].name} is right for it: {numerics}")
    elif apart and not ways:
        artifact, kind = apart[0]
        ways.append(f"{artifact.name} of the bundle is right for it: serve it on a pool of {kind} too")
    elif free != demand and not ways and view.would_load(version, free):
        ways.append(without_hints)
    return ", or ".join(ways)


def _wrong_values(
    version: ModelVersion, view: View, live: Sequence[BackendState], demand: Demand
) -> InvalidInput | None:
    """The error that names the value, and what may answer but not this; `live` are right but for the values."""
    assert demand.values is not None
    engines = view.engines(version, demand.pool)
    bounds = {
        (artifact.name, kind): artifact.bounds_on(kind)
        for artifact, kind in _servable(version)
        if kind in engines and admits(version.numerics, artifact)
        if EXACTNESS[artifact.precision] >= EXACTNESS[demand.min_precision]
    }
    # What a replica has found on its own node counts as well.
    bounds |= {(state.artifact, state.engine): state.inputs_only for state in live}
    beyond = {name: only for name, only in bounds.items() if demand.values.beyond(only)}
    if not beyond:
        return None
    place = demand.values.place(next(iter(beyond.values())))
    known = "; ".join(f"{name} on {kind} answers {described(only)} only" for (name, kind), only in beyond.items())
    helps = way_out(version, view, demand)
    if not helps and not any(artifact.format == "onnx" for artifact, _ in _servable(version)):
        helps = "build the model with `--formats onnx` too, which answers as the reference does"
    return InvalidInput(
        f"{place}, for which nothing that may answer {version.config.id!r} is right ({known}); "
        f"{helps or 'send other values'}"
    )


def _hints(demand: Demand) -> str:
    """The hints that restrict who may answer, for people."""
    told = [f"backend: {demand.pool}"] if demand.pool is not None else []
    return ", ".join(told + ([f"min-precision: {demand.min_precision}"] if demand.min_precision != "int8" else []))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
