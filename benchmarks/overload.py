"""Far more requests than the engines can answer: what is answered in time, how fast the rest is refused, and memory.

    enginehouse build benchmarks.models:conv --name conv --store store --formats onnx --precisions fp32
    python -m benchmarks.overload store conv [--times 10] [--seconds 60] [--deadline-ms 500]

Capacity is what 32 connections without a deadline get in the same run. The load is open: h2load starts requests at its
times, on so many connections that those which wait for an answer hold up few others; what it could not send is said.
"""

from __future__ import annotations

import http.client
import json
import math
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.served import served
from enginehouse.contract.store import Store
from enginehouse.tools.bench import answers
from enginehouse.tools.bench.samples import synthetic

CAPACITY_S = 10
#: Requests a second that one connection is asked for at most: it waits for an answer before it sends the next.
PER_CONNECTION = 2
GROUPS = 20
console = Console(highlight=False)


@dataclass(frozen=True)
class Overload:
    """One run. Rates are per second, times in milliseconds, memory in MiB over all serving processes."""

    model: str
    deadline_ms: float
    capacity: float
    asked_for: float
    offered: float
    goodput: float
    late: int
    refused: int
    failed: dict[int, int]
    answered_p50_ms: float
    answered_p99_ms: float
    refused_p50_ms: float
    refused_p99_ms: float
    memory_before: float
    memory_after: float
    memory_most: float


def load(url: str, body: Path, headers: dict[str, str], seconds: int, connections: int, rate: int) -> np.ndarray:
    """What h2load saw: an array of [status, milliseconds]; `rate` is of each connection, 0 as fast as answers come.

    With a rate all connections of one h2load send at the same moment, so several share the load, one after the other.
    """
    groups = GROUPS if rate else 1
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for group in range(groups):
            log = str(Path(folder) / f"log{group}")
            command = ["h2load", "--h1", "-c", str(math.ceil(connections / groups)), "-D", str(seconds)]
            command += ["-d", str(body), "--log-file", log, *([f"--rps={rate}"] if rate else [])]
            for name, value in headers.items():
                command += ["-H", f"{name}: {value}"]
            running.append(subprocess.Popen([*command, url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
            time.sleep(1 / rate / groups if rate else 0)
        for one in running:
            said = one.communicate()[0]
            if one.returncode:
                raise SystemExit(f"h2load: {said.decode()}")
        seen = np.concatenate([np.loadtxt(log, ndmin=2) for log in Path(folder).iterdir()])
    return np.column_stack([seen[:, 1], seen[:, 2] / 1e3])


def measure(store: Path, model: str, port: int, times: float, seconds: float, deadline_ms: float) -> Overload:
    """One replica of one thread, two routers."""
    manifest = Store(str(store)).manifest(model, Store(str(store)).latest(model))
    content, headers = answers.encode(synthetic(manifest).request(0, 1))
    options = ["--models", model, "--threads", "1", "--min-replicas", "1", "--max-replicas", "1"]
    with served(store, port, options=options) as (process, _), tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        url, body = f"http://127.0.0.1:{port}/v2/models/{model}/infer", Path(file.name)
        _check(port, model, content, headers)
        load(url, body, headers, 3, 32, 0)
        calm = load(url, body, headers, CAPACITY_S, 32, 0)
        capacity = np.count_nonzero(calm[:, 0] == 200) / CAPACITY_S
        rate = times * capacity
        limited = headers | {"enginehouse-deadline-ms": f"{deadline_ms:g}"}
        before = memory(process)
        watched = [before]
        seen = []
        # In parts, to see the memory in between.
        for _ in range(parts := max(1, round(seconds / 10))):
            seen.append(
                load(url, body, limited, round(seconds / parts), math.ceil(rate / PER_CONNECTION), PER_CONNECTION)
            )
            watched.append(memory(process))
    status, time_ms = np.concatenate(seen).T
    answered, refused = time_ms[status == 200], time_ms[(status == 429) | (status == 504)]
    other, counts = np.unique(status[~np.isin(status, (200, 429, 504))], return_counts=True)
    return Overload(
        model=model,
        deadline_ms=deadline_ms,
        capacity=round(capacity, 1),
        asked_for=round(rate, 1),
        offered=round(len(status) / seconds, 1),
        goodput=round(float(np.count_nonzero(answered <= deadline_ms)) / seconds, 1),
        late=int(np.count_nonzero(answered > deadline_ms)),
        refused=len(refused),
        failed={int(code): int(count) for code, count in zip(other, counts, strict=True)},
        answered_p50_ms=_quantile(answered, 50),
        answered_p99_ms=_quantile(answered, 99),
        refused_p50_ms=_quantile(refused, 50),
        refused_p99_ms=_quantile(refused, 99),
        memory_before=before,
        memory_after=watched[-1],
        memory_most=max(watched),
    )


def memory(process: psutil.Process) -> float:
    """PSS of a process and all below it."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:
            continue
    return round(total / 2**20, 1)


def _check(port: int, model: str, content: bytes, headers: dict[str, str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", f"/v2/models/{model}/infer", content, headers)
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"{model} answers {answer.status}: {answer.read().decode(errors='replace')}")


def _quantile(values: np.ndarray, percent: float) -> float:
    return round(float(np.percentile(values, percent)), 2) if len(values) else math.nan


def main(
    store: Annotated[Path, typer.Argument(help="Store with the model.")],
    model: str = "conv",
    times: Annotated[float, typer.Option(help="Offered load over capacity.")] = 10,
    seconds: float = 60,
    deadline_ms: float = 500,
    port: int = 8420,
    output: Annotated[Path | None, typer.Option(help="Append the figures to this JSON lines file.")] = None,
) -> None:
    """Measure one model under overload and print what became of the requests."""
    found = measure(store, model, port, times, seconds, deadline_ms)
    table = Table(title=f"{model}, {times:g} times its capacity for {seconds:g} s", title_justify="left")
    for column, justify in (("figure", "left"), ("value", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name, value in asdict(found).items():
        table.add_row(name.replace("_", " "), str(value))
    table.add_row("goodput / capacity", f"{found.goodput / found.capacity:.2f}")
    console.print(table)
    if output is not None:
        with output.open("a") as file:
            file.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    typer.run(main)
