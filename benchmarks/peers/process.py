"""A contestant while it serves: its processes, from the start of the first to the end of the last."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import psutil

from benchmarks.peers import HERE, Conditions, Contestant, NotRun, NotStarted
from benchmarks.peers.environment import ENVIRONMENTS
from enginehouse.contract.errors import EnginehouseError
from enginehouse.tools.bench.subject import ask

HOST = "127.0.0.1"
_MARK = "BENCHMARKS_CONTESTANT"
_AGREEING = 20
_START_S = 180
_STOP_S = 30


@dataclass(frozen=True, slots=True)
class Process:
    """A running contestant. `mark` is in the environment of all its processes, also of those that left their parent."""

    contestant: Contestant
    url: str
    mark: str
    root: subprocess.Popen[bytes]
    log: Path

    def processes(self) -> list[psutil.Process]:
        """All that carry the mark. Those that Ray renamed have lost it, but run below others."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(_MARK) == self.mark:
                    found.append(process)
        return found

    def until_ready(self, body: bytes, headers: Mapping[str, str], url: str = "") -> None:
        """Wait until `_AGREEING` requests in a row are answered: some have several processes, not ready at once.

        `url` is another one than that of the contestant's own model.

        Raises NotStarted when the process ends, NotRun when no answer comes in time.
        """
        reason, answered = "", 0
        give_up = time.monotonic() + _START_S
        while time.monotonic() < give_up:
            if self.root.poll() is not None:
                raise NotStarted(f"it ended with code {self.root.returncode}: {self.last_words()}")
            try:
                ask(url or self.url, body, headers)
            except (EnginehouseError, HTTPException) as error:
                reason, answered = str(error), 0
                time.sleep(0.2)
            else:
                answered += 1
                if answered == _AGREEING:
                    return
        raise NotRun(f"no answer within {_START_S} s: {reason} (see {self.log})")

    def last_words(self) -> str:
        """The last line of the log that names an error, or says something at all."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if re.search("error|exception", line, re.IGNORECASE)]
        return f"{(errors or lines or ['it said nothing'])[-1]} (see {self.log})"


@contextlib.contextmanager
def running(contestant: Contestant, python: Path, conditions: Conditions, port: int) -> Iterator[Process]:
    """Start `contestant` in a session of its own, and end every process of it on the way out.

    Raises NotRun when somebody else listens on `port`.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise NotRun(f"port {port}: {error.strerror}; choose others with --port") from None
    mark = uuid.uuid4().hex
    ENVIRONMENTS.mkdir(exist_ok=True)
    log = ENVIRONMENTS / f"{contestant.name}.log"
    # Short: the sockets of Ray and HAProxy lie below it, and their paths have a limit.
    folder = tempfile.mkdtemp(prefix="p-", dir="/tmp")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))}
    told = {_MARK: mark, "TMPDIR": folder, "RAY_TMPDIR": folder, "PYTHONPATH": str(HERE / "shared")}
    with log.open("wb") as output:
        root = subprocess.Popen(
            contestant.command(python, conditions, port),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=inherited | told | conditions.environment(port),
            start_new_session=True,
        )
    process = Process(contestant, f"http://{HOST}:{port}{contestant.route(conditions)}", mark, root, log)
    try:
        yield process
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: Process) -> None:
    """Ctrl-C for the one that was started, then an end by process id for what is left."""
    everything = {below for one in process.processes() for below in (one, *_below(one))}
    if process.root.poll() is None:
        process.root.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.root.wait(_STOP_S)
    everything.update(process.processes())
    for end in (psutil.Process.terminate, psutil.Process.kill):
        _, left = psutil.wait_procs(list(everything), timeout=3)
        for one in left:
            with contextlib.suppress(psutil.Error):
                end(one)
    process.root.wait()


def _below(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return process.children(recursive=True)
    return []
