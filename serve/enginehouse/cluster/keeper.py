"""Ends what is left of a local cluster when the server that started it was killed.

Ray's processes end with the one that started them, but some take a minute for it, and what tasks have started may not
end at all. A shell waits for the server's end: it takes no memory to speak of. It becomes this script, which knows the
cluster's processes by a variable in their environment. Standard library only: it runs with -I -S.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

#: The variable: the cluster's private folder.
MARK = "ENGINEHOUSE_HOUSE"
#: Seconds in which processes may end by themselves, and in which they are killed.
_PATIENCE_S, _INSISTENCE_S = 3.0, 10.0
_SHELL = ("/bin/sh", "-c", 'read -r _ || exec "$@"', "enginehouse-keeper")


class Keeper:
    """Watches over this process and the cluster with this private folder, until it is dismissed."""

    def __init__(self, folder: Path) -> None:
        self._shell = subprocess.Popen(
            [*_SHELL, sys.executable, "-I", "-S", str(Path(__file__).absolute()), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # Ctrl-C in a terminal is not for it.
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """Nothing is left to end."""
        self._shell.communicate(b"\n")


def main(folder: str) -> None:
    """Wait until no process of the cluster is left, kill those that stay, and remove its folder."""
    mark = f"{MARK}={folder}".encode()
    began = time.monotonic()
    while (left := _marked(mark)) and time.monotonic() < began + _PATIENCE_S + _INSISTENCE_S:
        if time.monotonic() > began + _PATIENCE_S:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)


def _marked(mark: bytes) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                environment = Path(entry.path, "environ").read_bytes()
            except OSError:
                # Gone, or of another user.
                continue
            if mark in environment.split(b"\0"):
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    main(sys.argv[1])
