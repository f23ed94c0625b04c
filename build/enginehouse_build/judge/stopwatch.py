"""An engine in a process of its own, timed on demand.

Live sessions with thread pools disturb one another (10 ms and 46 ms were read for the same call), so each engine that
is measured is alone in its process, and only one of these processes works at a time.

    python -m enginehouse_build.judge.stopwatch ... KIND ARTIFACT ORDER     the child: a window for each Cell
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import orjson

from enginehouse.contract import tensor_file
from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import BuildError, EnginehouseError
from enginehouse.contract.manifest import EngineKind
from enginehouse.contract.tensors import Tensors
from enginehouse.engines import Engine, load_engine
from enginehouse.engines.worker_process import Parent, WorkerDied, WorkerProcess, serve
from enginehouse_build.inputs.extents import resized
from enginehouse_build.inputs.samples import take

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


#: The file beside the samples: where the bundle is, and threads.
_WHAT = "order.json"


def write_order(order: Path, bundle: Bundle, samples: Tensors, threads: int) -> None:
    """Write to `order` what all stopwatches of a bundle share; of the samples only what the largest batch needs."""
    if bundle.manifest.signature.batched:
        samples = {name: array[: bundle.manifest.max_batch] for name, array in samples.items()}
    tensor_file.write(order, [samples])
    order.with_name(_WHAT).write_bytes(orjson.dumps([str(bundle.path), threads]))


class Stopwatch:
    """A process that holds one loaded engine. A wait of more than `patience_s` seconds ends it.

    It does not outlive this process, even when that is killed. The calls raise BuildError when it crashed, hung or
    could not load or run the engine; it is of no use from then on.
    """

    def __init__(self, kind: EngineKind, artifact: str, order: Path, patience_s: float) -> None:
        self._patience_s = patience_s
        log = order.with_name(f"{kind}-{artifact}.log")
        self._worker = WorkerProcess("enginehouse_build.judge.stopwatch", kind, artifact, str(order), log=log)

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()

    def wait_until_loaded(self) -> None:
        """Return when the engine is warm."""
        self._answer("while it loaded")

    def window(self, cell: Cell) -> Window:
        """Measure once; the call before the window is not counted."""
        return Window(*self._answer(f"at {where(cell)}", cell))

    def _answer(self, stage: str, *asked: Cell) -> Any:
        try:
            for cell in asked:
                self._worker.send(cell)
            if self._worker.poll(self._patience_s):
                return self._worker.receive()
        except WorkerDied as died:
            raise BuildError(f"{stage} the measuring process {died}") from None
        except EnginehouseError as error:
            raise BuildError(f"{type(error).__name__}: {error}") from None
        self._worker.kill()
        raise BuildError(f"no answer within {self._patience_s:g} s {stage}; the measuring process was ended")


def loaded(kind: EngineKind, artifact: str, order: Path) -> tuple[Bundle, Tensors, Engine]:
    """What `order` is about, its samples, and one engine."""
    (samples,) = tensor_file.read(order)
    path, threads = orjson.loads(order.with_name(_WHAT).read_bytes())
    bundle = Bundle.open(Path(path))
    return bundle, samples, load_engine(kind, bundle, bundle.manifest.artifact(artifact), threads=threads)


def _work(parent: Parent) -> None:
    kind, artifact, order = parent.arguments
    bundle, samples, engine = loaded(kind, artifact, Path(order))  # type: ignore[arg-type]
    parent.send("loaded")
    while True:
        parent.send(_window(engine, request(bundle, samples, parent.receive())))


def request(bundle: Bundle, samples: Mapping[str, np.ndarray], cell: Cell) -> Tensors:
    """What the engines of a bundle are asked at `cell`."""
    rows, size = cell
    asked = take(samples, 0, rows) if bundle.manifest.signature.batched else samples
    axes = bundle.manifest.axes
    return asked if size is None else resized(asked, axes[0], size, axes)


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
    serve(_work)
