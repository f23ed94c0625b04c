"""One step of a build in a process of its own, bound in time and memory: a crash there cannot take the build along.

The child's output goes to a log file. It ends with its parent, even when that is killed.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

from enginehouse.contract.errors import BuildError, EnginehouseError, StepDied
from enginehouse.engines.worker_process import Parent, WorkerDied, WorkerProcess, serve
from enginehouse_build.inputs.last_words import last_words

_T = TypeVar("_T")
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one step may take: seconds, and MiB of resident memory together with its own children."""

    seconds: float
    memory_mib: int


@dataclass(frozen=True, slots=True)
class Ran(Generic[_T]):
    """The result of a step, and what it took."""

    value: _T
    seconds: float
    peak_mib: int


def run(function: Callable[..., _T], *arguments: Any, log: Path, bounds: Bounds) -> Ran[_T]:
    """Call `function(*arguments)` in a new process; everything must be picklable, the function by its module's name.

    Raises the EnginehouseError that the function raised, BuildError for any other exception (the traceback is in
    `log`), and StepDied when the process did not live to tell or went past a bound, with what it was doing then.
    """
    began = time.monotonic()
    peak = 0
    # Ctrl-C is for this process, which then ends the child and all that it started.
    with WorkerProcess("enginehouse_build.steps.isolate", log=log, group=True) as worker:
        try:
            worker.send((function, arguments))
            while not worker.poll(_POLL_S):
                peak = max(peak, _resident_mib(worker.process.pid))
                if peak > bounds.memory_mib:
                    limit = f"it may take {bounds.memory_mib} (--memory-mib)"
                    raise StepDied(f"stopped at {peak} MiB of memory{_while(log)}; {limit}")
                if time.monotonic() - began > bounds.seconds:
                    raise StepDied(f"stopped after {bounds.seconds:g} s (--step-timeout){_while(log)}")
            value, told_peak = worker.receive()
        except WorkerDied as died:
            raise StepDied(f"its process {died}{_while(log)}") from None
    return Ran(value, time.monotonic() - began, max(peak, told_peak))


def _while(log: Path) -> str:
    said = last_words(log.read_text(errors="replace"))
    return f" while {said}" if said else ""


def _resident_mib(pid: int) -> int:
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total >> 20


def _work(parent: Parent) -> None:
    try:
        function, arguments = parent.receive()
        value = function(*arguments)
    except EnginehouseError:
        traceback.print_exc()
        raise
    except Exception as error:
        traceback.print_exc()
        raise BuildError(f"{type(error).__name__}: {error}") from None
    parent.send((value, _peak_mib()))


def _peak_mib() -> int:
    """This process's largest resident memory; 0 where the system does not tell.

    Not from getrusage, which counts what the parent held when it forked.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) >> 10
    return 0


if __name__ == "__main__":
    serve(_work)
