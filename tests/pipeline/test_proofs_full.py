"""Rows are proven apart in batches as full as calls may be, and rows far from the samples are asked for as well."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.tensors import Tensors
from enginehouse_build.reference.adopt import adopt
from enginehouse_build.reference.onnx import plain_session, signature_of
from enginehouse_build.reference.proof import prove_dynamic
from enginehouse_build.reference.scores import prove_scores
from enginehouse_build.reference.strangers import Door

from .graphs import f32, i64, model, node, save, weights

Nodes = list[onnx.NodeProto]
WIDTH = 4
CONSTANTS = {
    "w": weights(WIDTH, WIDTH), "first": np.array([1]), "zeroth": np.array([0]), "whole": np.array([0, 1]),
    "axis0": np.array(0), "nought": np.array(0, f32), "unit": np.array(1, f32), "half": np.array(0.5, f32),
    "no_rows": np.array(0), "one": np.array(1),
}  # fmt: skip


def rows_of(name: str = "size") -> Nodes:
    return [node("Shape", ["x"], ["shape"], end=1), node("Squeeze", ["shape"], [name])]


def places() -> Nodes:
    """Which row each one is, from 1 on, [n, 1]."""
    return [
        *rows_of(),
        node("Range", ["no_rows", "size", "one"], ["place"]),
        node("Cast", ["place"], ["place_f"], to=1),
        node("Unsqueeze", ["place_f", "first"], ["places"]),
    ]


def with_capacity() -> Nodes:
    """Two experts, each of which takes the first rows that are sent to it and no more."""
    return [
        node("Greater", ["score", "nought"], ["second"]),
        node("Cast", ["second"], ["to_second"], to=1),
        node("Sub", ["unit", "to_second"], ["to_first"]),
        node("CumSum", ["to_first", "axis0"], ["of_first"]),
        node("CumSum", ["to_second", "axis0"], ["of_second"]),
        node("Where", ["second", "of_second", "of_first"], ["turn"]),
        node("LessOrEqual", ["turn", "limit"], ["taken"]),
        node("Where", ["taken", "h", "x"], ["mixed"]),
    ]


def for_large_batches() -> Nodes:
    """Another formula from a number of rows on."""
    return [
        *rows_of(),
        node("Cast", ["size"], ["size_f"], to=1),
        node("Greater", ["size_f", "limit"], ["large"]),
        node("Where", ["large", "x", "h"], ["mixed"]),
    ]


def by_table() -> Nodes:
    """Rows beyond the table share its last place."""
    return [
        *places(),
        node("Sub", ["places", "limit"], ["over"]),
        node("Add", ["over", "unit"], ["more"]),
        node("Relu", ["more"], ["added"]),
        node("Add", ["h", "added"], ["mixed"]),
    ]


def centred() -> Nodes:
    """Batch statistics, only where there are enough rows for any."""
    return [
        *rows_of(),
        node("Cast", ["size"], ["size_f"], to=1),
        node("Greater", ["size_f", "limit"], ["large"]),
        node("ReduceMean", ["h", "zeroth"], ["mean"], keepdims=1),
        node("Where", ["large", "mean", "nought"], ["shift"]),
        node("Sub", ["h", "shift"], ["mixed"]),
    ]


FULL: tuple[Callable[[], Nodes], ...] = (with_capacity, for_large_batches, by_table, centred)


def graph(nodes: Nodes, end: str, **more: np.ndarray) -> onnx.ModelProto:
    before = [node("MatMul", ["x", "w"], ["h"]), node("ReduceSum", ["x", "first"], ["score"], keepdims=1)]
    if end == "label":
        after = [node("ArgMax", ["mixed"], ["y"], axis=1, keepdims=0)]
        return model([*before, *nodes, *after], {"x": (f32, ["n", WIDTH])}, {"y": (i64, ["n"])}, CONSTANTS | more)
    after = [node("Identity", ["mixed"], ["y"])]
    return model([*before, *nodes, *after], {"x": (f32, ["n", WIDTH])}, {"y": (f32, ["n", WIDTH])}, CONSTANTS | more)


def samples(seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((24, WIDTH)).astype(f32)}


def proven(proto: onnx.ModelProto, folder: Path, max_rows: int) -> None:
    path = save(folder / "made.onnx", proto)
    run, door = plain_session(path, 1), Door.of(proto, signature_of(proto, True).inputs)
    prove_dynamic(run, run, samples(), (), None, door, max_rows)
    prove_scores(onnx.load(path), samples(), folder, 1, door, max_rows)


@pytest.mark.parametrize("end", ["scores", "label"])
@pytest.mark.parametrize(("limit", "most"), [(17, 32), (20, 32), (30, 32), (40, 64), (200, 256)])
@pytest.mark.parametrize("kind", FULL)
def test_what_is_right_in_small_batches_only_is_found_with_the_number_of_rows(
    kind: Callable[[], Nodes], limit: int, most: int, end: str, tmp_path: Path
) -> None:
    proto = graph(kind(), end, limit=np.array(limit, f32))
    with pytest.raises(ExportFailed, match="answered otherwise than alone: .*--no-batch helps") as failed:
        proven(proto, tmp_path, most)
    assert f" {most} times in a batch" in str(failed.value) or f"a batch of {most} rows" in str(failed.value)
    (hint,) = re.findall(r"--max-batch (\d+) helps", str(failed.value))
    assert int(hint) >= limit - 1
    # Up to where it is right it is served.
    proven(proto, tmp_path, limit - 1)


@pytest.mark.parametrize("size", [3, 6, 13, 27])
def test_a_number_of_rows_between_is_looked_at(size: int, tmp_path: Path) -> None:
    nodes = [
        *rows_of(),
        node("Equal", ["size", "odd"], ["is"]),
        node("Where", ["is", "x", "h"], ["mixed"]),
    ]
    with pytest.raises(ExportFailed, match="answered otherwise than alone"):
        proven(graph(nodes, "scores", odd=np.array(size)), tmp_path, 32)


@pytest.mark.parametrize("kind", FULL)
def test_a_batch_of_one_is_made_dynamic_only_where_full_batches_are_right(
    kind: Callable[[], Nodes], tmp_path: Path
) -> None:
    proto = graph(kind(), "scores", limit=np.array(20, f32))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    path = save(tmp_path / "one.onnx", proto)
    for most in (32, 16):
        adopted = adopt(path, tmp_path / "adopted.onnx", batched=True, max_rows=most)
        assert adopted.signature.batched == (most == 16), adopted.remarks


def decided(how: str, threshold: float, *, apart: bool) -> onnx.ModelProto:
    """Another formula where all rows, or most of them, are large: of the batch, or of each row by itself."""
    axes = "first" if apart else "whole"
    share = [node("Cast", ["loud"], ["share"], to=1)]
    told = {
        "all": [*share, node("ReduceMin", ["share", axes], ["all"], keepdims=1)],
        "most": [*share, node("ReduceMean", ["share", axes], ["all"], keepdims=1)],
        "none": [
            *share,
            node("ReduceMax", ["share", axes], ["any"], keepdims=1),
            node("Sub", ["unit", "any"], ["all"]),
        ],
    }[how]
    nodes = [
        node("Abs", ["x"], ["size_of"]),
        node("Greater", ["size_of", "threshold"], ["loud"]),
        *told,
        node("Greater", ["all", "half"], ["early"]),
        node("Where", ["early", "x", "h"], ["mixed"]),
    ]
    return graph(nodes, "scores", threshold=np.array(threshold, f32))


@pytest.mark.parametrize("threshold", [3.5, 8.0, 40.0])
@pytest.mark.parametrize("how", ["all", "most", "none"])
def test_a_row_far_from_the_samples_is_answered_as_alone_too(how: str, threshold: float, tmp_path: Path) -> None:
    proven(decided(how, threshold, apart=True), tmp_path, 32)
    with pytest.raises(ExportFailed, match="answered otherwise than alone"):
        proven(decided(how, threshold, apart=False), tmp_path, 32)


@pytest.mark.parametrize("gain", [1.0, 300.0, 3e4])
def test_what_rounding_alone_makes_of_a_full_batch_is_no_fault(gain: float) -> None:
    def run(inputs: Tensors) -> Tensors:
        # As of a kernel that adds up in another order for many rows; far from the samples an angle is all rounding.
        wide = inputs["x"].astype(f32) * f32(1 + 1e-7 * (len(inputs["x"]) > 8))
        return {"y": np.sin(wide * f32(gain)) + wide, "label": np.sin(wide * f32(gain)).argmax(axis=1)}

    prove_dynamic(run, run, {"x": samples()["x"] / 10})


def test_a_slow_model_is_asked_for_one_full_batch_of_copies_and_one_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[np.ndarray] = []

    def run(inputs: Tensors) -> Tensors:
        calls.append(inputs["x"])
        time.sleep(0.002 * len(inputs["x"]))
        return {"y": inputs["x"] * 2}

    for module in ("company", "crowds"):
        monkeypatch.setattr(f"enginehouse_build.reference.{module}._SECONDS", 0.0)
    prove_dynamic(run, run, samples(), (), None, Door({}, (), False), 64)
    full = [rows for rows in calls if len(rows) == 64]
    assert [len(np.unique(rows, axis=0)) > 5 for rows in full] == [False, True]
