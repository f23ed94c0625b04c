"""Whatever happens in a step's process is one error in the build, and never more than that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from enginehouse.contract.errors import BuildError, ConversionFailed, StepDied
from enginehouse_build import pipeline
from enginehouse_build.steps.isolate import Bounds, run

from . import steps
from .conftest import rerun

BOUNDS = Bounds(seconds=30, memory_mib=4096)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes begin as those of users do."""
    monkeypatch.setattr(pipeline, "measured_beside", steps.measure_once)


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., Any]:
    def run_it(function: Callable[..., Any], *arguments: Any, bounds: Bounds = BOUNDS) -> Any:
        return run(function, *arguments, log=tmp_path / "log", bounds=bounds)

    return run_it


def gone(pid: int) -> bool:
    for _ in range(50):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_result_cost_and_output_come_back(call: Callable[..., Any], tmp_path: Path) -> None:
    ran = call(steps.add, 2, 3)
    assert ran.value == 5
    assert ran.seconds > 0
    assert 5 < ran.peak_mib < 1024
    assert "adding" in (tmp_path / "log").read_text()


def test_known_errors_keep_their_class_and_others_are_named(call: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match="^no rule for Det$"):
        call(steps.refuse, "no rule for Det")
    with pytest.raises(BuildError, match="^KeyError: 'missing'$") as caught:
        call(steps.stumble)
    assert not isinstance(caught.value, StepDied)
    assert "in stumble" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_is_named_by_its_signal(call: Callable[..., Any], by: signal.Signals) -> None:
    with pytest.raises(StepDied, match=f"its process was ended by {by.name}"):
        call(steps.die, by)


@pytest.mark.parametrize(
    ("words", "done", "said"),
    [
        ([], [], ""),
        (["it loaded"], [], " while it loaded"),
        ([], ["it loaded"], ""),
        (["it computed", "it was asked for nothing"], [], " while it was asked for nothing"),
        # What ended within something else leaves that.
        (["it computed"], ["it was asked for nothing", "for much"], " while it computed"),
    ],
)
def test_a_crash_is_told_with_what_was_being_done(
    call: Callable[..., Any], words: list[str], done: list[str], said: str
) -> None:
    with pytest.raises(StepDied, match=f"its process was ended by SIGSEGV{said}$"):
        call(steps.die_within, words, done, signal.SIGSEGV)


@pytest.mark.parametrize(
    ("step", "die", "said"),
    [
        ("verify", steps.verify_where_loading_dies, "onnxruntime-cpu loaded it (graph optimisation)"),
        pytest.param(
            "verify",
            steps.verify_where_first_calls_die,
            "onnxruntime-cpu computed for the first time",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "verify", steps.verify_where_later_calls_die, "onnxruntime-cpu computed the samples", marks=pytest.mark.slow
        ),
        pytest.param(
            "convert", steps.convert_where_files_die, "it was converted to onnx-fp32, and tried", marks=pytest.mark.slow
        ),
    ],
)
def test_an_artifact_says_at_what_its_process_died(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, step: str, die: Callable[..., Any], said: str
) -> None:
    monkeypatch.setattr(pipeline, step, die)
    bundle, _, _ = rerun(recipe, precisions=("fp32",))
    reasons = {artifact.name: artifact.reason for artifact in bundle.manifest.artifacts}
    assert reasons == {"onnx-fp32": f"its process was ended by SIGSEGV while {said}", "openvino-fp32": None}


def test_leaving_without_a_result_is_told_with_the_last_words(call: Callable[..., Any]) -> None:
    with pytest.raises(StepDied, match="ended with code 3 and no result: so long"):
        call(steps.leave, 3)


def test_a_hang_ends_with_all_that_it_started(call: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(StepDied, match=r"stopped after 4 s \(--step-timeout\)"):
        call(steps.hang, tmp_path / "pids", bounds=Bounds(4, 4096))
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_memory_is_bound(call: Callable[..., Any]) -> None:
    began = time.monotonic()
    with pytest.raises(StepDied, match=r"stopped at \d+ MiB of memory; it may take 300 \(--memory-mib\)"):
        call(steps.grow, 600, bounds=Bounds(30, 300))
    assert time.monotonic() - began < 20


def test_a_step_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from enginehouse_build.steps.isolate import Bounds, run
from tests.pipeline.steps import hang

run(hang, Path(sys.argv[1]), log=Path(sys.argv[2]), bounds=Bounds(50, 4096))
"""
    pids, root = tmp_path / "pids", Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    parent = subprocess.Popen([sys.executable, "-c", program, str(pids), str(tmp_path / "log")], env=environment)
    while not pids.exists():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    step, child = map(int, pids.read_text().split())
    assert gone(step)
    # Nobody asked for this one's end: only what the step itself started asks.
    os.kill(child, signal.SIGKILL)
