"""What is left of a killed server is found and ended; what is not its own is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enginehouse.cluster import keeper

#: A server with a keeper, and with a daemon that it remembers; says that it is up.
SERVER = """
import signal, subprocess, sys, time
from pathlib import Path
from enginehouse.cluster.keeper import Keeper
folder = Path(sys.argv[1])
keeper = Keeper(folder)
daemon = subprocess.Popen(["sleep", "60"], env={}, start_new_session=True)
keeper.remember([daemon.pid, keeper._shell.pid])
print(daemon.pid, flush=True)
if sys.argv[2] == "dismiss":
    keeper.dismiss()
else:
    signal.pause()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def one(*command: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield one
    for process in started:
        process.kill()
        process.communicate()


def lives(pid: int) -> bool:
    return bool(keeper._started(pid))


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def server(start: Start, folder: Path, how: str) -> tuple[subprocess.Popen[str], int]:
    folder.mkdir()
    process = start(sys.executable, "-c", SERVER, str(folder), how, **os.environ)
    assert process.stdout
    return process, int(process.stdout.readline())


def test_daemons_and_marked_processes_of_a_killed_server_end_and_no_others(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "house"
    process, daemon = server(start, folder, "wait")
    marked = start("sleep", "60", **{keeper.MARK: str(folder)})
    # Ray's processes write over a part of their environment when they change their title.
    torn = start("sleep", "60", RAY_SERVE_HAPROXY_SOCKET_PATH=f"{folder}/admin.sock")
    # The user's own shell, which has the token in it, and another server's.
    strangers = [start("sleep", "60", RAY_AUTH_TOKEN_PATH=f"{folder}/auth_token"), start("sleep", "60", OTHER="x")]
    time.sleep(0.5)
    assert folder.is_dir() and all(one.poll() is None for one in (marked, torn))
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not folder.exists())
    assert not lives(daemon)
    assert (marked.poll(), torn.poll()) == (-signal.SIGKILL, -signal.SIGKILL)
    assert [one.poll() for one in strangers] == [None, None]


def test_one_that_is_dismissed_ends_nothing(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "house"
    process, daemon = server(start, folder, "dismiss")
    process.wait()
    time.sleep(keeper._PATIENCE_S + 1)
    assert folder.is_dir() and lives(daemon)
    os.kill(daemon, signal.SIGKILL)


def test_a_pid_that_is_another_process_now_is_left_alone(start: Start, tmp_path: Path) -> None:
    stranger = start("sleep", "60")
    (tmp_path / "daemons").write_text(f"{stranger.pid} 1\n\n{stranger.pid} \nx\n")
    assert keeper._left(str(tmp_path)) == set()
