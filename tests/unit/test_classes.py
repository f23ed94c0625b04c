"""Each class of an output of classes has to be found often enough, however rare it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.contract.errors import ParityFailed
from enginehouse.contract.manifest import Precision
from enginehouse.contract.parity import LIMITS, compare_all, gate, limits_of
from enginehouse.contract.slices import Slices

LOWER: tuple[Precision, ...] = ("fp16", "bf16", "int8")
SHAPES = [(8, 32, 32), (400, 20), (8000,)]


def class_map(generator: np.random.Generator, shape: tuple[int, ...], rare: int, dtype: Any) -> np.ndarray:
    """Classes 0 to 3 in about equal parts, and `rare` places of class 7 (or True among False)."""
    classes = np.zeros(shape, bool) if dtype is np.bool_ else generator.integers(0, 4, shape)
    places = generator.choice(classes.size, rare, replace=False)
    classes.reshape(-1)[places] = 7
    return classes.astype(dtype)


def judge(precision: Precision, got: np.ndarray, want: np.ndarray, pieces: int = 1, limit: float | None = None) -> None:
    slices = Slices()
    limits = limits_of(precision, limit)
    pairs = zip(np.array_split(got, pieces), np.array_split(want, pieces), strict=True)
    for part, wanted in pairs:
        slices.add({"y": part}, {"y": wanted})
    slices.gate("onnx-" + precision, "onnxruntime-cpu", limits)
    gate("a", limits, compare_all("e", lambda _: {"y": got}, [({"x": got}, {"y": want})], 1))


def lost(want: np.ndarray, value: int, share: float) -> np.ndarray:
    """`want` with this share of the places of `value` taken for others."""
    got = want.copy()
    places = np.flatnonzero(want == value)
    got.reshape(-1)[places[: round(share * len(places))]] = 0
    return got


@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("precision", LOWER)
@given(
    st.integers(0, 99),
    st.sampled_from(SHAPES),
    st.integers(20, 150),
    st.sampled_from([np.int64, np.int32, np.uint8, np.bool_, np.int8]),
    st.sampled_from([1, 8]),
)
def test_a_rare_class_that_is_lost_fails_and_one_that_is_mostly_found_passes(
    precision: Precision, seed: int, shape: tuple[int, ...], rare: int, dtype: Any, pieces: int
) -> None:
    want = class_map(np.random.default_rng(seed), shape, rare, dtype)
    value = int(np.array(7).astype(dtype))
    limit = LIMITS[precision].of_class
    with pytest.raises(
        ParityFailed, match=rf"of the {rare} values that are {value} it finds \d+, .*--limit {precision}"
    ):
        judge(precision, lost(want, value, 1 - limit + 0.06), want, pieces)
    judge(precision, lost(want, value, 1 - limit - 0.06), want, pieces)


@pytest.mark.parametrize("precision", LOWER)
def test_a_class_that_is_seen_where_it_is_not_fails(precision: Precision) -> None:
    want = class_map(np.random.default_rng(0), (8, 64, 64), 40, np.int64)
    got = want.copy()
    got.reshape(-1)[np.flatnonzero(want == 1)[:50]] = 7
    with pytest.raises(ParityFailed, match="of the 40 values that are 7 it finds 40, and 90 are 7 by it"):
        judge(precision, got, want)


@pytest.mark.parametrize("precision", LOWER)
def test_too_few_of_a_class_prove_nothing(precision: Precision) -> None:
    want = class_map(np.random.default_rng(1), (8, 64, 64), 19, np.int64)
    judge(precision, lost(want, 7, 1), want)


@pytest.mark.parametrize("kind", ["ids", "far apart", "huge", "text"])
def test_what_is_no_class_is_left_to_the_share_that_differs(kind: str) -> None:
    generator = np.random.default_rng(2)
    want = generator.integers(0, 5000, 200_000)
    want = {"ids": want, "far apart": want % 5 * 10**6, "huge": want % 5 + (2**63 - 10)}.get(kind, want.astype("S4"))
    got = want.copy()
    places = generator.choice(want.size, 400, replace=False)
    got[places] = got[np.roll(places, 1)]
    judge("fp16", got, want)


def test_unsigned_numbers_beyond_63_bits_are_counted_without_error() -> None:
    want = np.full(100, 2**64 - 1, np.uint64)
    judge("int8", want, want)


@pytest.mark.parametrize("precision", LOWER)
@given(share=st.floats(0, 1))
def test_the_limit_that_is_named_lets_it_pass(precision: Precision, share: float) -> None:
    want = class_map(np.random.default_rng(3), (8, 64, 64), 100, np.int64)
    got = lost(want, 7, share)
    try:
        judge(precision, got, want)
    except ParityFailed as error:
        named = float(str(error).rpartition(f"--limit {precision}=")[2])
        judge(precision, got, want, limit=named)


def test_fp32_is_left_to_what_rounding_decides() -> None:
    assert LIMITS["fp32"].of_class == 0
