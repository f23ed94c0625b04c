"""Forked steps, which most builds of these tests have, end as those do that users have (test_isolate)."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginehouse.contract.errors import BuildError, ConversionFailed, StepDied
from enginehouse_build.steps import isolate
from enginehouse_build.steps.isolate import Bounds

from . import steps
from .forked import Forked
from .test_isolate import gone


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., Any]:
    assert isolate.WorkerProcess is Forked

    def run_it(function: Callable[..., Any], *arguments: Any, seconds: float = 60) -> Any:
        return isolate.run(function, *arguments, log=tmp_path / "log", bounds=Bounds(seconds, 4096))

    return run_it


def test_a_result_comes_back_and_output_is_logged(call: Callable[..., Any], tmp_path: Path) -> None:
    assert call(steps.add, 2, 3).value == 5
    assert "adding" in (tmp_path / "log").read_text()


def test_errors_come_back(call: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match="^no rule for Det$"):
        call(steps.refuse, "no rule for Det")
    with pytest.raises(BuildError, match="^KeyError: 'missing'$"):
        call(steps.stumble)
    assert "in stumble" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_is_named_by_its_signal(call: Callable[..., Any], by: signal.Signals) -> None:
    with pytest.raises(StepDied, match=f"its process was ended by {by.name}"):
        call(steps.die, by)


def test_an_exit_is_told_with_its_last_words(call: Callable[..., Any]) -> None:
    with pytest.raises(StepDied, match="ended with code 3 and no result: so long"):
        call(steps.leave, 3)


def test_one_that_takes_too_long_ends_with_all_that_it_started(call: Callable[..., Any], tmp_path: Path) -> None:
    # The first one waits for the process that it is forked from.
    call(steps.add, 2, 3)
    with pytest.raises(StepDied, match="stopped after 2 s"):
        call(steps.hang, tmp_path / "pids", seconds=2)
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())
