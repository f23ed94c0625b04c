"""What is OpenVINO's own: it chooses precisions by itself, so what it says is held against the numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.random import Generator
from onnx import helper, numpy_helper
from tests.conformance.conftest import Publish, why_not_here
from tests.conformance.models import BIAS, BY_NAME, WEIGHT, Case

from enginehouse.contract.errors import EngineUnavailable, InferenceFailed
from enginehouse.contract.manifest import Precision
from enginehouse.engines import EngineOptions, load_engine

pytestmark = pytest.mark.skipif(bool(why_not_here("openvino-cpu")), reason=str(why_not_here("openvino-cpu")))
AFFINE = BY_NAME["affine"]

#: Largest and smallest relative L2 error that goes with a precision on `affine`.
ERRORS = {"fp32": (0, 1e-6), "fp16": (1e-5, 2e-3), "bf16": (3e-4, 2e-2), "int8": (1e-3, 5e-2)}


@pytest.mark.parametrize("asked", ["fp32", "fp16", "bf16"])
def test_the_reported_precision_is_the_one_in_the_numbers(publish: Publish, asked: Precision, rng: Generator) -> None:
    bundle = publish(AFFINE, "openvino", asked)
    engine = load_engine("openvino-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
    inputs = AFFINE.sample(rng, 8)
    exact = inputs["x"].astype(np.float64) @ WEIGHT + BIAS
    low, high = ERRORS[engine.precision]
    assert low <= np.linalg.norm(engine.infer(inputs)["y"] - exact) / np.linalg.norm(exact) < high
    # Never fewer bits than were asked for: bf16 in the place of fp16 would be.
    assert engine.precision in {"fp32": ("fp32",), "fp16": ("fp16", "fp32"), "bf16": ("bf16", "fp32")}[asked]


@pytest.mark.parametrize(("quantized", "reported"), [(True, "int8"), (False, "fp32")])
def test_int8_is_reported_only_where_int8_operators_run(publish: Publish, quantized: bool, reported: str) -> None:
    case = _quantized_affine() if quantized else AFFINE
    bundle = publish(case, "openvino", "int8")
    assert load_engine("openvino-cpu", bundle, bundle.manifest.artifacts[0], threads=1).precision == reported


def _quantized_affine() -> Case:
    """`affine` without its bias, with int8 weights and uint8 activations around it."""
    scale = np.float32(np.abs(WEIGHT).max() / 127)
    constants = {
        "w": np.round(WEIGHT / scale).astype(np.int8),
        "w_scale": scale,
        "w_zero": np.int8(0),
        "x_scale": np.float32(0.03),
        "x_zero": np.uint8(128),
    }
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "x_scale", "x_zero"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["dw"]),
            helper.make_node("MatMul", ["d", "dw"], ["y"]),
        ],
        "quantized_affine",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return Case("quantized_affine", AFFINE.signature, graph, AFFINE.sample, lambda inputs: {"y": inputs["x"] @ WEIGHT})


def test_integers_that_openvino_would_cut_to_32_bits_are_not_answered(publish: Publish) -> None:
    bundle = publish(BY_NAME["whole_numbers"], "openvino")
    engine = load_engine("openvino-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
    for wide in (2**31, -(2**31) - 1):
        with pytest.raises(InferenceFailed, match="'x' has values beyond 32 bits"):
            engine.infer({"x": np.array([[1, 2, 3, wide]])})


def test_string_tensors_are_refused(publish: Publish) -> None:
    bundle = publish(AFFINE, "openvino")
    files = bundle.verified_files(bundle.manifest.artifacts[0])
    from enginehouse.engines.openvino import OpenVinoCpu

    with pytest.raises(EngineUnavailable, match="onnxruntime-cpu for BYTES"):
        OpenVinoCpu(EngineOptions(files, bundle.manifest.artifacts[0], BY_NAME["text"].signature, 8, 1))
