"""What a job is said to take before it does."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from enginehouse.faces.scoring import forecast, job
from enginehouse.faces.scoring.forecast import Forecast, Speed
from enginehouse.faces.scoring.job import Asked, Job, Scored
from enginehouse.faces.scoring.mapping import Mapped
from enginehouse.faces.scoring.readers import Limits

from .scoring_jobs import signature, write


def prepared(folder: Path, rows: int = 1000, sample: float = 1.0) -> Job:
    source = write(folder / "in.parquet", 250, id=np.arange(rows), x=np.arange(rows, dtype=np.float32))
    asked = Asked(str(source), str(folder / "out"), Mapped(), sample=sample)
    return job.prepared(asked, Scored("net", "1", "0", signature(np.float32)), Limits(250))


def test_all_that_takes_time_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepared(tmp_path)
    monkeypatch.setattr(forecast, "seconds_beside", lambda *_: 0.01)
    # One core computes a row in 10 ms and has 10 ms beside it; of two cores, reading takes one for half as long.
    told = forecast.forecast(made.task, made.left, [Speed(1, 100, 1)], 3)
    assert told == Forecast(3, pytest.approx(10), pytest.approx(10), 1)
    told = forecast.forecast(made.task, made.left, [Speed(2, 100, 2, price=3)], 3)
    assert told is not None and (told.seconds, told.cost) == (pytest.approx(10.5), pytest.approx(63))
    # A GPU goes on meanwhile, until it has to wait.
    told = forecast.forecast(made.task, made.left, [Speed(1, 50, 1, on_cpu=False)], 0)
    assert told is not None and told.seconds == pytest.approx(20)
    told = forecast.forecast(made.task, made.left, [Speed(1, 1000, 1, on_cpu=False)], 0)
    assert told is not None and told.seconds == pytest.approx(10)
    assert forecast.forecast(made.task, made.left, [], 0) is None


@pytest.mark.parametrize("sample", [1.0, 0.1])
def test_reading_is_measured_by_the_rows_that_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: float
) -> None:
    made = prepared(tmp_path, sample=sample)
    read = type(made.task).read

    def slowly(task: object, unit: object) -> object:
        time.sleep(0.05)
        return read(task, unit)  # type: ignore[arg-type]

    monkeypatch.setattr(type(made.task), "read", slowly)
    row_s = forecast.seconds_beside(made.task, made.left[0])
    assert 0.05 <= row_s * made.left[0].rows < 0.2
    # Nothing of it is kept.
    assert not (tmp_path / "out").exists()
