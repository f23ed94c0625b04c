"""gpu-check: one part that hangs, dies or fails costs no other, and what is not known is said to be so."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from benchmarks.gpu import runner
from benchmarks.gpu.lab import PARTS, Lab, Part
from benchmarks.gpu.page import page
from benchmarks.gpu.runner import Outcome, run


def outcome(name: str, folder: Path, seconds: float = 60, dry: str = "no driver") -> Outcome:
    part = Part(name, seconds, "shows something", "tests.unit.gpu_parts")
    return run(part, Lab(folder, dry, seconds, threads=3), folder / "log")


def is_running(pid: int) -> bool:
    """Whether it is more than a dead process that nobody has waited for."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_part_that_hangs_is_ended_with_all_that_it_started_and_keeps_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GRACE_S", 0.5)
    found = outcome("hanging", tmp_path, seconds=5)
    assert (found.outcome, found.reason) == ("stopped", "it took more than 5 s")
    assert found.seconds < 30
    (row,) = found.rows
    give_up = time.monotonic() + 10
    while is_running(row["below"]):
        assert time.monotonic() < give_up, "what it started is still there"
        time.sleep(0.05)


def test_a_part_that_is_killed_says_by_what_and_keeps_what_it_found(tmp_path: Path) -> None:
    found = outcome("dying", tmp_path)
    assert (found.outcome, found.rows) == ("failed", [{"threads": 3}])
    assert "SIGKILL" in found.reason


def test_a_figure_that_cannot_be_had_costs_no_other(tmp_path: Path) -> None:
    found = outcome("failing", tmp_path)
    assert found.rows == [
        {"figure": "a", "not run": "no GPU: no driver"},
        {"figure": "b", "not run": "ZeroDivisionError: division by zero"},
        {"figure": "c", "ms": 2.5},
    ]
    assert (found.outcome, found.reason) == ("failed", "ValueError: no more")
    assert "Traceback" in (tmp_path / "log").read_text()


def test_a_store_without_models_is_said_for_each_figure(tmp_path: Path) -> None:
    part = next(part for part in PARTS if part.name == "memory")
    found = run(part, Lab(tmp_path, "no driver", 60, threads=1), tmp_path / "log")
    assert found.outcome == "done"
    assert [row["not run"] for row in found.rows] == [
        f"{tmp_path} has no {model}; the part `build` makes it" for model in ("digits", "encoder")
    ]


def test_the_page_of_a_dry_run_says_first_that_nothing_was_measured(tmp_path: Path) -> None:
    outcomes = [outcome("failing", tmp_path), Outcome("tensorrt", "engines", "not run", "no GPU", 0.1)]
    lines = page({"name": "dry", "dry": "no driver", "cpu": "some"}, outcomes).splitlines()
    assert "nothing here was measured on a GPU: no driver" in lines[2]
    assert "| tensorrt | engines | not run | no GPU | 0.1 |" in lines
    assert "| figure | ms | not run |" in lines
    assert "| a |  | no GPU: no driver |" in lines
    assert "| c | 2.5 |  |" in lines
    assert "measured on a GPU" not in page({"name": "some-gpu", "dry": ""}, outcomes)


def test_all_parts_together_take_less_than_eight_minutes() -> None:
    assert sum(part.seconds for part in PARTS) < 8 * 60
