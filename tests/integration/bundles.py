"""Real bundles made in milliseconds: one multiplication per version, so that an answer tells which version gave it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

from enginehouse.contract.bundle import MANIFEST, sha256_of
from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import Artifact, EngineKind, File, Manifest, Precision, SignatureRecord
from enginehouse.contract.store import Store
from enginehouse.contract.tensors import Signature, TensorSpec

WIDTH = 4
MAX_BATCH = 8
#: A product of such matrices takes some 10 ms.
IDLE_SIDE = 1024
SIGNATURE = Signature(
    (TensorSpec("x", np.dtype(np.float32), (None, WIDTH)),), (TensorSpec("y", np.dtype(np.float32), (None, WIDTH)),)
)
#: Declared, not measured: which pool is preferred has to be known to the tests, also when it was seen to be slower.
GPU_POOL_FIRST: Mapping[EngineKind, float] = {"onnxruntime-cpu": 0.1, "openvino-cpu": 10}
CPU_POOL_FIRST: Mapping[EngineKind, float] = {"onnxruntime-cpu": 10, "openvino-cpu": 0.1}
#: What a poisonous model is asked for to raise, and to take its process with it.
RAISES, CRASHES = 7, 6


def publish(
    store: Path,
    name: str,
    version: str,
    factor: float,
    latency_ms: Mapping[EngineKind, float] = GPU_POOL_FIRST,
    idles: int = 0,
    int8_factor: float | None = None,
    precisions: tuple[Precision, ...] = ("fp32",),
    output: str = "y",
) -> Path:
    """`y = x * factor` with an ONNX and an OpenVINO artifact, after so many products of large matrices of zeros.

    What is called int8 has a factor of its own, so that an answer tells which artifact gave it.
    """
    target = Store(store)
    folder = target.staging()
    factors: dict[Precision, float] = {precision: factor for precision in precisions}
    if int8_factor is not None:
        factors["int8"] = int8_factor
    artifacts = [made for precision, by in factors.items() for made in _artifacts(folder, precision, by, idles, output)]
    signature = Signature(SIGNATURE.inputs, (replace(SIGNATURE.outputs[0], name=output),))
    manifest = Manifest(
        name=name,
        version=version,
        created="2026-01-01T00:00:00Z",
        source=f"y = x * {factor}",
        signature=SignatureRecord.of(signature),
        max_batch=MAX_BATCH,
        artifacts=tuple(artifacts),
        latency=tuple(table(kind, median) for kind, median in latency_ms.items()) if "fp32" in factors else (),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return Path(target.publish(folder, name, version))


def _artifacts(folder: Path, precision: Precision, factor: float, idles: int, output: str) -> tuple[Artifact, Artifact]:
    zeros = numpy_helper.from_array(np.zeros((IDLE_SIDE, IDLE_SIDE), np.float32), "zeros")
    idle = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Add", ["zeros", "largest"], ["idle0"]),
        *(helper.make_node("MatMul", [f"idle{n}", "zeros"], [f"idle{n + 1}"]) for n in range(idles)),
        helper.make_node("ReduceMax", [f"idle{idles}"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["scaled", "nothing"], [output]),
    ]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["scaled" if idles else output]), *(idle if idles else [])],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows", WIDTH])],
        [numpy_helper.from_array(np.array([factor], np.float32), "factor"), *([zeros] if idles else [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    source, converted = folder / f"onnx-{precision}" / "model.onnx", folder / f"openvino-{precision}" / "model.xml"
    for file in (source, converted):
        file.parent.mkdir()
    onnx.save(model, source)
    openvino.save_model(openvino.Core().read_model(source), converted, compress_to_fp16=False)
    return artifact(folder, "onnx", precision), artifact(folder, "openvino", precision)


def publish_poisonous(store: Path, name: str) -> Path:
    """`y = -2**63 / (x - 7)` in 64-bit integers: ONNX Runtime refuses 0, and the CPU cannot divide by -1 (SIGFPE)."""
    target = Store(store)
    folder = target.staging()
    signature = Signature(
        (TensorSpec("x", np.dtype(np.int64), (None, 1)),), (TensorSpec("y", np.dtype(np.int64), (None, 1)),)
    )
    graph = helper.make_graph(
        [helper.make_node("Sub", ["x", "seven"], ["by"]), helper.make_node("Div", ["least", "by"], ["y"])],
        name,
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["rows", 1])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["rows", 1])],
        [
            numpy_helper.from_array(np.array([-(2**63)], np.int64), "least"),
            numpy_helper.from_array(np.array([RAISES], np.int64), "seven"),
        ],
    )
    (folder / "onnx-fp32").mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "onnx-fp32" / "model.onnx")
    manifest = Manifest(
        name=name,
        version="1",
        created="2026-01-01T00:00:00Z",
        source="y = -2**63 / (x - 7)",
        signature=SignatureRecord.of(signature),
        max_batch=MAX_BATCH,
        artifacts=(artifact(folder, "onnx"),),
        latency=(table("onnxruntime-cpu", 1.0),),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return Path(target.publish(folder, name, "1"))


def artifact(folder: Path, fmt: str, precision: Precision = "fp32") -> Artifact:
    """What the manifest says of the files of one format."""
    name = f"{fmt}-{precision}"
    files = sorted((folder / name).iterdir())
    return Artifact.model_validate(
        {
            "name": name,
            "format": fmt,
            "precision": precision,
            "status": "ready",
            "files": [
                File(path=path.relative_to(folder).as_posix(), sha256=sha256_of(path), bytes=path.stat().st_size)
                for path in files
            ],
        }
    )


def table(kind: EngineKind, median: float) -> LatencyTable:
    artifact = "onnx-fp32" if kind == "onnxruntime-cpu" else "openvino-fp32"
    point = LatencyPoint(rows=1, median_ms=median, p90_ms=median, min_ms=median, count=1)
    return LatencyTable(engine=kind, artifact=artifact, threads=1, host="tests", points=(point,))


def flip(file: Path) -> None:
    """Change one bit in the middle of a published file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
