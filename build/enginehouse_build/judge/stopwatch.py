"""An engine in a process of its own, timed on demand.

Live sessions with thread pools disturb one another (10 ms and 46 ms were read for the same call), so each engine that
is measured is alone in its process, and only one of these processes works at a time.

    python -m enginehouse_build.judge.stopwatch KIND ARTIFACT ORDER FD     the child: answers requests through FD
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import BuildError, EnginehouseError
from enginehouse.contract.manifest import EngineKind
from enginehouse.contract.tensors import Tensors
from enginehouse.engines import Engine, load_engine, worker_process
from enginehouse_build.inputs.samples import resized, take

#: Rows, and the size along the cost axis (None for a model without one).
Cell: TypeAlias = tuple[int, int | None]

#: A window of measuring is at least this long and has at least so many calls ...
WINDOW_S = 0.05
WINDOW_CALLS = 5
#: ... unless they are slow: it ends with the first call after this time.
SLOW_WINDOW_S = 0.25


def where(cell: Cell) -> str:
    """`cell` in words."""
    rows, size = cell
    return f"rows {rows}" + (f", size {size}" if size else "")


class Window(NamedTuple):
    """Seconds of each counted call, and how long the engine's threads waited for a CPU.

    `waited` is the sum over the threads as a share of the window's duration. Observed on two cores: at most 0.02 when
    nothing else runs, whatever the model, and 0.4 to 2 when something does. It is 0 where the kernel does not tell.
    """

    seconds: Sequence[float]
    waited: float = 0.0


def write_order(order: Path, bundle: Bundle, samples: Tensors, threads: int) -> None:
    """Write to `order` what all stopwatches of a bundle share; of the samples only what the largest batch needs."""
    if bundle.manifest.signature.batched:
        samples = {name: array[: bundle.manifest.max_batch] for name, array in samples.items()}
    order.write_bytes(pickle.dumps((bundle.path, dict(samples), threads)))


class Stopwatch:
    """A process that holds one loaded engine. A wait of more than `patience_s` seconds ends it.

    It does not outlive this process, even when that is killed. The calls raise BuildError when it crashed, hung or
    could not load or run the engine; it is of no use from then on.
    """

    def __init__(self, kind: EngineKind, artifact: str, order: Path, patience_s: float) -> None:
        self._patience_s = patience_s
        self._log = order.with_name(f"{kind}-{artifact}.log")
        self._connection, theirs = Pipe()
        module = "enginehouse_build.judge.stopwatch"
        with theirs, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                worker_process.command(module, kind, artifact, str(order), str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=worker_process.environment(),
                pass_fds=(theirs.fileno(),),
            )

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def wait_until_loaded(self) -> None:
        """Return when the engine is warm."""
        self._answer("while it loaded")

    def window(self, cell: Cell) -> Window:
        """Measure once; the call before the window is not counted."""
        stage = f"at {where(cell)}"
        try:
            self._connection.send(cell)
        except OSError:
            raise BuildError(self._last_words(stage)) from None
        return Window(*self._answer(stage))

    def _answer(self, stage: str) -> tuple[list[float], float]:
        try:
            if not self._connection.poll(self._patience_s):
                self._process.kill()
                raise BuildError(f"no answer within {self._patience_s:g} s {stage}; the measuring process was ended")
            answer: tuple[list[float], float] | str = self._connection.recv()
        except (EOFError, OSError):
            raise BuildError(self._last_words(stage)) from None
        if isinstance(answer, str):
            raise BuildError(answer)
        return answer

    def _last_words(self, stage: str) -> str:
        code = self._process.wait()
        if code < 0:
            return f"the measuring process was ended by {signal.Signals(-code).name} {stage}"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"the measuring process ended with code {code} {stage}: {lines[-1] if lines else 'it said nothing'}"


def _main() -> None:
    kind, artifact, order, descriptor = worker_process.begin(sys.argv)
    with Connection(int(descriptor)) as connection:
        try:
            _serve(kind, artifact, Path(order), connection)  # type: ignore[arg-type]
        except EnginehouseError as error:
            connection.send(f"{type(error).__name__}: {error}")
        except EOFError:
            # Nobody asks any more.
            pass
    # Engine libraries have crashed while their threads were taken down.
    os._exit(0)


def _serve(kind: EngineKind, artifact: str, order: Path, connection: Connection) -> None:
    path, samples, threads = pickle.loads(order.read_bytes())
    bundle = Bundle.open(path)
    engine = load_engine(kind, bundle, bundle.manifest.artifact(artifact), threads=threads)
    connection.send(([], 0.0))
    while True:
        connection.send(_window(engine, _request(bundle, samples, connection.recv())))


def _request(bundle: Bundle, samples: Mapping[str, np.ndarray], cell: Cell) -> Tensors:
    rows, size = cell
    request = take(samples, 0, rows) if bundle.manifest.signature.batched else samples
    return request if size is None else resized(request, bundle.manifest.axes[0], size)


def _window(engine: Engine, request: Tensors) -> tuple[list[float], float]:
    engine.infer(request)
    seconds: list[float] = []
    waited_before = _waited_s()
    began = end = time.perf_counter()
    while end - began < WINDOW_S or (len(seconds) < WINDOW_CALLS and end - began < SLOW_WINDOW_S):
        start = time.perf_counter()
        engine.infer(request)
        end = time.perf_counter()
        seconds.append(end - start)
    return seconds, (_waited_s() - waited_before) / (end - began)


def _waited_s() -> float:
    """Seconds that this process' threads were ready to run and had no CPU, all told."""
    nanoseconds = 0
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            # Time on a CPU, time waiting for one, how often it got one (Linux, scheduler/sched-stats.rst).
            nanoseconds += int(thread.read_text().split()[1])
    return nanoseconds * 1e-9


if __name__ == "__main__":
    _main()
