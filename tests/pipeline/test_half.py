"""fp16: what stays in fp32 does so for a reason, and the types fit around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from enginehouse.contract.errors import ConversionFailed
from enginehouse.contract.parity import LIMITS
from enginehouse_build.convert import openvino as for_openvino
from enginehouse_build.convert.fp16 import to_fp16

from .graphs import f32, i64, model, node, save, weights
from .small_nets import ask, ask_exactly, attention, distance


def test_mask_that_fp16_cannot_hold_is_cut_and_told(tmp_path: Path) -> None:
    path, calibration = attention(tmp_path)
    remark = to_fp16(path, tmp_path / "half.onnx")
    assert remark == "1 weights have values beyond fp16's 65504, which were cut to it, the largest 3.0e+38 in 'lowest'"
    got, want = ask_exactly(tmp_path / "half.onnx", calibration[0])[0], ask(path, calibration[0])[0]
    assert 0 < distance(got, want) < LIMITS["fp16"].relative_l2
    told = for_openvino.convert(path, tmp_path, "fp16", ())
    assert told == "1 weights have values beyond fp16's 65504, the largest 3.0e+38 in 'lowest'"


def branching() -> onnx.ModelProto:
    """Both branches use a tensor, a weight and an input from outside."""
    then = onnx.helper.make_graph([node("Mul", ["r", "w"], ["t"])], "then", [], [onnx.ValueInfoProto(name="t")])
    other = onnx.helper.make_graph([node("Add", ["r", "x"], ["e"])], "else", [], [onnx.ValueInfoProto(name="e")])
    for graph in (then, other):
        graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("If", ["flag"], ["i"], then_branch=then, else_branch=other),
        node("Mul", ["i", "w"], ["y"]),
    ]
    inputs: dict[str, Any] = {"x": (f32, ["n", 3]), "flag": (np.bool_, [])}
    return model(nodes, inputs, {"y": (f32, ["n", 3]), "r": (f32, ["n", 3])}, {"w": weights(3)})


@pytest.mark.parametrize("flag", [True, False])
def test_branches_stay_in_fp32_and_everything_around_them_fits(tmp_path: Path, flag: bool) -> None:
    path = save(tmp_path / "if.onnx", branching())
    assert to_fp16(path, tmp_path / "half.onnx") == "1 operators stay in fp32: If 1"
    inputs = {"x": weights(4, 3), "flag": np.array(flag)}
    for got, want in zip(ask_exactly(tmp_path / "half.onnx", inputs), ask(path, inputs), strict=True):
        assert got.dtype == f32
        assert 0 < distance(got, want) < LIMITS["fp16"].relative_l2


def test_numbers_computed_from_shapes_are_exact_in_fp16(tmp_path: Path) -> None:
    # 4099 is no fp16 number: rounded, the output would have 4100 rows.
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["f", "half"], ["g"]),
        node("Cast", ["g"], ["size"], to=TensorProto.INT64),
        node("ReduceMax", ["x"], ["m"]),
        node("Expand", ["m", "size"], ["y"]),
    ]
    proto = model(nodes, {"x": (f32, ["n", 2])}, {"y": (f32, ["a", "b"])}, {"half": np.array([1, 0.5], f32)})
    path = save(tmp_path / "shapes.onnx", proto)
    assert to_fp16(path, tmp_path / "half.onnx") == ""
    assert ask_exactly(tmp_path / "half.onnx", {"x": weights(4099, 2)})[0].shape == (4099, 1)


def test_squares_that_fp16_cannot_hold_are_summed_in_fp32(tmp_path: Path) -> None:
    nodes = [
        node("Pow", ["x", "two"], ["squares"]),
        node("ReduceMean", ["squares", "last"], ["mean"]),
        node("Sqrt", ["mean"], ["root"]),
        node("Div", ["x", "root"], ["y"]),
    ]
    parts = {"two": np.array(2, f32), "last": np.array([-1], i64)}
    path = save(tmp_path / "norm.onnx", model(nodes, {"x": (f32, ["n", 8])}, {"y": (f32, ["n", 8])}, parts))
    assert to_fp16(path, tmp_path / "half.onnx") == "2 operators stay in fp32: Pow 1, ReduceMean 1"
    inputs = {"x": 200 * weights(4, 8)}
    assert (
        0 < distance(ask_exactly(tmp_path / "half.onnx", inputs)[0], ask(path, inputs)[0]) < LIMITS["fp16"].relative_l2
    )


def test_epsilon_below_the_range_of_fp16_still_guards_a_division(tmp_path: Path) -> None:
    nodes = [node("Add", ["x", "epsilon"], ["d"]), node("Div", ["x", "d"], ["y"])]
    parts = {"epsilon": np.array(1e-12, f32)}
    path = save(tmp_path / "guard.onnx", model(nodes, {"x": (f32, ["n", 2])}, {"y": (f32, ["n", 2])}, parts))
    to_fp16(path, tmp_path / "half.onnx")
    assert np.isfinite(ask_exactly(tmp_path / "half.onnx", {"x": np.zeros((1, 2), f32)})[0]).all()


def test_model_of_whole_numbers_has_nothing_for_fp16(tmp_path: Path) -> None:
    proto = model([node("Add", ["x", "x"], ["y"])], {"x": (i64, ["n"])}, {"y": (i64, ["n"])})
    with pytest.raises(ConversionFailed, match=r"nothing to convert to fp16: .*Add 1"):
        to_fp16(save(tmp_path / "whole.onnx", proto), tmp_path / "half.onnx")
