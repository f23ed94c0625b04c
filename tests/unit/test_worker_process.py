"""A worker answers, or there is one error that says how it ended; and nothing of it stays."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from tests.planted import plant, those_that_ran

from enginehouse.contract.errors import ConversionFailed
from enginehouse.engines.worker_process import WorkerDied, WorkerProcess

ECHO = "tests.unit.echo_worker"


def is_gone(pid: int) -> bool:
    for _ in range(50):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_messages_go_both_ways_and_what_is_printed_is_in_the_log_by_then(tmp_path: Path) -> None:
    with WorkerProcess(ECHO, "one", "two", log=tmp_path / "log") as worker:
        for message in ("arguments", {"x": np.arange(1 << 20)}, "more than a line"):
            worker.send(message)
        assert worker.receive() == ["one", "two"]
        np.testing.assert_array_equal(worker.receive()["x"], np.arange(1 << 20))
        assert worker.receive() == "more than a line"
        assert "more than a line" in (tmp_path / "log").read_text()
        assert not worker.poll(0.01)
    assert worker.process.returncode is not None


@pytest.mark.parametrize(
    ("told", "how"),
    [
        ("die", "was ended by SIGSEGV"),
        ("leave", "ended with code 3 and no result: so long"),
        ("stumble", "ended with code 1 and no result: KeyError: 'stumble'"),
        ("leave a fork", "ended with code 3 and no result: it said nothing"),
    ],
)
def test_its_end_is_one_error_that_says_how(told: str, how: str, tmp_path: Path) -> None:
    with WorkerProcess(ECHO, log=tmp_path / "log", group=True) as worker:
        worker.send(told)
        with pytest.raises(WorkerDied, match=f"^{how}$"):
            worker.receive()
        with pytest.raises(WorkerDied, match=f"^{how}$"):
            worker.send("something")
            worker.receive()


def test_a_known_error_is_raised_as_itself() -> None:
    with WorkerProcess(ECHO) as worker:
        worker.send("refuse")
        with pytest.raises(ConversionFailed, match="^no rule for Det$"):
            worker.receive()


def test_a_worker_that_was_killed_says_so_when_it_is_asked() -> None:
    with WorkerProcess(ECHO) as worker:
        worker.kill()
        with pytest.raises(WorkerDied, match="was ended by SIGKILL"):
            worker.receive()


def test_with_a_group_all_that_it_started_ends() -> None:
    with WorkerProcess(ECHO, group=True) as worker:
        worker.send("start")
        child = worker.receive()
        assert psutil.pid_exists(child)
    assert is_gone(child)


def test_what_lies_in_the_current_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = plant(tmp_path)
    with WorkerProcess(ECHO, log=tmp_path.parent / "log") as worker:
        worker.send({"x": np.arange(3)})
        np.testing.assert_array_equal(worker.receive()["x"], np.arange(3))
    assert those_that_ran(ran) == set()


@pytest.mark.parametrize("command", [["--help"], ["inspect", "."], ["doctor", "--json"]])
def test_nor_by_the_command_that_is_run_as_a_module(tmp_path: Path, command: list[str]) -> None:
    ran = plant(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "enginehouse", *command],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert those_that_ran(ran) == set()
