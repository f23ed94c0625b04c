"""Ends what is left of a local cluster when the server that started it was killed.

Ray's processes end with the one that started them, but some take a minute for it, and what tasks have started may not
end at all. A shell waits for the server's end: it takes no memory to speak of. It becomes this script, which knows the
cluster's daemons by a file, and others by the cluster's private folder in their environment: in one variable of
several, since a process that changes its title (Ray's do) writes over some. Standard library only: it runs with -I -S.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

#: Variables with the private folder, of nobody but the cluster.
MARK = "ENGINEHOUSE_HOUSE"
_MARKS = (MARK.encode(), b"RAY_SERVE_HAPROXY_")
#: The file in it: a line for each daemon, with its pid and when it started.
_DAEMONS = "daemons"
#: Seconds in which processes may end by themselves, and in which they are killed.
_PATIENCE_S, _INSISTENCE_S = 3.0, 10.0
_SHELL = ("/bin/sh", "-c", 'read -r _ || exec "$@"', "enginehouse-keeper")


class Keeper:
    """Watches over this process and the cluster with this private folder, until it is dismissed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shell = subprocess.Popen(
            [*_SHELL, sys.executable, "-I", "-S", str(Path(__file__).absolute()), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # Ctrl-C in a terminal is not for it.
            start_new_session=True,
        )

    def remember(self, pids: Iterable[int]) -> None:
        """These are the cluster's as well."""
        (self._folder / _DAEMONS).write_text(
            "".join(f"{pid} {_started(pid)}\n" for pid in pids if pid != self._shell.pid)
        )

    def dismiss(self) -> None:
        """Nothing is left to end."""
        self._shell.communicate(b"\n")


def main(folder: str) -> None:
    """Wait until no process of the cluster is left, kill those that stay, and remove its folder."""
    began = time.monotonic()
    while (left := _left(folder)) and time.monotonic() < began + _PATIENCE_S + _INSISTENCE_S:
        if time.monotonic() > began + _PATIENCE_S:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)


def _left(folder: str) -> set[int]:
    found = set()
    with contextlib.suppress(OSError):
        for line in Path(folder, _DAEMONS).read_text().splitlines():
            pid, _, started = line.partition(" ")
            # A pid may have become another process's.
            if started and _started(int(pid)) == started:
                found.add(int(pid))
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            # One that is gone, or of another user, says nothing.
            with contextlib.suppress(OSError):
                environment = Path(entry.path, "environ").read_bytes().split(b"\0")
                if any(one.startswith(_MARKS) and folder.encode() in one for one in environment):
                    found.add(int(entry.name))
    return found


def _started(pid: int) -> str:
    """When the process started; empty for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


if __name__ == "__main__":
    main(sys.argv[1])
