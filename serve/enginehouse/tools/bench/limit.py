"""The in-process limit: what the engines reach on this machine when nothing is between them and their inputs.

As many processes as engines are served, each with one engine of as many threads, all at work at once on rows that lie
in memory. They are idle while the server is measured, and the server is idle while they are.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from enginehouse.contract.errors import EnginehouseError, EngineUnavailable
from enginehouse.contract.manifest import EngineKind
from enginehouse.contract.tensors import Tensors
from enginehouse.engines import worker_process

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
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        try:
            for _ in range(count):
                self._start()
            for connection in self._connections:
                connection.send(order)
            for number in range(count):
                # What the engine says it computes in.
                self.precision = str(self._answer(number))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for connection in self._connections:
            connection.close()

    def infer(self, request: Tensors) -> dict[str, np.ndarray]:
        """One engine's own answer."""
        self._connections[0].send((dict(request), None))
        outputs: dict[str, np.ndarray] = self._answer(0)
        return outputs

    def limit(self, request: Tensors, rows: int, seconds: float) -> Limit:
        """What all engines reach together that repeat `request` of `rows` rows for `seconds` seconds."""
        for connection in self._connections:
            connection.send((dict(request), seconds))
        runs: Sequence[Run] = [self._answer(number) for number in range(len(self._connections))]
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

    def _start(self) -> None:
        connection, theirs = Pipe()
        self._connections.append(connection)
        with theirs:
            self._processes.append(
                subprocess.Popen(
                    worker_process.command("enginehouse.tools.bench.engine", str(theirs.fileno())),
                    stdin=subprocess.DEVNULL,
                    env=worker_process.environment(),
                    pass_fds=(theirs.fileno(),),
                )
            )

    def _answer(self, number: int) -> Any:
        try:
            answer = self._connections[number].recv()
        except (EOFError, OSError):
            code = self._processes[number].wait()
            raise EngineUnavailable(self._order.kind, f"its process ended with code {code}; see above") from None
        if isinstance(answer, EnginehouseError):
            raise answer
        return answer
