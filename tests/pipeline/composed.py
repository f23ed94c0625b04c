"""Running a composed graph on every engine that is here, each in fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

ENGINES = ("onnxruntime", "openvino")


def make(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    opset: int = 20,
    ir_version: int = 10,
    **weights: np.ndarray,
) -> onnx.ModelProto:
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def tensor(name: str, *dims: int | str, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, dims)


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def load(engine: str, model: onnx.ModelProto, folder: Path) -> Callable[..., dict[str, np.ndarray]]:
    """Check and load `model`; what is returned takes inputs and gives outputs, by name."""
    onnx.checker.check_model(model, full_check=True)
    names = [output.name for output in model.graph.output]
    if engine == "onnxruntime":
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return lambda **inputs: dict(zip(names, session.run(names, inputs), strict=True))
    onnx.save(model, folder / "model.onnx")
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(folder / "model.onnx"), "CPU", options)

    def run(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        results = compiled(inputs)
        return {name: np.array(results[name]) for name in names}

    return run


def build_for_tensorrt(model: onnx.ModelProto, rows: int) -> None:
    """Parse and build for Ada with TensorRT-RTX, which needs no GPU; fails with what it says."""
    library: Any = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (extra trt-rtx)")
    log = library.Logger(library.ILogger.Severity.INTERNAL_ERROR)
    builder = library.Builder(log)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, log)
    accepted = parser.parse(model.SerializeToString())
    assert accepted, [str(parser.get_error(index)) for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(library.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for value in model.graph.input:
        rest = dims(value)[1:]
        profile.set_shape(value.name, [1, *rest], [rows, *rest], [rows, *rest])
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """Relative L2, in double precision."""
    assert got.shape == want.shape
    reference = want.astype(np.float64)
    return float(np.linalg.norm(got - reference) / np.linalg.norm(reference))
