"""CPU time is that of real processes, those that end meanwhile included."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from enginehouse.tools.bench import usage

#: Uses so many CPU seconds, says so, and waits to be ended.
BURN = """
import sys, time
while time.process_time() < float(sys.argv[1]): pass
print(flush=True)
sys.stdin.read()
"""
#: Has a child burn and end, then says so.
PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start(started: list[subprocess.Popen[bytes]], *arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    started.append(process)
    return process


def until_it_has_burnt(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"


def test_what_serving_processes_use_is_theirs(started: list[subprocess.Popen[bytes]]) -> None:
    server = start(started, BURN, "0.5")
    before = usage.read([psutil.Process(server.pid)])
    until_it_has_burnt(server)
    used = before.until(usage.read([psutil.Process(server.pid)]))
    assert 0.3 < used.serving_s < 0.8
    assert used.own_s < 0.3
    assert used.seconds > 0


def test_children_that_came_and_went_count(started: list[subprocess.Popen[bytes]]) -> None:
    server = start(started, PARENT, BURN, "0.5")
    root = [psutil.Process(server.pid)]
    before = usage.read(root)
    until_it_has_burnt(server)
    assert root[0].children() == []
    assert 0.4 < before.until(usage.read(root)).serving_s < 1.0


def test_other_children_of_this_process_are_its_own(started: list[subprocess.Popen[bytes]]) -> None:
    server = start(started, BURN, "0")
    until_it_has_burnt(server)
    root = [psutil.Process(server.pid)]
    before = usage.read(root)
    subprocess.run([sys.executable, "-c", BURN, "0.5"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    used = before.until(usage.read(root))
    assert used.serving_s < 0.1
    assert 0.4 < used.own_s < 1.0


def test_a_root_that_ended_is_no_error(started: list[subprocess.Popen[bytes]]) -> None:
    server = start(started, BURN, "0.1")
    root = [psutil.Process(server.pid)]
    before = usage.read(root)
    server.kill()
    server.wait()
    assert before.until(usage.read(root)).serving_s >= 0


def test_the_rest_of_the_machine_is_foreign() -> None:
    before = usage.read([])
    time.sleep(0.5)
    used = before.until(usage.read([]))
    assert used.serving_s == 0
    assert 0 <= used.foreign_share <= 1.1
