"""Whether memory grows with calls: of this process, and of the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import psutil
from examples import encoder

from benchmarks.gpu import models
from benchmarks.gpu.lab import Lab, Row, tried
from enginehouse.engines.tensorrt.device import cuda

_CALLS = 10_000
#: MiB that an allocator may still take after a tenth of the calls.
_ALLOWED = 8.0


def run(lab: Lab) -> Iterator[Row]:
    """A row for each model: digits in changing batches, and sentences of changing lengths."""
    digits = [models.request("digits", rows) for rows in (1, 7, 32, 3, 16)]
    yield tried({"model": "digits"}, partial(_grown, lab, "digits", digits, _CALLS))
    sentences = [encoder.sentences(rows, length) for rows, length in ((1, 8), (8, 64), (3, 201), (16, 33), (2, 256))]
    yield tried({"model": "encoder"}, partial(_grown, lab, "encoder", sentences, lab.sized(_CALLS // 5, 200)))


def _grown(lab: Lab, model: str, requests: list[models.Request], calls: int) -> Row:
    engine = models.engine(lab, model, "fp32")
    for call in range(calls // 10):
        engine.infer(requests[call % len(requests)])
    before = _used(lab)
    for call in range(calls):
        engine.infer(requests[call % len(requests)])
    grown = {name: after - was for (name, after), was in zip(_used(lab).items(), before.values(), strict=True)}
    verdict = "does not grow" if max(grown.values()) <= _ALLOWED else "GROWS"
    return {"calls": calls, **{f"{name}, MiB more": value for name, value in grown.items()}, "verdict": verdict}


def _used(lab: Lab) -> dict[str, float]:
    """MiB in use by place."""
    found = {"process": psutil.Process().memory_info().rss / 2**20}
    if not lab.dry:
        free, total = cuda("cudaMemGetInfo")
        found["GPU"] = (total - free) / 2**20
    return found
