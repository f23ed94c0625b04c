"""The figures of parity, on answers whose distance is known."""

from __future__ import annotations

import numpy as np
import pytest

from enginehouse.bundle import Artifact
from enginehouse.errors import ParityFailed
from enginehouse_build.parity import batches, compare, gate, take

WANT = np.array([[3.0, 4.0], [0.0, 5.0]])


def test_equal_answers_are_at_no_distance() -> None:
    figures = compare({"y": WANT.copy()}, {"y": WANT})
    assert (figures.relative_l2, figures.worst_row, figures.cosine, figures.top1_agreement) == (0, 0, 1, 1)


def test_distance_is_relative_to_the_whole_batch_and_to_each_row() -> None:
    figures = compare({"y": WANT + np.array([[0.0, 0.0], [0.0, 0.5]])}, {"y": WANT})
    assert figures.relative_l2 == pytest.approx(0.5 / np.sqrt(50))
    assert figures.worst_row == pytest.approx(0.1)


def test_worst_output_counts() -> None:
    figures = compare({"good": WANT, "bad": WANT[:, ::-1]}, {"good": WANT, "bad": WANT})
    assert figures.output == "bad"
    assert figures.top1_agreement == 0.0
    assert figures.cosine == pytest.approx(0.0)


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
    assert compare({"y": words[::-1]}, {"y": words}).relative_l2 == 1.0
    labels = np.array([7, 8], dtype=np.int64)
    assert compare({"y": labels}, {"y": labels}).relative_l2 == 0
    assert compare({"y": labels}, {"y": labels}).top1_agreement is None


def test_artifacts_are_asked_with_one_two_and_most_rows_over_all_samples() -> None:
    samples = {"x": np.arange(10)}
    asked = [request["x"].tolist() for request in batches(samples, 4, batched=True)]
    assert asked == [[0], [0, 1], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    assert [request["x"].tolist() for request in batches(samples, 1, batched=True)][:2] == [[0], [0]]
    assert batches(samples, 1, batched=False) == [samples]
    assert take(samples, 8, 3)["x"].tolist() == [8, 9, 0]


def test_gate_passes_at_its_limit_and_names_the_figures_past_it() -> None:
    from enginehouse.bundle import Parity

    artifact = Artifact(name="onnx-fp32", format="onnx", precision="fp32", status="ready")
    parity = Parity(
        engine="onnxruntime-cpu",
        rows=(1,),
        relative_l2=1e-4,
        worst_row=0.1,
        cosine=0.9,
        top1_agreement=None,
        limit=1e-4,
    )
    gate(artifact, parity)
    with pytest.raises(ParityFailed, match=r"onnx-fp32 on onnxruntime-cpu is 2.00e-04 .*fp32 may be 1e-04"):
        gate(artifact, parity.model_copy(update={"relative_l2": 2e-4}))
