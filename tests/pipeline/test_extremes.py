"""The largest and least 64-bit whole numbers, which ONNX Runtime's own reductions miss beyond 32 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from enginehouse_build.graph.extremes import PREFIX, exact_extremes
from enginehouse_build.reference.adopt import adopt
from enginehouse_build.reference.onnx import plain_session

from .graphs import f32, i64, model, node, save, values

NUMPY = {"ReduceMax": np.max, "ReduceMin": np.min}


def reduced(op: str, axes: tuple[int, ...] | None, keepdims: int, dtype: Any = i64, opset: int = 18) -> onnx.ModelProto:
    """Over the last two dimensions of three, or all."""
    dims: list[int | str | None] = ["n", 3, 16]
    over = [axis % 3 for axis in (axes if axes is not None else (0, 1, 2))]
    left = [1 if at in over else dim for at, dim in enumerate(dims) if keepdims or at not in over]
    attributes: dict[str, Any] = {"keepdims": keepdims}
    inputs, fixed = ["x"], {}
    if axes is not None and opset >= 18:
        inputs, fixed = ["x", "axes"], {"axes": np.array(axes)}
    elif axes is not None:
        attributes["axes"] = list(axes)
    made = model([node(op, inputs, ["y"], **attributes)], {"x": (dtype, dims)}, {"y": (dtype, left)}, fixed)
    made.opset_import[0].version = opset
    return made


def numbers(bits: int, rows: int = 4) -> np.ndarray:
    return np.random.default_rng(bits).integers(-(2**bits), 2**bits, (rows, 3, 16))


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [None, (2,), (-1,), (1, 2), (-1, -2), (0,)], ids=str)
@pytest.mark.parametrize("op", NUMPY)
def test_extremes_are_exact(op: str, axes: tuple[int, ...] | None, keepdims: int, opset: int, tmp_path: Path) -> None:
    proto = reduced(op, axes, keepdims, opset=opset)
    assert exact_extremes(proto) == 1
    ask = plain_session(save(tmp_path / "model.onnx", proto), 1)
    for bits in (8, 31, 33, 36, 40, 48, 62):
        x = numbers(bits)
        got = ask({"x": x})["y"]
        want = NUMPY[op](x, axis=axes, keepdims=bool(keepdims))
        assert got.shape == want.shape
        assert np.array_equal(got, want), bits


@pytest.mark.parametrize("dtype", [f32, np.int32])
def test_other_types_stay_as_they_are(dtype: Any) -> None:
    proto = reduced("ReduceMax", (2,), 1, dtype)
    before = proto.SerializeToString()
    assert exact_extremes(proto) == 0
    assert proto.SerializeToString() == before


def test_branches_are_looked_through(tmp_path: Path) -> None:
    then, other = (
        helper.make_graph([node(op, ["x", "last"], [out], keepdims=0)], out, [], values({out: (i64, ["n", 3])}))
        for op, out in (("ReduceMax", "of_then"), ("ReduceMin", "of_else"))
    )
    proto = model(
        [
            node("Size", ["x"], ["count"]),
            node("Cast", ["count"], ["flag"], to=onnx.TensorProto.BOOL),
            node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
        ],
        {"x": (i64, ["n", 3, 16])},
        {"y": (i64, ["n", 3])},
        {"last": np.array([2])},
    )
    assert exact_extremes(proto) == 2
    onnx.checker.check_model(proto)
    x = numbers(33)
    assert np.array_equal(plain_session(save(tmp_path / "model.onnx", proto), 1)({"x": x})["y"], x.max(2))


def test_a_file_that_is_adopted_has_them(tmp_path: Path) -> None:
    save(tmp_path / "given.onnx", reduced("ReduceMax", (2,), 0))
    adopt(tmp_path / "given.onnx", tmp_path / "model.onnx", batched=True)
    adopted = onnx.load(tmp_path / "model.onnx")
    assert any(each.name.startswith(PREFIX) for each in adopted.graph.node)
    x = numbers(40)
    assert np.array_equal(plain_session(tmp_path / "model.onnx", 1)({"x": x})["y"], x.max(2))
