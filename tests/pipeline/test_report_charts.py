"""The curves of the report: all there, inside their plot, readable, the right way up."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from enginehouse.contract.latency import LatencyPoint
from enginehouse.contract.manifest import Manifest
from enginehouse_build.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, charts
from enginehouse_build.report.findings import Findings

from .manifests import bare, encoder, resnet18


def test_there_are_curves_over_rows_and_over_the_cost_axis() -> None:
    assert [chart.title for chart in charts(Findings(resnet18()))] == ["Latency of a call, ms", "Throughput, rows/s"]
    assert [chart.title for chart in charts(Findings(encoder()))] == [
        "Latency of a call, ms, sequence 128",
        "Throughput, rows/s, sequence 128",
        "Latency of a call, ms, 1 row",
        "Latency of a call, ms, 32 rows",
    ]
    assert charts(Findings(bare())) == ()


@pytest.mark.parametrize("made", [resnet18, encoder])
def test_curves_keep_to_their_plot_and_labels_keep_apart(made: Callable[[], Manifest]) -> None:
    for chart in charts(Findings(made())):
        assert len(chart.curves) == len(made().latency)
        for curve in chart.curves:
            assert all(LEFT <= mark.x <= RIGHT and TOP <= mark.y <= BOTTOM for mark in curve.marks)
            assert [mark.x for mark in curve.marks] == sorted(mark.x for mark in curve.marks)
        heights = sorted(curve.label_y for curve in chart.curves)
        assert all(below - above >= 13.9 for above, below in itertools.pairwise(heights))
        assert heights[0] >= TOP
        assert heights[-1] <= HEIGHT
        assert len(chart.y_ticks) >= 3


def test_slower_is_higher_in_latency_and_lower_in_throughput() -> None:
    latency, throughput = charts(Findings(resnet18()))
    for at in range(6):
        by_latency = sorted(latency.curves, key=lambda curve: -curve.marks[at].y)
        by_throughput = sorted(throughput.curves, key=lambda curve: curve.marks[at].y)
        assert [curve.speed.label for curve in by_latency] == [curve.speed.label for curve in by_throughput]
        assert by_latency[0].speed.label == "openvino-int8"


def test_equal_times_and_many_sizes_of_batch_still_make_a_chart() -> None:
    rows = [2**power for power in range(17)]
    points = tuple(LatencyPoint(rows=r, median_ms=1.0, p90_ms=1.0, min_ms=1.0, count=3) for r in rows)
    manifest = bare().model_copy(
        update={"max_batch": rows[-1], "latency": (bare().latency[0].model_copy(update={"points": points}),)}
    )
    latency, throughput = charts(Findings(manifest))
    assert len(latency.curves[0].marks) == len(rows)
    assert all(right.at - left.at >= 30 for left, right in itertools.pairwise(latency.x_ticks))
    assert [tick.text for tick in throughput.y_ticks] == ["1,000", "10k", "100k", "1M", "10M", "100M"]
