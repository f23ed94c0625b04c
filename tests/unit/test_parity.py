"""The figures of parity, on answers whose distance is known."""

from __future__ import annotations

import re

import numpy as np
import pytest

from enginehouse.contract.errors import ParityFailed
from enginehouse.contract.manifest import MetricRecord, Parity
from enginehouse.contract.parity import LIMITS, Comparison, compare, first_difference, gate

WANT = np.array([[3.0, 4.0], [0.0, 5.0]])


def test_equal_answers_are_at_no_distance() -> None:
    figures = compare({"y": WANT.copy()}, {"y": WANT})
    assert (figures.relative_l2, figures.worst_row, figures.cosine, figures.top1) == (0, 0, 1, (2, 2))


def test_distance_is_relative_to_the_whole_batch_and_to_each_row() -> None:
    figures = compare({"y": WANT + np.array([[0.0, 0.0], [0.0, 0.5]])}, {"y": WANT})
    assert figures.relative_l2 == pytest.approx(0.5 / np.sqrt(50))
    assert figures.worst_row == pytest.approx(0.1)


def test_worst_output_counts() -> None:
    figures = compare({"good": WANT, "bad": WANT[:, ::-1]}, {"good": WANT, "bad": WANT})
    assert figures.output == "bad"
    assert figures.top1 == (0, 2)
    assert figures.cosine == pytest.approx(0.0)


@pytest.mark.parametrize("scores", [np.ones((3, 4)), np.full((2, 2), -7.0), np.zeros((1, 9)), np.array([[0.2, 1, 1]])])
def test_of_scores_that_are_equal_up_to_rounding_any_is_the_first(scores: np.ndarray) -> None:
    for place in np.flatnonzero(scores[0] == scores[0].max()):
        got = scores.astype(np.float32)
        got[:, place] = np.nextafter(got[:, place], np.float32(np.inf))
        assert compare({"y": got}, {"y": scores}).top1 == (len(scores), len(scores))
    got[:, 0] = 2
    assert compare({"y": got}, {"y": scores + np.arange(scores.shape[1]) * 1e-4}).top1 == (0, len(scores))


def test_row_of_zeros_is_measured_on_the_scale_of_the_others() -> None:
    want = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert compare({"y": want + np.array([[1e-7, 0], [0, 0]])}, {"y": want}).worst_row < 1e-6


def test_nan_equals_nan_and_infinity_itself() -> None:
    want = np.array([[np.nan, 1.0], [np.inf, 2.0]])
    assert compare({"y": want.copy()}, {"y": want}).relative_l2 == 0


def test_answers_without_any_finite_value_verify_nothing() -> None:
    nothing = {"y": np.full((2, 3), np.nan)}
    with pytest.raises(ParityFailed, match="no finite value to compare in 6"):
        compare(nothing, nothing)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_value_that_is_finite_on_one_side_only_fails(wrong: float) -> None:
    got = WANT.copy()
    got[1, 0] = wrong
    with pytest.raises(ParityFailed, match=r"output 'y': 1 of 4 values are not finite.*first at \[1, 0\]"):
        compare({"y": got}, {"y": WANT})


def test_other_shape_and_missing_output_fail() -> None:
    with pytest.raises(ParityFailed, match=r"shape \[1, 2\], the reference \[2, 2\]"):
        compare({"y": WANT[:1]}, {"y": WANT})
    with pytest.raises(ParityFailed, match="output 'y' is missing; there are z"):
        compare({"z": WANT}, {"y": WANT})


def test_text_and_whole_numbers_are_compared_too() -> None:
    words = np.array([b"a", b"b"], dtype=object)
    assert compare({"y": words[::-1]}, {"y": words}).differing == 1.0
    labels = np.array([7, 8], dtype=np.int64)
    assert compare({"y": labels}, {"y": labels}).differing == 0
    assert compare({"y": labels}, {"y": labels}).top1 is None


def parity(**changes: object) -> Parity:
    comparison = Comparison()
    comparison.add({"y": WANT}, {"y": WANT}, 2)
    return comparison.parity("onnxruntime-cpu", LIMITS["fp32"].relative_l2).model_copy(update=changes)


def test_equal_answers_pass_the_gate_of_every_precision() -> None:
    for precision in LIMITS:
        gate("a", LIMITS[precision], parity())


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"relative_l2": 2e-4}, r"relative L2 2.00e-04 of output 'y', limit 1e-04"),
        ({"worst_row": 0.01}, r"worst row 1.00e-02, limit 1e-03"),
        ({"cosine": 0.9}, r"cosine 0.900000, limit 0.9999"),
        ({"top1_agreement": 0.9, "top1_rows": 40}, r"top-1 agreement 90.0%, limit 99%"),
        ({"differing": 0.5}, r"50.0% of the whole numbers differ, limit 0.1%"),
        (
            {"metric": MetricRecord(name="accuracy", reference=0.98, value=0.95, max_drop=0.01, rows=360)},
            r"accuracy 0.9500 instead of 0.9800 on 360 rows, a drop of 0.0300 with 0.01 allowed",
        ),
    ],
)
def test_each_figure_past_its_limit_fails_and_is_named(changes: dict[str, object], fault: str) -> None:
    with pytest.raises(ParityFailed, match=rf"onnx-fp32 on onnxruntime-cpu is too far .*: {fault}(; if that|$)"):
        gate("onnx-fp32", LIMITS["fp32"], parity(**changes))


def test_few_rows_say_nothing_about_a_rate_and_a_gain_is_no_drop() -> None:
    gain = MetricRecord(name="accuracy", reference=0.95, value=0.98, max_drop=0.0, rows=360)
    gate("a", LIMITS["fp32"], parity(top1_agreement=0.5, top1_rows=2, metric=gain))


def test_the_worst_of_all_requests_counts() -> None:
    comparison = Comparison()
    comparison.add({"y": WANT}, {"y": WANT}, 2)
    comparison.add({"y": WANT * 1.5}, {"y": WANT}, 1)
    figures = comparison.parity("e", 1.0)
    assert (figures.relative_l2, figures.rows, figures.top1_rows) == (pytest.approx(0.5), (1, 2), 4)


def test_bits_cut_from_whole_numbers_are_seen_at_any_magnitude() -> None:
    ids = np.array([2**40 + 1, 3], dtype=np.int64)
    assert compare({"y": ids & 0xFFFFFFFF}, {"y": ids}).differing == 0.5


@pytest.mark.parametrize(
    ("got", "want", "fault"),
    [
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]], None),
        ([[1, 2], [3, 5]], [[1, 2], [3, 4]], "in 1 of 2 rows and 25.0% of its values, first in row 1: 5 instead of 4"),
        ([["a"], ["b"]], [["a"], ["c"]], "first in row 1: b instead of c"),
        ([[1.0], [np.nan]], [[1.0], [np.nan]], None),
        ([[1.0], [np.nan]], [[1.0], [2.0]], "first in row 1: nan instead of 2.0 .* not finite on one side"),
        ([[np.inf], [1.0]], [[-np.inf], [1.0]], "first in row 0: inf instead of -inf"),
        # Far below the limit of the whole, which a large row decides.
        ([[1e6, 1e6], [1.0, 1e4]], [[1e6, 1e6], [1.0, 1.01e4]], "most in row 1"),
        ([[1.0], [1e-9]], [[1.0], [2e-9]], None),
        ([[1.0]], [[1]], r"has shape \[1, 1\] \(float64\) instead of \[1, 1\] \(int64\)"),
        ([[1, 2]], [[1], [2]], "has shape"),
    ],
)
def test_two_answers_are_the_same_in_every_row_or_the_first_is_named(got: list, want: list, fault: str | None) -> None:
    arrays = [np.array(each, object if isinstance(each[0][0], str) else None) for each in (got, want)]
    found = first_difference({"y": arrays[0]}, {"y": arrays[1]}, 1e-4, 1e-4)
    assert (found is None) if fault is None else re.search(fault, str(found)), found
