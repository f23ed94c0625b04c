"""Steps of a build in processes that are forked from one that has imported the libraries: most of a step was importing.

The processes are as apart, and end in the same ways, as those of `WorkerProcess`. Builds in processes of their own
(`driver`, `on_cpu`, the `digits` that tests share) and the tests of `isolate` run steps as users do.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from enginehouse.engines import worker_process
from enginehouse.engines.worker_process import Parent, WorkerProcess

_CONTEXT = multiprocessing.get_context("forkserver")
#: Imported only: what started threads could not be forked.
_CONTEXT.set_forkserver_preload([
    "enginehouse_build.pipeline", "enginehouse_build.reference.export", "enginehouse.engines.onnxruntime",
    "enginehouse.engines.openvino", "onnxruntime", "openvino", "pytest", "torch",
])  # fmt: skip


class Forked(WorkerProcess):
    """A `WorkerProcess` whose module is imported already; it has to call `serve(_work)`."""

    def __init__(self, module: str, *arguments: str, log: Path | None = None, group: bool = False) -> None:
        self._log = log
        self._group = group
        self._connection, theirs = _CONTEXT.Pipe()
        with theirs:
            begun = _CONTEXT.Process(
                target=_work, args=(theirs, module, arguments, log, group, dict(os.environ), sys.path)
            )
            begun.start()
        self.process = _Popen(begun)  # type: ignore[assignment]
        # From here on it can be killed with its group.
        self._connection.recv_bytes()


class _Popen:
    """The process as `subprocess.Popen` shows one."""

    def __init__(self, begun: multiprocessing.process.BaseProcess) -> None:
        self._begun = begun
        self.pid = begun.pid
        self.kill = begun.kill

    @property
    def returncode(self) -> int | None:
        return self._begun.exitcode

    def poll(self) -> int | None:
        return self._begun.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._begun.join(timeout)
        if self._begun.exitcode is None:
            raise subprocess.TimeoutExpired("a forked step", timeout or 0)
        return self._begun.exitcode


def _work(
    connection: Connection, module: str, arguments: tuple[str, ...], log: Path | None, group: bool,
    environment: dict[str, str], path: list[str],
) -> NoReturn:  # fmt: skip
    # With the process that it was forked from, which ends with the one that wanted it.
    ctypes.CDLL(None).prctl(worker_process._PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if group:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = [entry for entry in path if entry]
    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    connection.send_bytes(b"begun")
    worker_process.begin = lambda: Parent(connection, arguments)
    worker_process.serve(importlib.import_module(module)._work)
