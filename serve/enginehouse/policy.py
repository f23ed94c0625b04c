"""The policy: a pure function that ranks backends for a request. Knows no Ray, no clock, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from enginehouse.latency import LatencyTable
from enginehouse.manifest import ACCELERATOR_OF, FORMAT_OF, Artifact, EngineKind, Manifest, NumericsClass


@dataclass(frozen=True, slots=True)
class BackendState:
    """One model version on one pool as it is right now.

    `replicas` counts those where the engine is warm; a backend without any is never chosen.
    """

    pool: str
    engine: EngineKind
    artifact: str
    precision: str
    numerics: NumericsClass
    replicas: int
    table: LatencyTable | None


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
    """A backend to try, and the time in milliseconds that the latency table predicts for it (inf: not measured)."""

    backend: BackendState
    predicted_ms: float


class Policy(Protocol):
    """Orders the backends that may answer a request, best first; an empty answer means that none may."""

    def rank(self, backends: Sequence[BackendState], hints: RequestHints) -> Sequence[Choice]: ...


class FastestLive:
    """The live backend with the best measured latency for this many rows, within the numerics class."""

    def rank(self, backends: Sequence[BackendState], hints: RequestHints) -> Sequence[Choice]:
        choices = [
            Choice(backend, backend.table.predict_ms(hints.rows, hints.size) if backend.table else math.inf)
            for backend in backends
            if backend.replicas > 0
            and hints.numerics in ("any", backend.numerics)
            and hints.pool in (None, backend.pool)
        ]
        return sorted(choices, key=lambda choice: choice.predicted_ms)


def choose_artifact(
    manifest: Manifest, engine: EngineKind, numerics: NumericsClass | Literal["any"]
) -> Artifact | None:
    """The servable artifact that `engine` runs fastest at full batch within the numerics class, if there is one.

    Full batch, because a pool batches, of requests of the usual size. Artifacts that were never measured come last, on
    GPUs fp16 before the others.
    """

    size = manifest.axes[0].opt if manifest.axes else None

    def time_of(artifact: Artifact) -> tuple[float, bool]:
        table = manifest.latency_of(engine, artifact.name)
        unlikely = ACCELERATOR_OF[engine] == "gpu" and artifact.precision != "fp16"
        return table.predict_ms(manifest.max_batch, size) if table else math.inf, unlikely

    usable = [
        artifact
        for artifact in manifest.artifacts
        if artifact.status in ("ready", "unverified")
        and artifact.format == FORMAT_OF[engine]
        and numerics in ("any", artifact.numerics_class)
    ]
    return min(usable, key=time_of, default=None)
