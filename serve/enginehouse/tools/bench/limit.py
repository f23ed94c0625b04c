"""The in-process limit: what the engines reach on this machine when nothing is between them and their inputs.

As many processes as engines are served, each with one engine of as many threads, all at work at once on rows that lie
in memory. They are idle while the server is measured, and the server is idle while they are.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from enginehouse.contract.errors import EngineUnavailable
from enginehouse.contract.manifest import EngineKind
from enginehouse.contract.tensors import Tensors
from enginehouse.engines.worker_process import WorkerDied, WorkerProcess

WINDOWS = 5


@dataclass(frozen=True, slots=True)
class Order:
    """The engine that a process loads: an artifact of the bundle in a local folder."""

    bundle: Path
    kind: EngineKind
    artifact: str
    threads: int


class Run(NamedTuple):
    """Calls of one engine within `seconds`, in equal parts of them calls per second, and its process' CPU seconds."""

    calls: int
    seconds: float
    cpu_s: float
    windows: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """What `engines` engines of `threads` threads each reach together with calls of `rows` rows.

    `windows` are rows per second in equal parts of the calls; `cpu_ms` is CPU time (user and system) for each row.
    """

    engine: EngineKind
    artifact: str
    engines: int
    threads: int
    rows: int
    rows_per_s: float
    cpu_ms: float
    windows: tuple[float, ...]

    @property
    def spread(self) -> float:
        """(most - least) / least of the windows."""
        least = min(self.windows)
        return (max(self.windows) - least) / least if least else float("inf")

    def and_again(self, later: Limit) -> Limit:
        """Both measurements of the same as one: the machine may have changed its pace between them."""
        return replace(
            self,
            rows_per_s=(self.rows_per_s + later.rows_per_s) / 2,
            cpu_ms=(self.cpu_ms + later.cpu_ms) / 2,
            windows=self.windows + later.windows,
        )


class Engines:
    """`count` processes that each hold one engine, as a context. Raises what loading raises, or EngineUnavailable."""

    def __init__(self, order: Order, count: int) -> None:
        self._order = order
        with ExitStack() as starting:
            self._workers = [
                starting.enter_context(WorkerProcess("enginehouse.tools.bench.engine")) for _ in range(count)
            ]
            # What the engine says it computes in.
            self.precision = str(self._answers(order)[0])
            self._running = starting.pop_all()

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def infer(self, request: Tensors) -> dict[str, np.ndarray]:
        """One engine's own answer."""
        outputs: dict[str, np.ndarray] = self._answers((dict(request), None), most=1)[0]
        return outputs

    def limit(self, request: Tensors, rows: int, seconds: float) -> Limit:
        """What all engines reach together that repeat `request` of `rows` rows for `seconds` seconds."""
        runs: list[Run] = self._answers((dict(request), seconds))
        calls = sum(run.calls for run in runs)
        return Limit(
            engine=self._order.kind,
            artifact=self._order.artifact,
            engines=len(runs),
            threads=self._order.threads,
            rows=rows,
            rows_per_s=sum(run.calls * rows / run.seconds for run in runs),
            cpu_ms=sum(run.cpu_s for run in runs) / (calls * rows) * 1e3,
            windows=tuple(sum(run.windows[part] for run in runs) * rows for part in range(WINDOWS)),
        )

    def _answers(self, message: object, most: int | None = None) -> list[Any]:
        """Ask all engines, or the first `most`, at the same time."""
        try:
            for worker in self._workers[:most]:
                worker.send(message)
            return [worker.receive() for worker in self._workers[:most]]
        except WorkerDied as died:
            raise EngineUnavailable(self._order.kind, f"its process {died}") from None
