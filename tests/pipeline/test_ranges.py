"""What real requests show of a model's inside decides what stays in fp32: overflow, whole numbers, unlike ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from enginehouse.contract.errors import ConversionFailed
from enginehouse.contract.parity import LIMITS
from enginehouse_build.convert.fp16 import to_fp16
from enginehouse_build.convert.quantize import quantize_for_onnxruntime
from enginehouse_build.convert.ranges import ranges

from .graphs import Inputs, f32, i64, model, node, save, weights
from .small_nets import ask, ask_exactly, distance

Case = Callable[[float], tuple[onnx.ModelProto, list[Inputs]]]


def feed_forward(scale: float) -> tuple[onnx.ModelProto, list[Inputs]]:
    """A hidden layer that grows by `scale` and shrinks again, and a layer behind it."""
    nodes = [
        node("MatMul", ["x", "up"], ["h"]),
        node("Relu", ["h"], ["a"]),
        node("MatMul", ["a", "down"], ["o"]),
        node("Tanh", ["o"], ["t"]),
        node("MatMul", ["t", "last"], ["y"]),
    ]
    parts = {"up": weights(6, 16) * f32(scale), "down": weights(16, 6) / f32(scale), "last": weights(6, 4)}
    proto = model(nodes, {"x": (f32, ["n", 6])}, {"y": (f32, ["n", 4])}, parts)
    return proto, [{"x": weights(4, 6, seed=seed)} for seed in range(3)]


def squares(scale: float) -> tuple[onnx.ModelProto, list[Inputs]]:
    """A residual stream of this size whose squares a normalisation sums."""
    nodes = [
        node("MatMul", ["x", "up"], ["h"]),
        node("LayerNormalization", ["h", "gain"], ["n"]),
        node("MatMul", ["n", "last"], ["y"]),
    ]
    parts = {"up": weights(6, 16) * f32(scale**0.5), "gain": np.ones(16, f32), "last": weights(16, 4)}
    proto = model(nodes, {"x": (f32, ["n", 6])}, {"y": (f32, ["n", 4])}, parts)
    return proto, [{"x": weights(4, 6, seed=seed)} for seed in range(3)]


def ids(scale: float) -> tuple[onnx.ModelProto, list[Inputs]]:
    """Whole numbers that are compared after a cast to floats."""
    nodes = [
        node("Cast", ["a"], ["fa"], to=1),
        node("Cast", ["b"], ["fb"], to=1),
        node("Sub", ["fa", "fb"], ["d"]),
        node("MatMul", ["d", "w"], ["m"]),
        node("Tanh", ["m"], ["t"]),
        node("MatMul", ["t", "w2"], ["y"]),
    ]
    proto = model(
        nodes, {"a": (i64, ["n", 5]), "b": (i64, ["n", 5])}, {"y": (f32, ["n", 3])},
        {"w": weights(5, 4) / 4, "w2": weights(4, 3)},
    )  # fmt: skip
    generator = np.random.default_rng(0)
    base = [generator.integers(0, max(int(scale / 20), 2), (4, 5)) for _ in range(3)]
    return proto, [{"a": found, "b": found + generator.integers(0, 2, (4, 5))} for found in base]


@pytest.mark.parametrize("case", [feed_forward, squares, ids])
@pytest.mark.parametrize("scale", [1e5, 3e6])
def test_what_fp16_cannot_hold_on_the_samples_stays_in_fp32(tmp_path: Path, case: Case, scale: float) -> None:
    proto, asked = case(scale)
    path = save(tmp_path / "large.onnx", proto)
    with np.errstate(all="ignore"):
        to_fp16(path, tmp_path / "blind.onnx")
        off = distance(ask_exactly(tmp_path / "blind.onnx", asked[0])[0], ask(path, asked[0])[0])
    assert not off < LIMITS["fp16"].relative_l2
    to_fp16(path, tmp_path / "half.onnx", asked)
    for request in asked:
        got, want = ask_exactly(tmp_path / "half.onnx", request)[0], ask(path, request)[0]
        assert 0 < distance(got, want) < LIMITS["fp16"].relative_l2


@pytest.mark.parametrize("case", [feed_forward, squares, ids])
def test_what_fp16_holds_is_converted_as_before(tmp_path: Path, case: Case) -> None:
    proto, asked = case(20.0)
    path = save(tmp_path / "small.onnx", proto)
    assert to_fp16(path, tmp_path / "half.onnx", asked) == to_fp16(path, tmp_path / "blind.onnx") == ""
    assert (tmp_path / "half.onnx").read_bytes() == (tmp_path / "blind.onnx").read_bytes()


def test_where_everything_is_too_large_there_is_no_fp16_and_it_is_said(tmp_path: Path) -> None:
    proto = model(
        [node("MatMul", ["x", "w"], ["y"])], {"x": (f32, ["n", 6])}, {"y": (f32, ["n", 4])}, {"w": weights(6, 4)}
    )
    path = save(tmp_path / "large.onnx", proto)
    with pytest.raises(ConversionFailed, match=r"\d activations are too large for fp16 on the samples, .* in '[xy]'"):
        to_fp16(path, tmp_path / "half.onnx", [{"x": weights(4, 6) * f32(2e4)}])


def test_ranges_are_those_of_all_requests_and_pass_over_what_is_not_finite(tmp_path: Path) -> None:
    nodes = [node("Mul", ["x", "two"], ["d"]), node("Relu", ["d"], ["y"])]
    proto = model(nodes, {"x": (f32, ["n", 2])}, {"y": (f32, ["n", 2])}, {"two": np.array(2, f32)})
    path = save(tmp_path / "m.onnx", proto)
    asked = [
        {"x": np.array([[1, -3]], f32)},
        {"x": np.array([[np.inf, np.nan]], f32)},
        {"x": np.array([[5, 0.25]], f32)},
    ]
    found = ranges(path, asked)
    assert (found["x"].least, found["x"].largest, found["x"].is_whole) == (-3, 5, False)
    assert (found["d"].magnitude, found["d"].width, found["d"].is_whole) == (10, 16, False)
    assert (found["y"].least, found["y"].largest) == (0, 10)
    assert ranges(path, asked[:1])["y"].is_whole
    assert ranges(path, ()) == {}


def detector(folder: Path, scales: Sequence[float]) -> tuple[Path, list[Inputs]]:
    """Convolutions whose answers, of these sizes, meet in a Concat."""
    nodes = [node("Conv", ["x", "w"], ["f"], pads=[1] * 4), node("Relu", ["f"], ["a"])]
    parts = {"w": weights(8, 3, 3, 3) / 5}
    for at, scale in enumerate(scales):
        nodes.append(node("Conv", ["a", f"w{at}"], [f"c{at}"]))
        parts[f"w{at}"] = weights(2, 8, 1, 1, seed=at) * f32(scale / 4)
    nodes.append(node("Concat", [f"c{at}" for at in range(len(scales))], ["y"], name="join", axis=1))
    outputs = {"y": (f32, ["n", 2 * len(scales), 6, 6])}
    path = save(folder / "detector.onnx", model(nodes, {"x": (f32, ["n", 3, 6, 6])}, outputs, parts))
    return path, [{"x": weights(4, 3, 6, 6, seed=seed)} for seed in range(6)]


@pytest.mark.parametrize(
    ("scales", "is_joined"), [((1, 1), True), ((1, 2, 1), True), ((300, 1), False), ((1, 1, 1e-3), False)]
)
def test_int8_joins_only_what_is_of_like_range(tmp_path: Path, scales: Sequence[float], is_joined: bool) -> None:
    path, asked = detector(tmp_path, scales)
    quantize_for_onnxruntime(path, tmp_path / "int8.onnx", asked)
    got, want = ask(tmp_path / "int8.onnx", asked[0])[0], ask(path, asked[0])[0]
    for at in range(len(scales)):
        part = slice(2 * at, 2 * at + 2)
        assert distance(got[:, part], want[:, part]) < LIMITS["int8"].relative_l2
    made_by = {name: found for found in onnx.load(tmp_path / "int8.onnx").graph.node for name in found.output}
    assert (made_by["y"].op_type == "DequantizeLinear") == is_joined
