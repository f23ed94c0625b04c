"""Which artifact of a bundle an engine loads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from enginehouse.contract.manifest import ACCELERATOR_OF, FORMAT_OF, Artifact, EngineKind, Manifest, NumericsClass


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
