"""Builds the models that the store lacks, as a user would."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from benchmarks.gpu import models
from benchmarks.gpu.lab import Lab, Row, tried


def run(lab: Lab) -> Iterator[Row]:
    """A row for each model: whether it was there, and its artifacts."""
    for model in lab.models:
        yield tried({"model": model}, partial(_built, lab, model))


def _built(lab: Lab, model: str) -> Row:
    began = time.monotonic()
    was_there = models.is_built(lab, model)
    if not was_there:
        models.build(lab, model)
    artifacts = models.bundle(lab, model).manifest.artifacts
    return {
        "was there": "yes" if was_there else f"built in {time.monotonic() - began:.1f} s",
        "artifacts": ", ".join(f"{one.name} {one.status}" for one in artifacts),
    }
