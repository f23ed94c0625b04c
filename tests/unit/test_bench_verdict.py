"""What makes a figure count, and what is said when it does not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from enginehouse.tools.bench import Figure, Latency, Usage, judge
from enginehouse.tools.bench.figure import percentile
from enginehouse.tools.bench.limit import Limit

GOOD = Figure(
    scenario="closed-loop",
    generator="wrk",
    connections=8,
    seconds=10.0,
    answers=1000,
    rows=2,
    errors=0,
    latency=Latency(p50=10, p90=15, p99=20, mean=11, worst=30),
    usage=Usage(seconds=10, serving_s=5, own_s=1, foreign_s=0.4, cores=2),
    generator_busy=0.1,
    windows=(98, 100, 102, 100, 100),
)
LIMIT = Limit("onnxruntime-cpu", "onnx-fp32", 1, 1, 8, 1000.0, 1.0, (990, 1000, 1010))


def test_a_good_figure_is_valid() -> None:
    assert judge(GOOD, limit=LIMIT).valid
    assert str(judge(GOOD)) == "VALID"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seconds": 3.0}, "measured for 3.0 s, at least 5 s"),
        ({"answers": 331}, "331 answers, a p99 needs 662 (--seconds 20)"),
        ({"scenario": "single-stream", "answers": 63}, "63 answers, a p90 needs 64"),
        ({"errors": 2, "error": "2 x timeout"}, "2 requests failed, such as 2 x timeout"),
        ({"bound_ms": 19.0}, "p99 20.0 ms is above the bound of 19 ms"),
        ({"windows": (100, 100, 111)}, "between 100.0 and 111.0 answers/s, more than 10% apart"),
        ({"windows": (0, 100)}, "between 0.0 and 100.0"),
        ({"generator_busy": 0.9}, "wrk was busy for 90% of the time"),
        ({"late_ms": 2.5}, "wrk sent 2.5 ms late (p99), 2.0 ms are allowed"),
        ({"limited_by": "it was late"}, "no higher rate was reached: it was late"),
        ({"usage": Usage(10, 5, 1, 3.0, 2)}, "other processes used 15% of the CPUs"),
    ],
)
def test_each_rule_says_what_breaks_it(change: dict[str, object], reason: str) -> None:
    verdict = judge(replace(GOOD, **change))  # type: ignore[arg-type]
    assert not verdict.valid
    (told,) = verdict.reasons
    assert reason in told
    assert str(verdict) == f"INVALID: {told}"


def test_no_answer_at_all_keeps_no_bound() -> None:
    nothing = replace(GOOD, answers=0, errors=5, latency=Latency.of({}), bound_ms=10.0)
    reasons = "; ".join(judge(nothing).reasons)
    assert "0 answers" in reasons
    assert "above the bound" in reasons
    assert math.isnan(nothing.cpu_ms)


def test_offline_counts_rows_and_needs_no_percentile() -> None:
    assert judge(replace(GOOD, scenario="offline", answers=100)).valid


def test_a_limit_that_moved_makes_the_share_worthless() -> None:
    verdict = judge(GOOD, limit=LIMIT.and_again(replace(LIMIT, rows_per_s=800.0, windows=(800, 800))))
    assert "the in-process limit lies between 800.0 and 1,010.0 rows/s" in str(verdict)


def test_two_limits_are_averaged() -> None:
    both = LIMIT.and_again(replace(LIMIT, rows_per_s=1100.0, cpu_ms=1.2))
    assert (both.rows_per_s, both.cpu_ms) == (1050.0, pytest.approx(1.1))


def test_what_a_figure_derives() -> None:
    assert (GOOD.answers_per_s, GOOD.rows_per_s, GOOD.cpu_ms) == (100, 200, 5)
    assert GOOD.usage.foreign_share == pytest.approx(0.02)


def test_percentiles_are_of_the_nearest_rank() -> None:
    hundred = {float(value): 1 for value in range(1, 101)}
    assert [percentile(hundred, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert percentile({1.0: 99, 7.0: 1}, 0.99) == 1.0
    assert percentile({1.0: 98, 7.0: 2}, 0.99) == 7.0
    assert math.isnan(percentile({}, 0.5))
