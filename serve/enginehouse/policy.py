"""The policy: a pure function that ranks backends for a request. Knows no Ray, no clock, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from enginehouse.latency import LatencyTable
from enginehouse.manifest import ACCELERATOR_OF, FORMAT_OF, Artifact, EngineKind, Manifest, NumericsClass

#: What a call to another process adds at least, in milliseconds (benchmarks/README.md, "Where the time goes").
HOP_MS = 0.4


@dataclass(frozen=True, slots=True)
class BackendState:
    """One model version on one pool as it is right now.

    `replicas` counts those where the engine is warm; a backend without any is never chosen. A `resident` engine is in
    the router's own process.
    """

    pool: str
    engine: str
    artifact: str
    precision: str
    numerics: NumericsClass
    replicas: int
    table: LatencyTable | None
    resident: bool = False


@dataclass(frozen=True, slots=True)
class RequestHints:
    """What a request asks of its backend: its rows, which numerics may answer, and optionally one pool by name.

    `size` is its extent along the model's cost axis, None where the model has none.
    """

    rows: int
    numerics: NumericsClass | Literal["any"] = "full"
    pool: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend to try, and the milliseconds predicted for it, hop included (inf: it was never measured)."""

    backend: BackendState
    predicted_ms: float


class Policy(Protocol):
    """Orders the backends that may answer a request, best first; an empty answer means that none may."""

    def rank(self, backends: Sequence[BackendState], hints: RequestHints) -> Sequence[Choice]: ...


class FastestLive:
    """The live backend with the best measured latency for this many rows, within the numerics class."""

    def rank(self, backends: Sequence[BackendState], hints: RequestHints) -> Sequence[Choice]:
        choices = [
            Choice(backend, _predicted_ms(backend, hints))
            for backend in backends
            if backend.replicas > 0
            and hints.numerics in ("any", backend.numerics)
            and hints.pool in (None, backend.pool)
        ]
        return sorted(choices, key=lambda choice: (choice.predicted_ms, not choice.backend.resident))


def _predicted_ms(backend: BackendState, hints: RequestHints) -> float:
    if backend.table is None:
        return math.inf
    return backend.table.predict_ms(hints.rows, hints.size) + (0.0 if backend.resident else HOP_MS)


def choose_artifact(
    manifest: Manifest, engines: Sequence[EngineKind], numerics: NumericsClass | Literal["any"]
) -> tuple[EngineKind, Artifact] | None:
    """The servable artifact that runs fastest at full batch within the numerics class, and on which of `engines`.

    Full batch, because a pool batches, of requests of the usual size. Artifacts that were never measured come last, on
    GPUs fp16 before the others.
    """

    size = manifest.axes[0].opt if manifest.axes else None

    def time_of(choice: tuple[EngineKind, Artifact]) -> tuple[float, bool]:
        engine, artifact = choice
        table = manifest.latency_of(engine, artifact.name)
        unlikely = ACCELERATOR_OF[engine] == "gpu" and artifact.precision != "fp16"
        return table.predict_ms(manifest.max_batch, size) if table else math.inf, unlikely

    usable = [
        (engine, artifact)
        for engine in engines
        for artifact in manifest.artifacts
        if artifact.status in ("ready", "unverified")
        and artifact.format == FORMAT_OF[engine]
        and numerics in ("any", artifact.numerics_class)
    ]
    return min(usable, key=time_of, default=None)
