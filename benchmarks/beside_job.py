"""What a scoring job through the running application takes from online requests, and what it gets.

    python -m benchmarks.beside_job STORE --model resnet18
    python -m benchmarks.beside_job STORE --model resnet18 --job digits

First the application alone, as fast as connections go: its capacity; then the job alone: its rate. Then requests at
random moments (Poisson) at each of `--loads`, shares of the capacity, without the job and beside it in turns. What is
left to the job is its rate alone times what the load leaves of the capacity. `enginehouse serve` and `score` are those
of the checkout that PYTHONPATH names, so the same command measures another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.served import ENGINEHOUSE, served
from benchmarks.shares import Asked, busy, latencies_ms, opened
from enginehouse.contract.store import Store
from enginehouse.tools.bench import generator
from enginehouse.tools.bench.samples import synthetic

CONNECTIONS = 16
#: Files that finish before a job counts as running as it does, after so many seconds at least, in which it starts as
#: many processes as it has; and seconds for which that is waited for.
WARM_FILES, WARM_S, WARM_TIMEOUT_S = 3, 15.0, 180.0
#: Seconds of the job's computing in a file, about: what it has done is counted in files.
FILE_S = 0.5
console = Console(highlight=False, width=120)


@dataclass(slots=True)
class Job:
    """`enginehouse score --via serve`, which runs; its ledger says when each file was done."""

    target: Path
    process: subprocess.Popen[bytes]

    def ended(self) -> list[tuple[float, int]]:
        """When each unit was finished, and its rows."""
        lines = [json.loads(path.read_text()) for path in (self.target / "_job" / "units").glob("*.json")]
        return sorted((line["ended"], line["written"]) for line in lines if "ended" in line)

    def rows_per_s(self, began: float, ended: float) -> float:
        """Rows a second between two moments."""
        within = [(at, rows) for at, rows in self.ended() if began <= at < ended]
        # From the end of one to the end of another: in between nothing is cut off.
        if len(within) < 3:
            return sum(rows for _, rows in within) / (ended - began)
        return sum(rows for _, rows in within[1:]) / (within[-1][0] - within[0][0])


@dataclass(frozen=True, slots=True)
class Scoring:
    """What a job is made of: the model, and a folder of files."""

    model: str
    source: Path
    address: str

    @contextlib.contextmanager
    def running(self) -> Iterator[Job]:
        """A job that computes; it is killed afterwards."""
        with tempfile.TemporaryDirectory(prefix="beside-job-") as folder:
            target = Path(folder) / "scores"
            with (Path(folder) / "said").open("wb") as said:
                command = [ENGINEHOUSE, "score", self.model, str(self.source), str(target), "--via", "serve"]
                command += ["--address", self.address]
                process = subprocess.Popen(command, stdout=said, stderr=said)
            job = Job(target, process)
            try:
                began = time.monotonic()
                while len(job.ended()) < WARM_FILES or time.monotonic() < began + WARM_S:
                    if process.poll() is not None or time.monotonic() > began + WARM_TIMEOUT_S:
                        raise SystemExit(f"the job does not run: {(Path(folder) / 'said').read_text()}")
                    time.sleep(0.2)
                yield job
                if process.poll() is not None:
                    raise SystemExit(f"the job ended, too early: {(Path(folder) / 'said').read_text()}")
            finally:
                process.kill()
                process.wait()


def _address(server: psutil.Process) -> str:
    """Where Ray listens that `enginehouse serve` has started: its processes are told."""
    told = [argument for each in server.children(recursive=True) for argument in each.cmdline()]
    return next(argument.split("=", 1)[1] for argument in told if argument.startswith("--gcs-address="))


def _files(store: Path, model: str, folder: Path, rows: int, count: int) -> None:
    """As many files of so many rows, which are one file under many names."""
    manifest = Store(str(store)).manifest(model, Store(str(store)).latest(model))
    first = folder / "0.npz"
    np.savez(first, **synthetic(manifest).request(0, rows))
    for number in range(1, count):
        os.link(first, folder / f"{number}.npz")


def _rate_alone(store: Path, model: str, address: str, seconds: float) -> float:
    manifest = Store(str(store)).manifest(model, Store(str(store)).latest(model))
    batch_ms = min(table.predict_ms(manifest.max_batch, None) for table in manifest.latency)
    rows = max(1, int(manifest.max_batch / batch_ms * 1e3 * FILE_S))
    with tempfile.TemporaryDirectory(prefix="beside-rows-") as source:
        _files(store, model, Path(source), rows, int((seconds + WARM_S) / FILE_S * 4) + 50)
        with Scoring(model, Path(source), address).running() as job:
            began = time.time()
            time.sleep(seconds)
            return job.rows_per_s(began, time.time())


def main(
    store: Annotated[Path, typer.Argument(help="Store with the models.")],
    model: Annotated[str, typer.Option(help="Who is asked online.")] = "resnet18",
    job: Annotated[str, typer.Option(help="Who scores; the same by default.")] = "",
    loads: Annotated[str, typer.Option(help="Shares of the capacity that are asked for online.")] = "0.45,0.75",
    seconds: float = 20,
    rounds: int = 2,
    port: int = 8450,
) -> None:
    """Measure online requests without a job and beside it."""
    job = job or model
    names = ",".join(dict.fromkeys((model, job)))
    with served(store, port, options=["--models", names]) as (process, _), contextlib.ExitStack() as stack:
        address = _address(process)
        asked = Asked.of(store, model, port)
        generator.run(asked.closed(CONNECTIONS, 5), [process])
        result, _ = generator.run(asked.closed(CONNECTIONS, seconds / 2), [process])
        capacity = len(latencies_ms(result, 0)) / (seconds / 2)
        alone = _rate_alone(store, job, address, seconds)
        console.print(f"{model}: {capacity:,.0f} answers/s alone; job {job}: {alone:,.0f} rows/s alone")
        source = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="beside-rows-")))
        _files(store, job, source, max(1, int(alone * FILE_S / 4)), int((seconds + WARM_S) * 20 / FILE_S) + 200)
        scoring = Scoring(job, source, address)
        table = Table(title=f"{model} online, {job} scored", title_justify="left")
        for column in ("load", "p50", "p50 beside", "p99", "p99 beside", "p99 ratio", "job rows/s", "of what is left"):
            table.add_column(column, justify="right")
        for load in map(float, loads.split(",")):
            table.add_row(f"{load:.0%}", *_row(scoring, asked, capacity, alone, load, seconds, rounds, process))
        console.print(table)


def _row(
    scoring: Scoring,
    asked: Asked,
    capacity: float,
    alone: float,
    load: float,
    seconds: float,
    rounds: int,
    process: psutil.Process,
) -> list[str]:
    found: dict[str, list[np.ndarray]] = {"without": [], "beside": []}
    rates = []
    for number in range(rounds):
        order = opened({asked: load * capacity}, seconds, number)
        result, used = generator.run(order, [process])
        found["without"].append(latencies_ms(result, 0))
        with scoring.running() as job:
            began = time.time()
            result, used_beside = generator.run(order, [process])
            rates.append(job.rows_per_s(began, began + seconds))
        found["beside"].append(latencies_ms(result, 0))
        p99 = {how: float(np.percentile(times[-1], 99)) for how, times in found.items()}
        console.print(
            f"{load:.0%}, round {number + 1}: p99 {p99['without']:.1f} and {p99['beside']:.1f} ms, {rates[-1]:,.0f} "
            f"rows/s; {busy(used):.0%} and {busy(used_beside):.0%} of the cores, foreign "
            f"{used.foreign_share:.0%} and {used_beside.foreign_share:.0%}"
        )
    without, beside = (np.concatenate(times) for times in found.values())
    p50, p99s = ([float(np.percentile(times, part)) for times in (without, beside)] for part in (50, 99))
    rate = float(np.mean(rates))
    figures = [f"{each:.1f}" for each in (*p50, *p99s)]
    return [*figures, f"{p99s[1] / p99s[0]:.2f}", f"{rate:,.0f}", f"{rate / (alone * (1 - load)):.0%}"]


if __name__ == "__main__":
    typer.run(main)
