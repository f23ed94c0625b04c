"""Predictions are what was measured, and nothing surprising between and beyond."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.contract.latency import LatencyPoint, LatencyTable

MS = st.floats(0.001, 1e4)
CURVE = st.dictionaries(st.integers(1, 256), MS, min_size=1, max_size=6)
#: Times by rows, by size; slow models have fewer rows at large sizes.
GRID = st.dictionaries(st.integers(1, 4096), CURVE, min_size=1, max_size=5)


def table(grid: dict[int | None, dict[int, float]]) -> LatencyTable:
    points = tuple(
        LatencyPoint(rows=rows, size=size, median_ms=ms, p90_ms=ms, min_ms=ms, count=3)
        for size, curve in grid.items()
        for rows, ms in curve.items()
    )
    return LatencyTable(engine="onnxruntime-cpu", artifact="onnx-fp32", threads=1, host="here", points=points)


@given(GRID)
def test_a_measured_point_is_predicted_exactly(grid: dict[int, dict[int, float]]) -> None:
    measured = table({**grid})
    for size, curve in grid.items():
        assert {rows: measured.predict_ms(rows, size) for rows in curve} == curve


@given(CURVE, st.data())
def test_between_neighbours_a_prediction_moves_from_one_to_the_other(
    curve: dict[int, float], data: st.DataObject
) -> None:
    measured = table({None: curve})
    for low, high in pairwise(sorted(curve)):
        between = sorted(data.draw(st.lists(st.integers(low, high), max_size=5)))
        predicted = [measured.predict_ms(rows) for rows in (low, *between, high)]
        if curve[low] > curve[high]:
            predicted.reverse()
        assert all(before <= after * (1 + 1e-12) for before, after in pairwise(predicted))


@given(GRID, st.integers(1, 512), st.data())
def test_between_two_sizes_a_prediction_lies_between_theirs(
    grid: dict[int, dict[int, float]], rows: int, data: st.DataObject
) -> None:
    measured = table({**grid})
    for low, high in pairwise(sorted(grid)):
        ends = sorted(measured.predict_ms(rows, size) for size in (low, high))
        predicted = measured.predict_ms(rows, data.draw(st.integers(low, high)))
        assert ends[0] * (1 - 1e-12) <= predicted <= ends[1] * (1 + 1e-12)


@given(CURVE, st.integers(1, 8))
def test_beyond_the_largest_measured_rows_time_is_proportional(curve: dict[int, float], factor: int) -> None:
    largest = max(curve)
    assert table({None: curve}).predict_ms(largest * factor) == pytest.approx(curve[largest] * factor)


def test_below_the_smallest_measured_rows_and_size_time_does_not_fall() -> None:
    measured = table({64: {4: 3.0, 8: 5.0}, 128: {4: 4.0}})
    assert measured.predict_ms(1, 1) == measured.predict_ms(4, 64) == 3.0


def test_time_is_linear_in_rows_and_in_size() -> None:
    measured = table({100: {1: 1.0, 3: 2.0}, 300: {1: 5.0, 3: 10.0}})
    assert measured.predict_ms(2, 100) == 1.5
    assert measured.predict_ms(2, 200) == 4.5
    assert measured.predict_ms(2, 600) == 15.0
    assert measured.predict_ms(6, 600) == 40.0


def test_without_a_size_the_largest_counts() -> None:
    measured = table({100: {1: 1.0}, 300: {1: 5.0}})
    assert measured.predict_ms(1) == measured.predict_ms(1, 300) == 5.0
    assert measured.rows_per_s(1) == 200.0


def test_a_size_says_nothing_about_a_model_without_a_cost_axis() -> None:
    measured = table({None: {1: 2.0, 4: 5.0}})
    assert measured.predict_ms(4, 512) == 5.0
    assert measured.sizes == ()


def test_points_of_one_size_come_by_rows() -> None:
    measured = table({300: {4: 9.0, 1: 5.0}, 100: {1: 1.0}})
    assert [(point.rows, point.median_ms) for point in measured.at(300)] == [(1, 5.0), (4, 9.0)]
    assert measured.at(200) == measured.at(None) == ()
    assert measured.sizes == (100, 300)


def test_a_table_is_the_same_after_it_was_used() -> None:
    used, unused = table({None: {1: 2.0}}), table({None: {1: 2.0}})
    used.predict_ms(1)
    assert used == unused
    assert pickle.loads(pickle.dumps(used)) == unused
    assert used.model_dump_json() == unused.model_dump_json()


def test_the_efficient_batch_is_the_smallest_that_comes_close_to_the_best_rate() -> None:
    # Rows per millisecond: 0.1, 0.111, 0.112, 0.08.
    assert table({None: {1: 10, 2: 18, 8: 71.4, 16: 200}}).efficient_rows(16) == 2
    assert table({None: {1: 10, 8: 10}}).efficient_rows(8) == 8
    assert table({16: {1: 1, 4: 1}, 64: {1: 1, 4: 4}}).efficient_rows(4, size=16) == 4
    assert table({16: {1: 1, 4: 1}, 64: {1: 1, 4: 4}}).efficient_rows(4, size=64) == 1


def test_a_table_that_ends_before_the_largest_batch_says_nothing_about_it() -> None:
    assert table({None: {1: 10}}).efficient_rows(32) == 32
    assert table({None: {1: 10, 8: 40}}).efficient_rows(32) == 32
