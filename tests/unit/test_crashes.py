"""The next process knows which engine computed when one crashed: real processes, real fatal signals."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enginehouse.pools.crashes import FORGET_AFTER_S, Crashes

DIES = """
import ctypes, os, signal, sys
from pathlib import Path
from enginehouse.pools.crashes import Crashes
record = Crashes(Path(sys.argv[1]))
idle, busy, done = record.flag("idle"), record.flag("busy"), record.flag("done")
with done: pass
with busy:
    if sys.argv[2] == "segfault": ctypes.string_at(0)
    if sys.argv[2] == "abort": os.abort()
    if sys.argv[2] == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "exit": os._exit(3)
"""


def die(folder: Path, how: str) -> int:
    return subprocess.run(
        [sys.executable, "-c", DIES, str(folder), how], capture_output=True, timeout=60, check=False
    ).returncode


@pytest.mark.parametrize("how", ["segfault", "abort"])
def test_the_engine_that_was_computing_is_suspected_and_no_other(tmp_path: Path, how: str) -> None:
    assert die(tmp_path, how) < 0
    record = Crashes(tmp_path)
    assert "crashed process" in record.of("busy")
    assert "Fatal Python error" in record.of("busy")
    assert not record.of("idle")
    assert not record.of("done")
    # Later processes know it too.
    assert Crashes(tmp_path).of("busy")


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_process_that_was_only_ended_blames_nobody(tmp_path: Path, how: str) -> None:
    assert die(tmp_path, how) != 0
    assert not Crashes(tmp_path).of("busy")


def test_a_process_that_lives_learns_of_a_crash_when_it_looks(tmp_path: Path) -> None:
    record = Crashes(tmp_path)
    die(tmp_path, "abort")
    assert not record.of("busy")
    record.collect()
    assert "crashed process" in record.of("busy")
    # Its own record is still there for whoever comes after it.
    assert {path.suffix for path in tmp_path.iterdir()} == {".running", ".trace", ".crashed"}


def test_files_of_the_dead_are_read_once_and_removed(tmp_path: Path) -> None:
    die(tmp_path, "kill")
    Crashes(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".running", ".trace"}
    assert {path.stem.partition("-")[0] for path in tmp_path.iterdir()} == {str(os.getpid())}


def test_a_live_process_is_left_alone(tmp_path: Path) -> None:
    first = Crashes(tmp_path)
    with first.flag("busy"):
        assert not Crashes(tmp_path).of("busy")


def test_a_suspicion_is_forgotten_after_a_day(tmp_path: Path) -> None:
    die(tmp_path, "abort")
    record = Crashes(tmp_path)
    old = time.time() - FORGET_AFTER_S - 1
    os.utime(tmp_path / "busy.crashed", (old, old))
    assert not record.of("busy")
