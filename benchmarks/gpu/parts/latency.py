"""Latency by rows and precision: the engine as it serves, and TF32, which it does not use where fp32 was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeAlias

from benchmarks.gpu import models
from benchmarks.gpu.binding import Plain
from benchmarks.gpu.lab import NOT_RUN, Lab, Row, tried
from benchmarks.gpu.sessions import session
from benchmarks.gpu.timing import in_turns
from enginehouse.contract.tensors import Tensors

Infer: TypeAlias = Callable[[Tensors], object]

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def run(lab: Lab) -> Iterator[Row]:
    """A row for each model and number of rows; precisions take turns."""
    for model in lab.models:
        infer: dict[str, Infer] = {}
        for precision in ("fp32", "tf32", "fp16"):
            row = tried({"model": model, "precision": precision}, partial(_load, lab, model, precision, infer))
            if NOT_RUN in row:
                yield row
        for rows in lab.sized(_ROWS, (1, 4)):
            yield tried(
                {"model": model, "rows": rows}, partial(_measured, lab, infer, models.request(model, rows), rows)
            )


def _load(lab: Lab, model: str, precision: str, infer: dict[str, Infer]) -> Row:
    """Add the precision to `infer`."""
    infer[precision] = _tf32(lab, model) if precision == "tf32" else models.engine(lab, model, precision).infer
    return {}


def _measured(lab: Lab, infer: Mapping[str, Infer], request: Tensors, rows: int) -> Row:
    found: Row = {}
    times = in_turns({name: partial(one, request) for name, one in infer.items()}, lab.sized(0.3, 0.1))
    for name, taken in times.items():
        found[f"{name} p50 ms"], found[f"{name} p99 ms"] = taken.p50_ms, taken.p99_ms
        found[f"{name} rows/s"] = rows / taken.p50_ms * 1e3
    return found


def _tf32(lab: Lab, model: str) -> Infer:
    lab.need_gpu()
    opened = session(lab, models.onnx_file(lab, model, "fp32"), use_tf32="1")
    return lambda inputs: Plain(opened, inputs)()
