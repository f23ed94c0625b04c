"""What a job says of itself while it runs."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from enginehouse.faces.scoring import progress
from enginehouse.faces.scoring.ledger import Line
from enginehouse.faces.scoring.progress import Progress, duration

LINE = Line("u", 100, 98, 2, {"null": 2}, "u.parquet", 1, "", "", {"a": 98}, {}, pool="a")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_say_rows_rate_time_left_rejected_and_shares(clock: list[float]) -> None:
    said = io.StringIO()
    shown = Progress(1000, 0, "lines", said)
    clock[0] += 60
    shown.add(None)
    for pool in ("a", "a", "a", "b", "b"):
        clock[0] += 10
        shown.add(replace(LINE, pool=pool))
    first, *_, last = said.getvalue().splitlines()
    assert first == "0 of 1,000 rows (0 %)"
    assert last == "500 of 1,000 rows (50 %), 10 rows/s, 50 s left, 10 rejected, a 60 %, b 40 %"


def test_what_was_done_before_counts_for_the_share_and_not_for_the_rate(clock: list[float]) -> None:
    said = io.StringIO()
    shown = Progress(1000, 600, "json", said)
    for _ in range(2):
        clock[0] += 5
        shown.add(LINE)
    assert json.loads(said.getvalue().splitlines()[-1]) == {
        "rows": 800,
        "of": 1000,
        "rows_per_s": 20.0,
        "seconds_left": 10.0,
        "rejected": 4,
        "pools": {"a": 200},
    }


def test_durations_are_said_as_people_do() -> None:
    assert [duration(each) for each in (0.25, 9.94, 61, 600, 9000)] == [
        "0.2 s",
        "9.9 s",
        "61 s",
        "10 min",
        "2 h 30 min",
    ]
