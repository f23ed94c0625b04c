"""TensorRT engines of the same models: built from their ONNX files, and run where this process has a GPU they fit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.gpu import models
from benchmarks.gpu.lab import Lab, NotRun, Row, tried
from benchmarks.gpu.timing import in_turns
from enginehouse.contract.errors import EnginehouseError
from enginehouse.contract.manifest import Artifact, Precision
from enginehouse.contract.parity import compare
from enginehouse.engines import EngineOptions
from enginehouse.engines.tensorrt import TensorRT, fitted
from enginehouse.engines.tensorrt.builder import RTX_COMPUTE_CAPABILITIES, build_engine
from enginehouse.engines.tensorrt.key import profile_of
from enginehouse.engines.tensorrt.library import FLAVOURS, RTX, library, local_node

_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
_ROWS = (1, 8, 32)


def run(lab: Lab) -> Iterator[Row]:
    """A row for each flavour, model and precision."""
    for flavour in FLAVOURS:
        for model in lab.models:
            for precision in _PRECISIONS:
                row = {"flavour": flavour, "model": model, "precision": precision}
                figure = _built if lab.dry else _run
                yield tried(row, partial(figure, lab, flavour, model, precision))


def _options(lab: Lab, model: str, precision: Precision, file: Path) -> EngineOptions:
    manifest = models.bundle(lab, model).manifest
    artifact = Artifact(name=f"tensorrt-{precision}", format="tensorrt", precision=precision, status="unverified")
    return EngineOptions(
        [file], artifact, manifest.signature.signature(), manifest.max_batch, lab.threads, axes=manifest.axes
    )


def _built(lab: Lab, flavour: str, model: str, precision: Precision) -> Row:
    """Without a GPU, only TensorRT-RTX builds, for GPUs that are not here; nothing runs."""
    try:
        library(flavour)
        if flavour != RTX:
            lab.need_gpu()
        options = _options(lab, model, precision, models.onnx_file(lab, model, precision))
        profile = profile_of(options.signature, options.max_rows, options.axes)
        began = time.perf_counter()
        built = build_engine(options.files[0], profile, flavour, RTX_COMPUTE_CAPABILITIES)
    except EnginehouseError as error:
        raise NotRun(str(error)) from None
    return {
        "build s": time.perf_counter() - began,
        "MiB": len(built.engine) / 2**20,
        "for": ", ".join(built.compute_capabilities),
        "not run": f"it was built, and cannot run: no GPU: {lab.dry}",
    }


def _run(lab: Lab, flavour: str, model: str, precision: Precision) -> Row:
    try:
        if (found := local_node(flavour).flavour) != flavour:
            raise NotRun(f"not installed; {found} is")
        began = time.perf_counter()
        options = fitted(_options(lab, model, precision, models.onnx_file(lab, model, precision)), print)
        engine = TensorRT(options)
    except EnginehouseError as error:
        raise NotRun(str(error)) from None
    row: Row = {"build s": time.perf_counter() - began}
    reference = models.engine(lab, model, "fp32", "onnxruntime-cpu")
    for rows in (rows for rows in _ROWS if rows <= options.max_rows):
        request = models.request(model, rows)
        row[f"{rows} rows, p50 ms"] = in_turns({"": partial(engine.infer, request)}, 0.3)[""].p50_ms
        row["relative L2"] = compare(engine.infer(request), reference.infer(request)).relative_l2
    engine.close()
    return row
