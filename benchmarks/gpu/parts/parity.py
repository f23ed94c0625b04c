"""How far every precision is from fp32 on the CPU, on real inputs, by the figures and limits of the build."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

from benchmarks.gpu import models
from benchmarks.gpu.binding import Plain
from benchmarks.gpu.lab import Lab, Row, tried
from benchmarks.gpu.sessions import session
from enginehouse.contract import parity
from enginehouse.contract.errors import ParityFailed
from enginehouse.contract.manifest import Precision
from enginehouse.contract.tensors import Tensors

#: Requests and the reference's answers.
Pairs: TypeAlias = Sequence[tuple[Tensors, Tensors]]

#: Rows of the requests: one alone, a batch, and one that is no power of two.
_ROWS = (1, 32, 13)


def run(lab: Lab) -> Iterator[Row]:
    """A row for each model and precision."""
    for model in lab.models:
        requests = [models.request(model, rows) for rows in _ROWS]
        reference = models.engine(lab, model, "fp32", "onnxruntime-cpu")
        pairs = [(request, reference.infer(request)) for request in requests]
        reference.close()
        for precision in models.PRECISIONS:
            yield tried({"model": model, "precision": precision}, partial(_of_engine, lab, model, precision, pairs))
        yield tried({"model": model, "precision": "tf32"}, partial(_tf32, lab, model, pairs))


def _of_engine(lab: Lab, model: str, precision: Precision, pairs: Pairs) -> Row:
    engine = models.engine(lab, model, precision)
    try:
        return {"computed in": engine.precision, **_figures(lab, precision, engine.infer, pairs)}
    finally:
        engine.close()


def _tf32(lab: Lab, model: str, pairs: Pairs) -> Row:
    lab.need_gpu()
    opened = session(lab, models.onnx_file(lab, model, "fp32"), use_tf32="1")
    # 10 bits of mantissa, as fp16 has.
    return {"computed in": "tf32", **_figures(lab, "fp16", lambda inputs: Plain(opened, inputs)(), pairs)}


def _figures(lab: Lab, precision: Precision, infer: Callable[[Tensors], Tensors], pairs: Pairs) -> Row:
    limits = parity.limits_of(precision)
    found = parity.compare_all(lab.kind, infer, pairs, limits.relative_l2)
    try:
        parity.gate(precision, limits, found)
        verdict = "passes"
    except ParityFailed as error:
        verdict = str(error)
    return {
        "relative L2": found.relative_l2,
        "limit": limits.relative_l2,
        "worst row": found.worst_row,
        "top-1": found.top1_agreement if found.top1_agreement is not None else "",
        "verdict": verdict,
    }
