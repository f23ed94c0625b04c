"""What adoption changes of an ONNX file is held against the file as it was given, on the user's samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.reference.adopt import adopt, trial
from enginehouse_build.reference.adopt.refusals import opset_of
from enginehouse_build.reference.onnx import inputs_of
from enginehouse_build.reference.reference import MODEL, Reference, make_reference

from .graphs import f32, i64, model, node, save, weights
from .test_adopt import Runtime, assert_same

Nodes = list[onnx.NodeProto]
CHANNELS, SIDE = 4, 6


def resized(name: str) -> tuple[Nodes, int]:
    return [node("Resize", [name, "scales"], ["up"], mode="linear")], 10


def upsampled(name: str) -> tuple[Nodes, int]:
    """Converted as it should be."""
    return [node("Upsample", [name, "scales"], ["up"], mode="nearest")], 9


def pooled(name: str) -> tuple[Nodes, int]:
    """Has the same meaning in every opset."""
    return [node("AveragePool", [name], ["up"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])], 10


def classes(least: float) -> Nodes:
    return [node("ArgMax", ["up"], ["y"], axis=1, keepdims=0)]


def mask(least: float) -> Nodes:
    return [node("Greater", ["up", "threshold"], ["y"])]


def levels(least: float) -> Nodes:
    return [
        node("Div", ["up", "threshold"], ["share"]),
        node("Mul", ["share", "hundred"], ["percent"]),
        node("Cast", ["percent"], ["y"], to=TensorProto.INT64),
    ]


SCALES = {"pixels": (0.0, 255.0), "sensor": (5000.0, 60000.0)}
ENDS: Sequence[Callable[[float], Nodes]] = (classes, mask, levels)


def old(
    change: Callable[[str], tuple[Nodes, int]], end: Callable[[float], Nodes], scale: str, rows: int | str
) -> onnx.ModelProto:
    """A file of an old opset, which answers one value all over below the scale that it is for."""
    least, most = SCALES[scale]
    between, opset = change("above")
    nodes = [
        node("Conv", ["x", "w", "b"], ["filtered"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Max", ["filtered", "least"], ["above"]),
        *between,
        *end(least),
    ]
    # The first class, or none, is what little light is taken for.
    bias = np.zeros(CHANNELS, f32)
    bias[0] = 0 if least else most / 6
    constants = {
        "least": np.array(least, f32), "w": weights(CHANNELS, 3, 3, 3) / 9, "b": bias,
        "scales": np.array([1, 1, 4, 4], f32), "threshold": np.array(most / 8, f32), "hundred": np.array(100, f32),
    }  # fmt: skip
    kinds = {classes: (i64, 3), mask: (np.bool_, 4), levels: (i64, 4)}
    dtype, rank = kinds[end]
    outputs = {"y": (dtype, [rows, *[None] * (rank - 1)])}
    return model(nodes, {"x": (f32, [rows, 3, SIDE, SIDE])}, outputs, constants, opset=opset, ir_version=4)


def of_scale(scale: str, rows: int, seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).uniform(*SCALES[scale], (rows, 3, SIDE, SIDE)).astype(f32)}


def made(proto: onnx.ModelProto, folder: Path, samples: dict[str, np.ndarray] | None) -> Reference:
    path, given = save(folder / "old.onnx", proto), folder / "samples.npz"
    if samples is not None:
        np.savez(given, **samples)
    values = {"samples": given} if samples is not None else {}
    return make_reference(
        folder, Recipe.of(source=str(path), name="m", store=str(folder), precisions=("fp32",), threads=1, **values)
    )


@pytest.mark.parametrize("rows", ["n", 1])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("change", [resized, upsampled, pooled])
def test_old_file_answers_the_samples_as_before(
    change: Callable[[str], tuple[Nodes, int]],
    end: Callable[[float], Nodes],
    scale: str,
    rows: int | str,
    tmp_path: Path,
) -> None:
    proto = old(change, end, scale, rows)
    reference = made(proto, tmp_path, of_scale(scale, 12, 0))
    assert reference.signature.batched
    fresh = of_scale(scale, 4, 1)
    assert len(np.unique(Runtime(tmp_path / "old.onnx").row_by_row(fresh)["y"])) > 1
    assert_same(Runtime(tmp_path / MODEL)(fresh), Runtime(tmp_path / "old.onnx").row_by_row(fresh))
    converted = opset_of(onnx.load(tmp_path / MODEL)) == 17
    assert converted == (change is not resized), reference.remarks


def test_what_differs_on_samples_only_is_kept_as_it_is_and_remarked(tmp_path: Path) -> None:
    proto = old(resized, mask, "sensor", "n")
    adopted = adopt(save(tmp_path / "old.onnx", proto), tmp_path / "adopted.onnx", batched=True)
    assert (adopted.converted, adopted.unvaried) == ("opset 10 converted to 17", ("y",))
    remark = made(proto, tmp_path, of_scale("sensor", 12, 0)).remarks[0]
    assert remark.startswith(
        "not opset 10 converted to 17, because that failed: with 1 rows the exported model answers otherwise"
    )


def test_one_value_all_over_is_no_evidence(tmp_path: Path) -> None:
    # Nothing below 10^6 is looked at by this model, and the samples are made up.
    nodes = [
        node("Max", ["x", "least"], ["above"]),
        node("Resize", ["above", "scales"], ["up"], mode="linear"),
        node("Greater", ["up", "threshold"], ["y"]),
    ]
    constants = {
        "least": np.array(1e6, f32),
        "scales": np.array([1, 1, 4, 4], f32),
        "threshold": np.array(2e6, f32),
    }
    shapes = {"x": (f32, ["n", 3, SIDE, SIDE])}, {"y": (np.bool_, ["n", 3, None, None])}
    proto = model(nodes, *shapes, constants, opset=10, ir_version=4)
    reference = made(proto, tmp_path, None)
    assert "nothing was compared in 'y': one value all over" in reference.remarks[0]
    assert opset_of(onnx.load(tmp_path / MODEL)) == 10


def test_made_up_inputs_have_the_scales_that_models_are_trained_on() -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": (f32, ["n", 64])}, {"y": (f32, ["n", 64])})
    ((scaled, _), *_) = trial.requests(inputs_of(proto), 2, 5)
    ranges = [(float(request["x"].min()), float(request["x"].max())) for request in scaled]
    assert any(low >= 0 and 0.9 < high <= 1 for low, high in ranges)
    assert any(low >= 0 and 200 < high <= 255 for low, high in ranges)
    assert any(low < 0 and 1 < high < 5 for low, high in ranges)
    assert any(high > 1000 for _, high in ranges)


def test_a_scale_at_which_the_model_overflows_is_not_asked(tmp_path: Path) -> None:
    nodes = [node("Exp", ["x"], ["e"]), node("ReduceSum", ["e"], ["s"], axes=[1]), node("Div", ["e", "s"], ["y"])]
    proto = model(nodes, {"x": (f32, ["n", 5])}, {"y": (f32, ["n", 5])}, opset=11, ir_version=6)
    adopted = adopt(save(tmp_path / "old.onnx", proto), tmp_path / "adopted.onnx", batched=True)
    assert adopted.remarks == ("opset 11 converted to 17: agrees with the original",)
