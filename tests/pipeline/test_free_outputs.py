"""What a build says of a source: which extents of outputs are free, that weights are no answers, that it has steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.manifest import Axis
from enginehouse.contract.tensors import Signature, Tensors, TensorSpec
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.reference.adopt import adopt
from enginehouse_build.reference.axes import with_free_outputs
from enginehouse_build.reference.conditioning import explain
from enginehouse_build.reference.onnx import plain_session
from enginehouse_build.reference.reference import make_reference

from .graphs import f32, model, node, save, weights

X = TensorSpec("x", np.dtype(f32), (None, None, 4))
#: By name what an output is made of x [rows, t, 4], the shape that was written down at t = 5, and what it is.
OUTPUTS = {
    "as long": (lambda x: x, (None, 5, 4), (None, None, 4)),
    "across": (lambda x: x.transpose(0, 2, 1), (None, 4, 5), (None, 4, None)),
    "twice": (lambda x: np.concatenate([x, x], 1), (None, 10, 4), (None, None, 4)),
    "square": (lambda x: x @ x.transpose(0, 2, 1), (None, 5, 5), (None, None, None)),
    "half": (lambda x: x[:, ::2], (None, 3, 4), (None, None, 4)),
    "pooled": (lambda x: x.mean(1), (None, 4), (None, 4)),
    "free already": (lambda x: x, (None, None, 4), (None, None, 4)),
}


def run(request: Tensors) -> dict[str, np.ndarray]:
    return {name: make(request["x"]) for name, (make, *_) in OUTPUTS.items()}


@pytest.mark.parametrize("declared", [True, False])
def test_an_output_is_free_where_it_follows_a_free_dimension(declared: bool) -> None:
    rows = {"x": weights(6, 5, 4)}
    low, high = (1, 12) if declared else (5, 5)
    axis = Axis(name="t", min=low, opt=5, max=high, dims=(("x", 1),))
    outputs = tuple(TensorSpec(name, np.dtype(f32), written) for name, (_, written, _) in OUTPUTS.items())
    asked = [run({"x": weights(count, size, 4)}) for count, size in ((1, 5), (2, 5), (2, low), (2, high))]

    found = with_free_outputs(Signature((X,), outputs), run, rows, [axis], asked)

    assert {spec.name: spec.shape for spec in found.outputs} == {name: shape for name, (*_, shape) in OUTPUTS.items()}
    assert found.inputs == (X,)


def test_what_a_file_says_of_an_output_is_tried(tmp_path: Path) -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": (f32, ["N", "t", 4])}, {"y": (f32, ["N", 5, 4])}, {})
    source, given = tmp_path / "m.onnx", tmp_path / "rows.npz"
    save(source, proto)
    np.savez(given, x=weights(6, 5, 4))

    reference = make_reference(tmp_path, Recipe.of(source=str(source), name="m", store=str(tmp_path), samples=given))

    assert reference.signature.outputs[0].shape == (None, None, 4)


def of_weights(kind: str) -> onnx.ModelProto:
    nodes = {
        "initializer": [node("Add", ["x", "w"], ["y"])],
        "constant": [node("Add", ["x", "w"], ["y"]), node("Constant", [], ["c"], value_floats=[1.0, 2.0])],
        "made of weights": [
            node("Add", ["x", "w"], ["y"]),
            node("MatMul", ["v", "v"], ["u"]),
            node("Relu", ["u"], ["c"]),
        ],
    }[kind]
    other = ("w", [4]) if kind == "initializer" else ("c", [2] if kind == "constant" else [3, 3])
    outputs = {"y": (f32, ["N", 4]), other[0]: (f32, other[1])}
    return model(nodes, {"x": (f32, ["N", 4])}, outputs, {"w": weights(4), "v": weights(3, 3)})


@pytest.mark.parametrize("kind", ["initializer", "constant", "made of weights"])
def test_an_output_that_no_input_reaches_is_called_what_it_is(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    save(source, of_weights(kind))

    with pytest.raises(ExportFailed, match=r"output '[wc]' is the same for every request.*initializer.*--no-batch"):
        adopt(source, tmp_path / "model.onnx", batched=True)


@pytest.mark.parametrize("kind", ["floats", "QDQ", "QLinear"])
def test_a_source_that_is_quantized_already_is_said_to_be(kind: str, tmp_path: Path) -> None:
    x = weights(8, 4)
    dtype = {"floats": f32, "QDQ": f32, "QLinear": np.uint8}[kind]
    steps = {
        "floats": [node("MatMul", ["x", "w"], ["y"])],
        "QDQ": [
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            node("MatMul", ["d", "w"], ["y"]),
        ],
        "QLinear": [node("QLinearMatMul", ["x", "s", "z", "wq", "s", "z", "s", "z"], ["y"])],
    }[kind]
    constants = {
        "s": np.array(0.02, f32), "z": np.array(128, np.uint8), "w": weights(4, 3),
        "wq": np.arange(12, dtype=np.uint8).reshape(4, 3),
    }  # fmt: skip
    save(tmp_path / "m.onnx", model(steps, {"x": (dtype, ["N", 4])}, {"y": (dtype, ["N", 3])}, constants))
    request = {"x": x if dtype is f32 else np.abs(x * 50).astype(np.uint8)}
    answer = plain_session(tmp_path / "m.onnx")(request)

    said = explain(tmp_path / "m.onnx", request, answer, "fp32", 1)

    assert ("quantized already" in said and "--limit" in said) == (kind != "floats"), said
