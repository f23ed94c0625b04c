"""Each part of an answer is measured on its own scale, and an answer that shows nothing is told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from enginehouse.contract.errors import ParityFailed
from enginehouse.contract.manifest import Precision
from enginehouse.contract.parity import LIMITS, compare, gate
from enginehouse.contract.slices import Slices, compare_slices

GENERATOR = np.random.default_rng(0)
PRECISIONS: Sequence[Precision] = ("fp32", "fp16", "bf16", "int8")


def mixed(scales: Sequence[float], axis: int, rows: int = 8) -> np.ndarray:
    """Values of rank 3 whose slices along `axis` have these scales."""
    shape = [rows, 6, 6]
    shape[axis] = len(scales)
    places = [1, 1, 1]
    places[axis] = -1
    return GENERATOR.standard_normal(shape) * np.array(scales).reshape(places)


def judge(got: np.ndarray, want: np.ndarray, precision: Precision, pieces: int = 1) -> None:
    slices = Slices()
    for part, wanted in zip(np.array_split(got, pieces), np.array_split(want, pieces), strict=True):
        slices.add({"y": part}, {"y": wanted})
    slices.gate("a", "e", LIMITS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("scales", [(320, 320, 320, 0.2, 0.4), (1e5, 0.5), (1, 1e-3, 1, 1)])
@pytest.mark.parametrize("pieces", [1, 8])
def test_a_small_part_that_is_lost_beside_a_large_one_fails(
    precision: Precision, axis: int, scales: Sequence[float], pieces: int
) -> None:
    want = mixed(scales, axis)
    smallest = int(np.argmin(scales))
    got = np.moveaxis(want.copy(), axis, 0)
    got[smallest] = 0
    got = np.moveaxis(got, 0, axis)
    if precision == "int8":
        assert compare({"y": got}, {"y": want}).relative_l2 < LIMITS[precision].relative_l2
    with pytest.raises(ParityFailed, match=f"loses parts of its answer: output 'y' at index {smallest} of axis {axis}"):
        judge(got, want, precision, pieces)
    judge(want, want, precision, pieces)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("axis", [1, 2])
def test_rounding_of_each_part_on_its_own_scale_passes(precision: Precision, axis: int) -> None:
    want = mixed((320, 320, 0.2, 4e-2, 1e-9, 0.0), axis)
    off = LIMITS[precision].relative_l2
    got = want + off * GENERATOR.standard_normal(want.shape) * np.sqrt(
        np.mean(want**2, axis=(0, 3 - axis), keepdims=True)
    )
    judge(got, want, precision)


def test_noise_where_nothing_should_be_is_measured_beside_the_others() -> None:
    want = mixed((1, 1, 0), 1)
    judge(want + 1e-3 * GENERATOR.standard_normal(want.shape), want, "int8")
    with pytest.raises(ParityFailed, match="index 2 of axis 1"):
        judge(want + np.array([0, 0, 2.0]).reshape(1, 3, 1), want, "int8")


def test_few_values_say_nothing_of_a_slice() -> None:
    want = np.array([[100.0, 1e-3]])
    judge(want + 0.1, want, "int8")


def test_what_free_axes_and_special_values_leave_is_compared() -> None:
    slices = Slices()
    for length in (4, 7, 4):
        want = mixed((300, 1), 1)[:, :, :1].repeat(length, axis=2)
        want[0, 0, 0] = np.nan
        got = want.copy()
        got[:, 1] = 0
        slices.add({"y": got}, {"y": want})
    with pytest.raises(ParityFailed, match="index 1 of axis 1"):
        slices.gate("a", "e", LIMITS["int8"])


@pytest.mark.parametrize(
    ("answers", "is_proof"),
    [
        ([np.zeros((2, 5))], False),
        ([np.zeros((0, 5)), np.zeros((0, 5))], False),
        ([np.full((2, 5), -1.0), np.full((3, 5), -1.0)], False),
        ([np.full((2, 5), np.nan)], False),
        ([np.zeros((2, 5), np.int64)], False),
        ([np.array(["a", "a"], object)], False),
        ([np.full((1, 1), 0.7)], True),
        ([np.full((2, 5), -1.0), np.full((3, 5), 1.0)], True),
        ([np.array([0.0, 0.0, 1e-9])], True),
        ([np.array(["a", "b"], object)], True),
        ([np.array([3, 3, 4])], True),
    ],
)
def test_an_empty_or_constant_answer_proves_nothing(answers: list[np.ndarray], is_proof: bool) -> None:
    slices = Slices()
    for answer in answers:
        slices.add({"y": answer}, {"y": answer})
    assert slices.unproven() == (() if is_proof else ("y",))


def test_both_gates_see_the_same_answers() -> None:
    want = [{"y": mixed((320, 320, 0.2), 1)} for _ in range(3)]
    got = [{"y": answer["y"] * np.array([1, 1, 0]).reshape(1, 3, 1)} for answer in want]
    requests = [{"x": np.array([[at]])} for at in range(3)]
    pairs = zip(requests, want, strict=True)
    figures, slices = compare_slices("e", lambda request: got[request["x"].item()], pairs, 0.05, batched=True)
    gate("a", LIMITS["int8"], figures)
    with pytest.raises(ParityFailed):
        slices.gate("a", "e", LIMITS["int8"])
