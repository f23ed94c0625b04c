"""TensorRT reads quantized tensors as symmetric int8; what is not that is refused by name, wherever it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from enginehouse.contract.errors import ConversionFailed
from enginehouse_build.convert.int8_lint import check_for_tensorrt
from enginehouse_build.convert.quantize import quantize_for_onnxruntime

from .graphs import f32, model, node, save, weights

SCALE = np.array(0.1, f32)


def rounded(folder: Path, zero_point: np.ndarray | None = None, **attributes: Any) -> Path:
    """x quantized and dequantized once."""
    parts = {"scale": SCALE} | ({} if zero_point is None else {"zero": zero_point})
    nodes = [
        node("QuantizeLinear", ["x", *parts], ["q"], name="to_int8", **attributes),
        node("DequantizeLinear", ["q", *parts], ["y"], name="from_int8"),
    ]
    return save(folder / "rounded.onnx", model(nodes, {"x": (f32, ["n", 3])}, {"y": (f32, ["n", 3])}, parts, opset=21))


def learned(folder: Path, values: np.ndarray, zero_points: np.ndarray | None) -> Path:
    """A product with weights that are stored quantized, with a scale per column."""
    parts = {"w": values, "scale": np.full(4, 0.1, f32)} | ({} if zero_points is None else {"zero": zero_points})
    nodes = [node("DequantizeLinear", list(parts), ["wf"], name="weights", axis=1), node("MatMul", ["x", "wf"], ["y"])]
    return save(folder / "learned.onnx", model(nodes, {"x": (f32, ["n", 3])}, {"y": (f32, ["n", 4])}, parts))


def refusal(node_name: str, op_type: str, fault: str) -> str:
    return re.escape(f"TensorRT would misread node {node_name!r} ({op_type}): {fault}; it knows symmetric int8 only")


def test_symmetric_int8_passes(tmp_path: Path) -> None:
    check_for_tensorrt(rounded(tmp_path, np.array(0, np.int8)))
    check_for_tensorrt(rounded(tmp_path, output_dtype=TensorProto.INT8))
    check_for_tensorrt(learned(tmp_path, np.ones((3, 4), np.int8), np.zeros(4, np.int8)))
    check_for_tensorrt(learned(tmp_path, np.ones((3, 4), np.int8), None))


def test_pixels_are_bytes_but_not_quantized(tmp_path: Path) -> None:
    nodes = [node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), node("MatMul", ["f", "w"], ["y"])]
    proto = model(nodes, {"x": (np.uint8, ["n", 3])}, {"y": (f32, ["n", 4])}, {"w": weights(3, 4)})
    check_for_tensorrt(save(tmp_path / "pixels.onnx", proto))


@pytest.mark.parametrize("zero_point", [np.array(0, np.uint8), np.array(128, np.uint8), None])
def test_unsigned_activations_are_refused_whatever_their_zero_point(
    tmp_path: Path, zero_point: np.ndarray | None
) -> None:
    # Without a zero point ONNX means uint8.
    with pytest.raises(ConversionFailed, match=refusal("to_int8", "QuantizeLinear", "tensor 'q' is uint8")):
        check_for_tensorrt(rounded(tmp_path, zero_point))


def test_shifted_activations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match=refusal("to_int8", "QuantizeLinear", "tensor 'q' has zero point -7")):
        check_for_tensorrt(rounded(tmp_path, np.array(-7, np.int8)))


def test_one_shifted_channel_is_found_among_many(tmp_path: Path) -> None:
    path = learned(tmp_path, np.ones((3, 4), np.int8), np.array([0, 0, 3, 0], np.int8))
    fault = refusal("weights", "DequantizeLinear", "tensor 'w' has zero point 3 in channel 2")
    with pytest.raises(ConversionFailed, match=fault):
        check_for_tensorrt(path)


def test_unsigned_weights_are_refused_without_a_zero_point_too(tmp_path: Path) -> None:
    path = learned(tmp_path, np.ones((3, 4), np.uint8), None)
    with pytest.raises(ConversionFailed, match=refusal("weights", "DequantizeLinear", "tensor 'w' is uint8")):
        check_for_tensorrt(path)


def test_bytes_that_are_dequantized_on_arrival_are_refused(tmp_path: Path) -> None:
    nodes = [node("DequantizeLinear", ["x", "scale"], ["y"], name="arrival")]
    proto = model(nodes, {"x": (np.uint8, ["n", 3])}, {"y": (f32, ["n", 3])}, {"scale": SCALE})
    with pytest.raises(ConversionFailed, match=refusal("arrival", "DequantizeLinear", "tensor 'x' is uint8")):
        check_for_tensorrt(save(tmp_path / "arrival.onnx", proto))


def test_computed_zero_point_is_refused(tmp_path: Path) -> None:
    nodes = [
        node("Cast", ["shift"], ["zero"], to=TensorProto.INT8),
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="to_int8"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    proto = model(nodes, {"x": (f32, ["n", 3]), "shift": (f32, [])}, {"y": (f32, ["n", 3])}, {"scale": SCALE})
    fault = "the zero point 'zero' of tensor 'q' is computed"
    with pytest.raises(ConversionFailed, match=refusal("to_int8", "QuantizeLinear", fault)):
        check_for_tensorrt(save(tmp_path / "computed.onnx", proto))


def test_zero_point_held_by_a_constant_node_is_read(tmp_path: Path) -> None:
    proto = onnx.load(rounded(tmp_path, np.array(-7, np.int8)))
    (zero,) = (tensor for tensor in proto.graph.initializer if tensor.name == "zero")
    proto.graph.node.insert(0, node("Constant", [], ["zero"], value=zero))
    proto.graph.initializer.remove(zero)
    with pytest.raises(ConversionFailed, match="tensor 'q' has zero point -7"):
        check_for_tensorrt(save(tmp_path / "constant.onnx", proto))


def test_branches_are_searched(tmp_path: Path) -> None:
    branches = [
        helper.make_graph(
            [
                node("QuantizeLinear", ["x", "scale", zero], [f"{zero}_q"], name=f"{zero}_quantize"),
                node("DequantizeLinear", [f"{zero}_q", "scale", zero], [f"{zero}_y"]),
            ],
            zero,
            [],
            [helper.make_tensor_value_info(f"{zero}_y", TensorProto.FLOAT, ["n", 3])],
        )
        for zero in ("even", "odd")
    ]
    nodes = [node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])]
    # The zero points are those of the graph around the branches.
    parts = {"scale": SCALE, "even": np.array(0, np.int8), "odd": np.array(1, np.int8)}
    proto = model(nodes, {"x": (f32, ["n", 3]), "flag": (np.bool_, [])}, {"y": (f32, ["n", 3])}, parts)
    fault = refusal("odd_quantize", "QuantizeLinear", "tensor 'odd_q' has zero point 1")
    with pytest.raises(ConversionFailed, match=fault):
        check_for_tensorrt(save(tmp_path / "branches.onnx", proto))


def test_bodies_of_functions_are_searched(tmp_path: Path) -> None:
    imports = [helper.make_opsetid("", 20)]
    body = [node("QuantizeLinear", ["a", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["b"])]
    function = helper.make_function("own", "Round", ["a", "s", "z"], ["b"], body, imports)
    nodes = [helper.make_node("Round", ["x", "scale", "zero"], ["y"], domain="own")]
    parts = {"scale": SCALE, "zero": np.array(0, np.uint8)}
    proto = model(nodes, {"x": (f32, ["n", 3])}, {"y": (f32, ["n", 3])}, parts, domains=("own",))
    proto.functions.append(function)
    with pytest.raises(ConversionFailed, match=r"\(QuantizeLinear\): tensor .* is uint8"):
        check_for_tensorrt(save(tmp_path / "function.onnx", proto))


@pytest.mark.parametrize("op_type", ["DynamicQuantizeLinear", "MatMulInteger"])
def test_arithmetic_on_quantized_numbers_is_refused(tmp_path: Path, op_type: str) -> None:
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="DynamicQuantizeLinear"),
        node("MatMulInteger", ["q", "w"], ["i"], name="MatMulInteger"),
        node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    proto = model(nodes, {"x": (f32, ["n", 3])}, {"y": (f32, ["n", 4])}, {"w": np.ones((3, 4), np.int8)})
    if op_type == "MatMulInteger":
        proto = model(nodes[1:], {"q": (np.int8, ["n", 3])}, {"y": (f32, ["n", 4])}, {"w": np.ones((3, 4), np.int8)})
    with pytest.raises(ConversionFailed, match=refusal(op_type, op_type, "it computes on quantized numbers itself")):
        check_for_tensorrt(save(tmp_path / "arithmetic.onnx", proto))


def test_what_is_made_for_onnx_runtime_never_reaches_tensorrt(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["y"])]
    proto = model(nodes, {"x": (f32, ["n", 3, 8, 8])}, {"y": (f32, ["n", 4, 6, 6])}, {"w": weights(4, 3, 3, 3)})
    path = save(tmp_path / "fp32.onnx", proto)
    check_for_tensorrt(path)
    quantize_for_onnxruntime(path, tmp_path / "u8.onnx", [{"x": weights(4, 3, 8, 8)}])
    with pytest.raises(ConversionFailed, match=r"\(QuantizeLinear\): tensor 'x_QuantizeLinear_Output' is uint8"):
        check_for_tensorrt(tmp_path / "u8.onnx")
