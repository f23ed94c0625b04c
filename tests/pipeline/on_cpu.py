"""Builds or asks int8 artifacts in a process of its own, so that engines can be shown another CPU than this one.

    python -m tests.pipeline.on_cpu build SOURCE SAMPLES STORE
    python -m tests.pipeline.on_cpu ask BUNDLE KIND ...

`ask` prints for each kind of engine how far its int8 artifact is from the bundle's own answers: by the serving engine,
and by the engine's library alone, without any care that products do not saturate.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from enginehouse.contract import tensor_file
from enginehouse.contract.bundle import Bundle
from enginehouse.contract.manifest import FORMAT_OF, EngineKind
from enginehouse.engines import load_engine
from enginehouse.engines.recheck import CHECK_ANSWERS
from enginehouse.engines.usual import CHECK_REQUESTS


def build(source: str, samples: str, store: str) -> None:
    from enginehouse_build import pipeline
    from enginehouse_build.inputs.recipe import Recipe

    from . import steps

    pipeline.measured_beside = steps.measure_once
    recipe = Recipe.of(
        source=source, name="m", store=store, samples=samples, threads=1, max_batch=4,
        formats=("onnx", "openvino"), precisions=("fp32", "int8"),
    )  # fmt: skip
    print(pipeline.build(recipe).path)


def ask(folder: str, *kinds: str) -> None:
    bundle = Bundle.open(Path(folder))
    (request, *_), (answer, *_) = (tensor_file.read(Path(folder) / path) for path in (CHECK_REQUESTS, CHECK_ANSWERS))
    (name,) = answer
    told = {}
    for kind in kinds:
        artifact = bundle.manifest.artifact(f"{FORMAT_OF[cast(EngineKind, kind)]}-int8")
        engine = load_engine(cast(EngineKind, kind), bundle, artifact, threads=1)
        alone = _alone(kind, bundle.verified_files(artifact), request)
        told[kind] = {
            "precision": engine.precision,
            "engine": _distance(engine.infer(request)[name], answer[name]),
            "library": _distance(alone, answer[name]),
        }
    print(json.dumps(told))


def _alone(kind: str, files: Any, request: Mapping[str, np.ndarray]) -> np.ndarray:
    if kind == "onnxruntime-cpu":
        import onnxruntime

        (model,) = files
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, dict(request))[0])
    import openvino

    (model,) = (file for file in files if file.suffix == ".xml")
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(dict(request))[0])


def _distance(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


if __name__ == "__main__":
    {"build": build, "ask": ask}[sys.argv[1]](*sys.argv[2:])
