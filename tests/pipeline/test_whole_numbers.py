"""Whole numbers of every type: small ones, large ones, and of a sign that the samples never have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from enginehouse.contract import probes
from enginehouse.contract.bounds import Region, Values
from enginehouse.contract.tensors import TensorSpec
from enginehouse_build.judge.beyond import _spread
from enginehouse_build.reference.onnx import signature_of

from .graphs import f32, i64, model, node, weights
from .test_blank import on_openvino, wrong
from .test_probes import ARTIFACT, made

#: What is made of x: numbers that OpenVINO computes in other types than ONNX Runtime.
COMPUTED: dict[str, list[onnx.NodeProto]] = {
    "unsigned": [node("Cast", ["x"], ["u"], to=12), node("Cast", ["u"], ["f"], to=1)],
    "word": [node("Cast", ["x"], ["u"], to=4), node("Cast", ["u"], ["f"], to=1)],
    "byte": [node("Cast", ["x"], ["u"], to=2), node("Cast", ["u"], ["f"], to=1)],
    "energy": [node("Cast", ["x"], ["i"], to=7), node("Mul", ["i", "i"], ["q"]), node("Cast", ["q"], ["f"], to=1)],
    "cube": [
        node("Cast", ["x"], ["i"], to=7),
        node("Mul", ["i", "i"], ["q"]),
        node("Mul", ["q", "i"], ["c"]),
        node("Cast", ["c"], ["f"], to=1),
    ],
    "total": [
        node("Cast", ["x"], ["i"], to=7),
        node("Mul", ["i", "i"], ["q"]),
        node("ReduceSum", ["q", "axes"], ["s"]),
        node("Sub", ["s", "i"], ["t"]),
        node("Cast", ["t"], ["f"], to=1),
    ],
    "remainder": [node("Mod", ["x", "seven"], ["r"]), node("Cast", ["r"], ["f"], to=1)],
    "quotient": [node("Div", ["x", "seven"], ["q"]), node("Cast", ["q"], ["f"], to=1)],
    "as it is": [node("Cast", ["x"], ["f"], to=1)],
}
DTYPES = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16]
#: By type the samples' least and largest number, as far as the type goes.
RANGES = [(0, 100), (0, 2**20), (-800, 800), (-100, 0), (20, 120)]
#: ONNX Runtime has none of these types for the operator.
NOT_THERE = {("remainder", np.int16), ("quotient", np.int16), ("quotient", np.uint16), ("remainder", np.uint16)}


def computed(name: str, dtype: Any) -> onnx.ModelProto:
    parts = {"w": weights(8, 4), "seven": np.array(7, dtype), "axes": np.array([1])}
    nodes = [*COMPUTED[name], node("MatMul", ["f", "w"], ["y"])]
    return model(nodes, {"x": (dtype, ["n", 8])}, {"y": (f32, ["n", 4])}, parts)


def within(dtype: Any, low: int, high: int, rows: int, seed: int) -> np.ndarray:
    info = np.iinfo(dtype)
    numbers = np.random.default_rng(seed).integers(max(low, info.min), min(high, info.max) + 1, (rows, 8))
    return numbers.astype(dtype)


def fresh(dtype: Any) -> list[np.ndarray]:
    """Numbers of all sizes and signs, close to one another and not, full rows among them."""
    info, generator = np.iinfo(dtype), np.random.default_rng(9)
    found = [np.full((1, 8), value, dtype) for value in (0, 1, info.max, info.min)]
    for bits in range(1, min(int(info.bits), 32)):
        for low in {max(-(2**bits), info.min), 0}:
            numbers = generator.integers(low, min(2**bits, int(info.max)), (2, 8))
            found += [numbers.astype(dtype), np.full((1, 8), numbers[0, 0], dtype)]
    return found


@pytest.mark.parametrize("at", range(12))
def test_what_openvino_answers_of_whole_numbers_is_right_or_beyond_its_bounds(tmp_path: Path, at: int) -> None:
    # Each of the types with four computations and ranges, which are other ones for each.
    kinds = [(name, dtype) for dtype in DTYPES for name in COMPUTED if (name, dtype) not in NOT_THERE]
    for turn, (name, dtype) in enumerate(kinds[at::12]):
        low, high = RANGES[(at + turn) % len(RANGES)]
        samples = {"x": within(dtype, low if np.iinfo(dtype).min else max(low, 0), max(high, 1), 32, at)}
        folder = tmp_path / str(turn)
        folder.mkdir()
        with on_openvino(folder, computed(name, dtype), samples) as (right, engine, bounds):
            for x in fresh(dtype):
                assert wrong(right, engine, bounds, {"x": x}) is None, (name, dtype, (low, high), x, bounds)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, i64])
@pytest.mark.parametrize("high", [100, 2**20])
def test_a_sign_that_samples_never_have_is_kept_out_and_nothing_else(tmp_path: Path, dtype: Any, high: int) -> None:
    with on_openvino(tmp_path, computed("unsigned", dtype), {"x": within(dtype, 0, high, 32, 0)}) as (_, _, bounds):
        assert Values({"x": -within(dtype, 1, 100, 2, 1)}).beyond(bounds)
        assert not Values({"x": within(dtype, 0, high, 4, 2)}).beyond(bounds)
        bound = bounds["x"]
        assert isinstance(bound, Region)
        assert bound.at_least == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_right_all_over_have_no_bounds(tmp_path: Path, dtype: Any) -> None:
    with on_openvino(tmp_path, computed("as it is", dtype), {"x": within(dtype, 0, 100, 32, 0)}) as (_, _, bounds):
        # OpenVINO keeps 32 bits.
        assert bounds == ({"x": 2**31} if dtype is i64 else {})


def test_a_mask_has_bounds_of_its_own_beside_ids_that_are_large(tmp_path: Path) -> None:
    """What a mask may hold says nothing about the ids beside it."""
    nodes = [
        node("Cast", ["id"], ["f"], to=1),
        node("Cast", ["mask"], ["u"], to=12),
        node("Cast", ["u"], ["m"], to=1),
        node("Mul", ["f", "m"], ["y"]),
    ]
    proto = model(nodes, {"id": (i64, ["n", 8]), "mask": (i64, ["n", 8])}, {"y": (f32, ["n", 8])})
    generator = np.random.default_rng(0)
    samples = {"id": generator.integers(0, 10**6, (32, 8)), "mask": generator.integers(0, 2, (32, 8))}
    with on_openvino(tmp_path, proto, samples) as (_, _, bounds):
        assert not Values(samples).beyond(bounds)
        assert Values({**samples, "mask": -samples["mask"]}).beyond(bounds).startswith("input 'mask'")


@pytest.mark.parametrize("high", [20000, 30000])
def test_int8_is_not_asked_for_small_numbers_beside_large_ones_nor_for_larger_ones(tmp_path: Path, high: int) -> None:
    samples = {"x": within(np.int16, 0, high, 32, 0)}
    right, probed = made(tmp_path, computed("as it is", np.int16), samples)

    def coarse(request: Any) -> Any:
        return right({"x": np.clip(np.round(request["x"] / 250), 0, high // 250).astype(np.int16) * np.int16(250)})

    artifact = ARTIFACT.model_copy(update={"precision": "int8"})
    bounds, _ = probes.found("openvino-cpu", coarse, artifact, probed)
    assert bounds == {"x": Region(at_least=0)}, "negative ones were cut off"


def test_numbers_of_all_sizes_are_of_the_signs_that_samples_have() -> None:
    (spec,) = signature_of(computed("as it is", np.int16), True).inputs
    for low, high, signs in ((0, 9, {1}), (-9, -1, {-1}), (-9, 9, {-1, 1})):
        numbers = _spread(spec, within(np.int16, low, high, 64, 0), np.random.default_rng(0))
        assert {*np.sign(numbers).ravel().tolist()} == signs
        assert np.abs(numbers.astype(int)).max() > 2**13


@pytest.mark.parametrize("dtype", [*np.typecodes["AllInteger"]])
def test_numbers_of_all_sizes_fit_every_type(dtype: str) -> None:
    spec = TensorSpec("x", np.dtype(dtype), (None, 8))
    numbers = _spread(spec, np.arange(1, 65, dtype=dtype).reshape(8, 8), np.random.default_rng(0))
    most = min(int(np.iinfo(dtype).max), 1 << 24)
    assert numbers.dtype == np.dtype(dtype)
    assert int(numbers.min()) >= 1 and most // 4 <= int(numbers.max()) <= most
