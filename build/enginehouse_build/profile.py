"""The latency table: how long `Engine.infer` takes at each batch size, for every (engine, artifact) that runs here.

Each engine lives in a process of its own, because live sessions with thread pools disturb one another (10 ms and 46 ms
were read for the same call). One of them works at a time, in turns, so that a noisy moment of the machine hits all.

    python -m enginehouse_build.profile      the worker: a pickled order on stdin, then one line for each turn
"""

from __future__ import annotations

import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, Any

import numpy as np
import orjson

from enginehouse.bundle import Bundle, EngineKind, LatencyPoint, LatencyTable
from enginehouse.engines import Engine, load_engine
from enginehouse.errors import EnginehouseError
from enginehouse.tensors import Tensors
from enginehouse_build.parity import take

ROUNDS = 4
#: Seconds of measuring for one engine and artifact, over all rounds and batch sizes.
BUDGET_S = 1.5


def measure(
    bundle: Bundle, targets: Sequence[tuple[EngineKind, str]], samples: Tensors, threads: int
) -> tuple[list[LatencyTable], dict[tuple[EngineKind, str], str]]:
    """Latency tables of `targets` (engine kind, artifact name) on `samples`, and why others have none."""
    tables: list[LatencyTable] = []
    faults: dict[tuple[EngineKind, str], str] = {}
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(bundle, kind, artifact, samples, threads)) for kind, artifact in targets]
        for turn in range(ROUNDS + 1):
            # Turn 0 loads and warms up, all at once: nothing is measured yet.
            for worker in workers:
                worker.tell()
                if turn:
                    worker.listen()
            for worker in [] if turn else workers:
                worker.listen()
        for worker in workers:
            if worker.fault is None:
                tables.append(worker.table())
            else:
                faults[worker.kind, worker.artifact] = worker.fault
    return tables, faults


class _Worker:
    """One measuring process. A fault ends only this one, and is kept in `fault`."""

    def __init__(self, bundle: Bundle, kind: EngineKind, artifact: str, samples: Tensors, threads: int) -> None:
        self.kind = kind
        self.artifact = artifact
        self.threads = threads
        self.fault: str | None = None
        sizes = bundle.manifest.batch_buckets()
        calls = {rows: take(samples, 0, rows) if bundle.manifest.signature.batched else dict(samples) for rows in sizes}
        self._seconds: dict[int, list[float]] = {rows: [] for rows in sizes}
        # A file, because a full pipe would stop a talkative library.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        # The child must find the packages wherever this process found them, installed or not.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "enginehouse_build.profile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
        )
        self._send(pickle.dumps((bundle.path, kind, artifact, threads, calls)))

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def tell(self) -> None:
        """Start the next turn."""
        self._send(b"go\n")

    def listen(self) -> None:
        """Wait for the turn's end and keep its measurements."""
        if self.fault is not None:
            return
        line = _stream(self._process.stdout).readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            tail = self._said.read().decode(errors="replace").strip().splitlines()
            self.fault = (
                f"the measuring process ended with {self._process.returncode}: {tail[-1] if tail else 'silent'}"
            )
            return
        answer = orjson.loads(line)
        if "fault" in answer:
            self.fault = answer["fault"]
            return
        for rows, seconds in answer["seconds"].items():
            self._seconds[int(rows)].extend(seconds)

    def table(self) -> LatencyTable:
        """What was measured, as it goes into the manifest."""
        points = tuple(_point(rows, seconds) for rows, seconds in self._seconds.items() if seconds)
        return LatencyTable(
            engine=self.kind, artifact=self.artifact, threads=self.threads, host=platform.node(), points=points
        )

    def _send(self, message: bytes) -> None:
        try:
            _stream(self._process.stdin).write(message)
            _stream(self._process.stdin).flush()
        except BrokenPipeError:
            # `listen` finds the reason on stderr.
            pass


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _point(rows: int, seconds: Sequence[float]) -> LatencyPoint:
    return LatencyPoint(
        rows=rows,
        median_ms=statistics.median(seconds) * 1e3,
        p90_ms=float(np.percentile(seconds, 90)) * 1e3,
        min_ms=min(seconds) * 1e3,
        count=len(seconds),
    )


def _work() -> None:
    """Body of the worker process: load, then one round of measurements for each line on stdin."""
    orders, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # Engine libraries print to stdout as they please; answers go through the copy made above.
    os.dup2(2, 1)
    path, kind, artifact, threads, calls = pickle.load(orders)
    try:
        bundle = Bundle.open(path)
        engine = load_engine(kind, bundle, bundle.manifest.artifact(artifact), threads=threads)
        measured: dict[int, list[float]] = {}
        for turn, _ in enumerate(orders):
            if turn:
                measured = _round(engine, calls, BUDGET_S / ROUNDS / len(calls), first=turn == 1)
            _answer(answers, {"seconds": {str(rows): seconds for rows, seconds in measured.items()}})
    except EnginehouseError as error:
        _answer(answers, {"fault": f"{type(error).__name__}: {error}"})


def _answer(stream: IO[bytes], answer: dict[str, Any]) -> None:
    stream.write(orjson.dumps(answer) + b"\n")
    stream.flush()


def _round(engine: Engine, calls: dict[int, Any], budget: float, *, first: bool) -> dict[int, list[float]]:
    """Seconds of each call by rows. A size slower than its `budget` is measured in the first round only, once."""
    measured = {}
    for rows, inputs in calls.items():
        began = time.perf_counter()
        engine.infer(inputs)
        warm = time.perf_counter() - began
        seconds: list[float] = []
        while (first and not seconds) or (warm < budget and time.perf_counter() - began < budget):
            start = time.perf_counter()
            engine.infer(inputs)
            seconds.append(time.perf_counter() - start)
        measured[rows] = seconds
    return measured


if __name__ == "__main__":
    _work()
