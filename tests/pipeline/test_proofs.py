"""Proofs of independent rows on generated graphs, whose verdict is known from how they were made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.manifest import Axis
from enginehouse_build.reference.adopt import adopt
from enginehouse_build.reference.onnx import plain_session
from enginehouse_build.reference.proof import prove_dynamic, undecided
from enginehouse_build.reference.scores import prove_scores

from .batches import APART, ENDS, MIXING, made, samples
from .graphs import f32, i64, model, node, save, values
from .test_adopt import Runtime, assert_same

GENERATED = [(kind, end) for kind in (*MIXING, *APART) for end in ENDS]


def proven(proto: onnx.ModelProto, folder: Path, seed: int) -> None:
    path = save(folder / "made.onnx", proto)
    run = plain_session(path, 1)
    prove_dynamic(run, run, samples(seed))
    prove_scores(onnx.load(path), samples(seed), folder, 1)


@pytest.mark.parametrize(("kind", "end"), GENERATED)
def test_rows_that_depend_on_each_other_are_found_and_no_others(kind: str, end: str, tmp_path: Path) -> None:
    for seed in range(3):
        proto = made(kind, end, seed)
        if kind in APART:
            proven(proto, tmp_path, seed)
            continue
        with pytest.raises(ExportFailed, match="a row that shares its batch .* row \\d.*--no-batch"):
            proven(proto, tmp_path, seed)


@pytest.mark.parametrize(("kind", "end"), GENERATED)
def test_a_batch_of_one_is_made_dynamic_only_where_rows_are_apart(kind: str, end: str, tmp_path: Path) -> None:
    path = save(tmp_path / "one.onnx", made(kind, end, 5, rows=1))
    adopted = adopt(path, tmp_path / "adopted.onnx", batched=True)
    assert adopted.signature.batched == (kind in APART), adopted.remarks
    if kind in APART:
        assert_same(Runtime(tmp_path / "adopted.onnx")(samples(9)), Runtime(path).row_by_row(samples(9)))


def mixing_from(size: int) -> onnx.ModelProto:
    """Rows are apart in `x` [n, t] as long as t is less than `size`."""
    then, other = (
        helper.make_graph(nodes, name, [], values({"out": (f32, ["n", "t"])}))
        for name, nodes in {
            "then": [node("ReduceMean", ["x", "zeroth"], ["m"], keepdims=1), node("Sub", ["x", "m"], ["out"])],
            "other": [node("Identity", ["x"], ["out"])],
        }.items()
    )
    nodes = [
        node("Shape", ["x"], ["shape"], start=1, end=2),
        node("Less", ["size", "shape"], ["long"]),
        node("Squeeze", ["long"], ["condition"]),
        node("If", ["condition"], ["y"], then_branch=then, else_branch=other),
    ]
    constants = {"zeroth": np.array([0]), "size": np.array([size - 1])}
    return model(nodes, {"x": (f32, ["n", "t"])}, {"y": (f32, ["n", "t"])}, constants)


def test_rows_are_asked_at_extents_that_no_sample_has(tmp_path: Path) -> None:
    axis = Axis(name="t", min=8, opt=8, max=8, dims=(("x", 1),))
    rows = {"x": np.random.default_rng(0).standard_normal((6, 8)).astype(f32)}
    run = plain_session(save(tmp_path / "far.onnx", mixing_from(40)), 1)
    prove_dynamic(run, run, rows, [axis])
    run = plain_session(save(tmp_path / "near.onnx", mixing_from(9)), 1)
    prove_dynamic(run, run, rows)
    with pytest.raises(ExportFailed, match="at t = 9, output 'y' differs"):
        prove_dynamic(run, run, rows, [axis])


def test_numbers_that_rounding_decides_may_differ_and_no_more(tmp_path: Path) -> None:
    def rounded(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": np.floor(inputs["x"] * 4).astype(i64)}

    def otherwise(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": np.floor(inputs["x"] * np.float32(4 * (1 - 1e-7))).astype(i64)}

    def wrong(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        answer = otherwise(inputs)
        answer["y"][:, :4] += 1
        return answer

    values = np.random.default_rng(0).uniform(0.1, 0.9, (8, 4000)).astype(f32)
    values[:, 100] = 0.5
    rows = {"x": values}
    assert 0 < undecided(rounded, [rows], [rounded(rows)])["y"] <= 1e-3
    prove_dynamic(otherwise, rounded, rows)
    with pytest.raises(ExportFailed, match="with 1 rows the exported model answers otherwise than what .*: output 'y'"):
        prove_dynamic(wrong, rounded, rows)


def resized(end: str) -> onnx.ModelProto:
    nodes = [node("Resize", ["x", "scales"], ["up"], mode="linear"), *_ended(end, "up", 1)]
    shapes = {"x": (f32, ["n", 3, 8, 8])}, {"y": (i64 if end == "label" else f32, None)}
    return model(nodes, *shapes, {"scales": np.array([1, 1, 4, 4], f32)}, opset=10, ir_version=5)


def upsampled(end: str) -> onnx.ModelProto:
    nodes = [node("Upsample", ["x", "scales"], ["up"], mode="linear"), *_ended(end, "up", 1)]
    shapes = {"x": (f32, ["n", 3, 8, 8])}, {"y": (i64 if end == "label" else f32, None)}
    return model(nodes, *shapes, {"scales": np.array([1, 1, 4, 4], f32)}, opset=9, ir_version=4)


def hardmax(end: str) -> onnx.ModelProto:
    """Before opset 13 the largest of all values from the axis on, after it along the axis alone."""
    nodes = [node("Hardmax", ["x"], ["up"], axis=1), *_ended(end, "up", 2)]
    shapes = {"x": (f32, ["n", 3, 5])}, {"y": (i64 if end == "label" else f32, None)}
    return model(nodes, *shapes, opset=11, ir_version=6)


def _ended(end: str, name: str, axis: int) -> list[onnx.NodeProto]:
    if end == "label":
        return [node("ArgMax", [name], ["y"], axis=axis, keepdims=0)]
    return [node("Relu", [name], ["y"])]


@pytest.mark.parametrize("end", ["label", "scores"])
@pytest.mark.parametrize("maker", [resized, upsampled, hardmax])
def test_old_file_answers_as_before_whatever_became_of_its_opset(
    maker: Callable[[str], onnx.ModelProto], end: str, tmp_path: Path
) -> None:
    proto = maker(end)
    path = save(tmp_path / "old.onnx", proto)
    adopt(path, tmp_path / "adopted.onnx", batched=True)
    shape = [dim.dim_value or 4 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    inputs = {"x": np.random.default_rng(3).standard_normal(shape).astype(f32)}
    assert_same(Runtime(tmp_path / "adopted.onnx")(inputs), Runtime(path)(inputs))
