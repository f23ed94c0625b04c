"""One step of a build in a process of its own, bound in time and memory: a crash there cannot take the build along.

    python -m enginehouse_build.steps.isolate PARENT RESULT       a pickled call on stdin, its pickled result to RESULT

The child's output goes to a log file. It ends with its parent, even when that is killed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

from enginehouse.contract.errors import BuildError, EnginehouseError, StepDied
from enginehouse.engines import worker_process

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
    `log`), and StepDied when the process did not live to tell.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, log.open("ab") as output:
        result = Path(folder) / "result"
        process = subprocess.Popen(
            worker_process.command("enginehouse_build.steps.isolate", str(result)),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=worker_process.environment(),
            # Ctrl-C is for this process, which then ends the child and all that it started.
            start_new_session=True,
        )
        try:
            peak = _watch(process, pickle.dumps((function, arguments)), bounds, began)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not result.exists():
            raise StepDied(_last_words(process.returncode, log))
        error, value, told_peak = pickle.loads(result.read_bytes())
    if error is not None:
        raise error
    return Ran(value, time.monotonic() - began, max(peak, told_peak))


def _watch(process: subprocess.Popen[bytes], call: bytes, bounds: Bounds, began: float) -> int:
    """Wait for the end; returns the largest resident memory seen, in MiB. Raises StepDied past a bound."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(call)
        process.stdin.close()
    peak = 0
    while True:
        try:
            process.wait(_POLL_S)
            return peak
        except subprocess.TimeoutExpired:
            peak = max(peak, _resident_mib(process.pid))
        if peak > bounds.memory_mib:
            raise StepDied(f"stopped at {peak} MiB of memory; it may take {bounds.memory_mib} (--memory-mib)")
        if time.monotonic() - began > bounds.seconds:
            raise StepDied(f"stopped after {bounds.seconds:g} s (--step-timeout)")


def _resident_mib(pid: int) -> int:
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total >> 20


def _last_words(code: int, log: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the system may have been out of memory" if -code == signal.SIGKILL else ""
        return f"its process was ended by {name}{hint}"
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"its process ended with code {code} and no result: {lines[-1] if lines else 'it said nothing'}"


@contextlib.contextmanager
def _telling(result: Path) -> Iterator[list[Any]]:
    """Write what is put into the list, or the exception of the body, to `result`."""
    box: list[Any] = []
    error: EnginehouseError | None = None
    try:
        yield box
    except EnginehouseError as known:
        traceback.print_exc()
        error = known
    except Exception as unknown:
        traceback.print_exc()
        error = BuildError(f"{type(unknown).__name__}: {unknown}")
    peak_mib = _peak_mib()
    temporary = result.with_suffix(".partial")
    temporary.write_bytes(pickle.dumps((error, box[0] if box else None, peak_mib)))
    temporary.rename(result)


def _peak_mib() -> int:
    """This process's largest resident memory; 0 where the system does not tell.

    Not from getrusage, which counts what the parent held when it forked.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) >> 10
    return 0


def _main() -> None:
    (result,) = worker_process.begin(sys.argv)
    with _telling(Path(result)) as box:
        function, arguments = pickle.load(sys.stdin.buffer)
        box.append(function(*arguments))
    sys.stdout.flush()
    # Engine libraries have crashed while their threads were taken down; the result is out.
    os._exit(0)


if __name__ == "__main__":
    _main()
