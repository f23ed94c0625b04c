"""The same command goes on where one stopped, and says what changed if it cannot."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from enginehouse.contract.errors import ConfigError
from enginehouse.faces.scoring.lease import NAME, Lease
from enginehouse.faces.scoring.mapping import Mapped
from enginehouse.faces.scoring.readers import Limits
from enginehouse.faces.scoring.storage import Folder

from .scoring_jobs import ByFunction, results, same, score, signature, write

FLAT = signature(np.float32)


class Stops:
    """Says to stop after so many units."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_job_goes_on_where_it_stopped_without_opening_what_is_done(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for at in range(6):
        write(source / f"{at}.parquet", id=np.arange(10) + 10 * at, x=np.arange(10, dtype=np.float32))
    report = score(source, tmp_path / "out", FLAT, stopping=Stops(2))
    assert not report.is_complete
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    by = ByFunction(same)
    report = score(source, tmp_path / "out", FLAT, answering=by)
    assert report.is_complete and len(report.runs) == 2
    assert sum(by.calls) == 60 - 10 * len(done)
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == at for name, at in done.items())
    assert results(tmp_path / "out").column("id").to_pylist() == list(range(60))
    # All is done: nothing is asked, and nothing of INPUT is opened.
    by = ByFunction(same)
    score(source, tmp_path / "out", FLAT, answering=by)
    assert by.calls == []


def test_commands_that_were_killed_are_told_with_what_they_did(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", id=np.arange(60), x=np.arange(60, dtype=np.float32))
    score(source, tmp_path / "out", FLAT, limits=Limits(10), stopping=Stops(2))
    (kept,) = (tmp_path / "out" / "_job" / "runs").iterdir()
    # What is there of one that was killed: that it began.
    begun = json.loads(kept.read_text())
    kept.write_text(json.dumps(begun | {"ended": begun["began"], "units": 0, "rows": 0, "came_to_end": False}))
    report = score(source, tmp_path / "out", FLAT, limits=Limits(10))
    killed, last = report.runs
    assert (killed.came_to_end, last.came_to_end) == (False, True)
    assert killed.units >= 2 and killed.rows == 10 * killed.units and killed.units + last.units == 6
    assert killed.began < killed.ended < last.began
    assert report.rates["numpy"] > 0
    assert ", killed<" in (tmp_path / "out" / "_job" / "report.html").read_text()


def test_files_added_later_are_further_units(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for at in (3, 1, 2):
        write(source / f"{at}.parquet", id=[at], x=pa.array([at], pa.float32()))
        score(source, tmp_path / "out", FLAT)
    assert sorted(results(tmp_path / "out").column("output.y").to_pylist()) == [1, 2, 3]
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3


def test_results_that_were_damaged_are_made_again(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", 5, id=np.arange(20), x=np.array([1.0, 3e38] * 10))
    clean = lambda: {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.parquet")}  # noqa: E731
    score(source, tmp_path / "out", FLAT, limits=Limits(5))
    before = clean()
    first, second, third, _ = sorted((tmp_path / "out").glob("*.parquet"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1] + b"X")
    (tmp_path / "out" / "_job" / "units" / f"{third.name[:19]}.json").write_text('{"unit": ')
    by = ByFunction(same)
    report = score(source, tmp_path / "out", FLAT, answering=by, limits=Limits(5))
    assert report.is_complete and sum(by.calls) == 15
    assert clean() == before


CHANGES: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "the bundle": (lambda _: None, {"digest": "1"}, 'the bundle was "0" and is "1"'),
    "the mapping": (
        lambda _: None,
        {"mapped": Mapped({"x": ("other",)})},
        r'--map was \{\} and is \{"x": \["other"\]\}',
    ),
    "the limit": (lambda _: None, {"limit": 3}, "--limit was null and is 3"),
    "a file": (
        lambda source: write(source / "a.parquet", id=[1, 3], x=[1.0, 2.0], other=[1.0, 2.0]),
        {},
        r"a\.parquet is another file now \(sha256 .* before, sha256 .* now\)",
    ),
    "a file that is gone": (lambda source: (source / "a.parquet").unlink(), {}, r"a\.parquet is gone"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_job_is_not_mixed_into_this_one(tmp_path: Path, change: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in "ab":
        write(source / f"{name}.parquet", id=[1, 2], x=[1.0, 2.0], other=[1.0, 2.0])
    score(source, tmp_path / "out", FLAT)
    what, asked, said = CHANGES[change]
    what(source)
    with pytest.raises(ConfigError, match=f"has another job: {said}.*--restart"):
        score(source, tmp_path / "out", FLAT, **asked)
    score(source, tmp_path / "out", FLAT, restart=True, **asked)
    assert results(tmp_path / "out-2").num_rows in (2, 3, 4)
    assert results(tmp_path / "out").num_rows == 4


def test_of_two_commands_one_works_on_a_job_and_a_dead_one_is_no_bar(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", id=[1], x=[1.0])
    folder = Folder(str(tmp_path / "out"))
    with Lease(folder).held(), pytest.raises(ConfigError, match=rf"process {os.getpid()}\) works on this job"):
        score(source, tmp_path / "out", FLAT)
    score(source, tmp_path / "out", FLAT)
    assert folder.read(NAME) is None
    dead = {"token": "x", "host": socket.gethostname(), "pid": os.getpid(), "since": 1.0, "at": time.time()}
    far = dead | {"host": "elsewhere", "at": time.time() - 100}
    for driver in (dead, far):
        folder.put(NAME, json.dumps(driver).encode())
        score(source, tmp_path / "out", FLAT)
