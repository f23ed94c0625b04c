"""The next process knows which engine computed when one crashed: real processes, real fatal signals."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from enginehouse.pools import crashes
from enginehouse.pools.crashes import FORGET_AFTER_S, Crashes, Death, death_of

DIES = """
import ctypes, os, signal, sys
from pathlib import Path
from enginehouse.pools.crashes import Crashes
record = Crashes(Path(sys.argv[1]))
idle, busy, done = record.flag("idle"), record.flag("busy"), record.flag("done")
with done: pass
how, _, where = sys.argv[2].partition(" in ")
def run_alone():
    if how == "segfault": ctypes.string_at(0)
    if how == "abort": os.abort()
with busy:
    if where == "isolation": run_alone()
    if where == "no thread of Python's":
        libc = ctypes.CDLL(None)
        thread, address = ctypes.c_ulong(), ctypes.cast(libc.strlen, ctypes.c_void_p)
        libc.pthread_create(ctypes.byref(thread), None, address, None)
        import time; time.sleep(20)
    if how == "segfault": ctypes.string_at(0)
    if how == "abort": os.abort()
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


TWO = """
import ctypes, sys, threading, time
from pathlib import Path
from enginehouse.pools.crashes import Crashes
record = Crashes(Path(sys.argv[1]))
beside, killer = record.flag("beside"), record.flag("killer")
def compute():
    with beside: time.sleep(30)
threading.Thread(target=compute, daemon=True).start()
time.sleep(0.2)
def die():
    with killer:
        if sys.argv[2] == "here": ctypes.string_at(0)
        libc = ctypes.CDLL(None)
        thread, address = ctypes.c_ulong(), ctypes.cast(libc.strlen, ctypes.c_void_p)
        libc.pthread_create(ctypes.byref(thread), None, address, None)
        time.sleep(20)
threading.Thread(target=die).start()
time.sleep(20)
"""


@pytest.mark.parametrize("where", ["here", "in a thread of the library"])
def test_of_two_in_use_the_one_whose_thread_crashed_is_blamed_if_that_is_known(tmp_path: Path, where: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", TWO, str(tmp_path), where], capture_output=True, timeout=60, check=False
    )
    assert ran.returncode < 0
    record = Crashes(tmp_path)
    assert record.of("killer")
    assert bool(record.of("beside")) == (where != "here")


@pytest.mark.parametrize("is_collected", [False, True])
@pytest.mark.parametrize(
    ("how", "death"),
    [
        ("segfault", Death.ELSEWHERE),
        ("abort", Death.ELSEWHERE),
        ("segfault in isolation", Death.IN_ISOLATED_CALL),
        ("abort in isolation", Death.IN_ISOLATED_CALL),
        ("segfault in no thread of Python's", Death.SOMEWHERE),
        ("kill", Death.UNKNOWN),
        ("exit", Death.UNKNOWN),
    ],
)
def test_others_on_its_node_know_how_a_process_ended(
    tmp_path: Path, how: str, death: Death, is_collected: bool
) -> None:
    die(tmp_path, how)
    (running,) = tmp_path.glob("*.running")
    record = str(running.with_suffix(""))
    if is_collected:
        Crashes(tmp_path)
    assert death_of(record) == death
    # Of a process of another host nothing is known, whatever lies in the folder.
    assert death_of(f"{record}-elsewhere") == death_of("") == death_of(str(tmp_path / "1-1")) == Death.UNKNOWN


def test_a_process_that_lives_has_not_ended_in_any_way(tmp_path: Path) -> None:
    assert death_of(Crashes(tmp_path).path) == Death.UNKNOWN


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


@pytest.fixture
def new_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As in a process that has no record yet: its cache folder."""
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(crashes, "_records", [])
    return tmp_path / "cache" / "crashes"


def full(*folders: Path) -> Callable[[int, int, int], None]:
    """In the place of `posix_fallocate`, where the disks of these folders have no room."""

    def allocate(file: int, offset: int, size: int) -> None:
        if any(Path(f"/proc/self/fd/{file}").readlink().is_relative_to(folder) for folder in folders):
            raise OSError(errno.ENOSPC, "No space left on device")
        os.ftruncate(file, offset + size)

    return allocate


def test_all_pages_of_a_record_have_room_before_the_first_is_written(tmp_path: Path) -> None:
    record = Crashes(tmp_path)
    (running,) = tmp_path.glob("*.running")
    assert running.stat().st_blocks * 512 >= running.stat().st_size == len(record._memory)


@pytest.mark.parametrize("is_all_full", [False, True])
def test_a_full_disk_costs_the_record_and_not_the_process(
    new_process: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_all_full: bool,
) -> None:
    other = tmp_path / "temporary"
    other.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(other))
    monkeypatch.setattr(os, "posix_fallocate", full(new_process, *[other] * is_all_full))
    with caplog.at_level(logging.WARNING, "ray.serve"):
        for _ in range(3):
            record = crashes.of_this_process()
            with record.flag("busy"):
                assert not record.of("busy")
            record.collect()
    told = [entry.getMessage() for entry in caplog.records]
    assert len(told) == 1 + is_all_full, "once in each process"
    assert all("crashes are not recorded" in text and "No space left" in text for text in told)
    # What could not be made is not left behind.
    assert not list(new_process.glob("*"))
    assert bool(list(other.rglob("*.running"))) != is_all_full


def test_a_crash_that_cannot_be_recorded_stops_no_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    die(tmp_path, "abort")

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refuse)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        Crashes(tmp_path)
    assert "busy crashed process" in caplog.text and "No space left" in caplog.text


def test_a_disk_that_is_really_full_costs_the_record_and_not_the_process(tmp_path: Path) -> None:
    """On a disk of its own, where this process may have one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        made = subprocess.run(mount, capture_output=True, timeout=20, check=False).returncode == 0
    except FileNotFoundError:
        made = False
    if not made:
        pytest.skip("no file system can be mounted here")
    try:
        (disk / "filling").write_bytes(bytes(15 * mmap.PAGESIZE))
        script = """
import sys
from pathlib import Path
from enginehouse.pools import crashes
record = crashes.of_this_process()
for number in range(crashes._SLOTS):
    with record.flag(f"{number:032}"): pass
print("lives")
"""
        environment = os.environ | {"ENGINEHOUSE_CACHE": str(disk), "TMPDIR": str(tmp_path)}
        process = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        assert (process.returncode, process.stdout) == (0, "lives\n"), process.stderr
        assert "crashes are not recorded for later processes" in process.stderr
    finally:
        subprocess.run(["umount", str(disk)], timeout=20, check=True)
