"""How requests share engine calls: this checkout against another one, in turns, on one machine.

    git worktree add ../before v0.1 && (cd ../before && ./scripts/install)
    python -m benchmarks.batches ../before

Two ways in, each with `--requests` requests under way: processes that route for themselves (`Client`), one request at a
time each, and HTTP connections to the routers. Nobody tells how many rows an engine call had, but all requests of a
call report the same `compute_ms`, to the microsecond: the rows a call are the answers by the different values. Ratios
are of this checkout to the other.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import models
from benchmarks.peers import Conditions, Enginehouse
from benchmarks.peers.process import Process, running
from benchmarks.releases import build, commit, now, python_of, url_of
from enginehouse.tools.bench import answers

HERE = Path(__file__).parent
#: Seconds of load before the first turn of each way.
WARM_S = 3.0
console = Console(highlight=False, width=110)

#: Told how long to ask by lines of its input; says, by lines of its output, [milliseconds, compute_ms] of each answer.
_CLIENT = """
import json, logging, sys, time
import numpy, ray
ray.init(sys.argv[4], log_to_driver=False, logging_level="ERROR")
import enginehouse
model, name = sys.argv[1:3]
row = {name: numpy.load(sys.argv[3])}
client = enginehouse.Client()
client.infer(model, row)
print("up", flush=True)
for line in sys.stdin:
    taken, end = [], time.monotonic() + float(line)
    while time.monotonic() < end:
        began = time.perf_counter()
        answer = client.answer(model, row)
        taken.append([(time.perf_counter() - began) * 1e3, answer["compute_ms"]])
    print(json.dumps(taken), flush=True)
"""

#: Asks for so many seconds; (milliseconds, compute_ms) of each answer.
Load = Callable[[float], list[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Turn:
    """Of one turn: rows an engine call, answers a second, the latency, and the median milliseconds of a call."""

    rows: float
    rate: float
    p50_ms: float
    p99_ms: float
    compute_ms: float


def main(
    before: Annotated[Path, typer.Argument(help="The other checkout, installed by its own scripts/install.")],
    turns: Annotated[int, typer.Option(min=2)] = 6,
    seconds: Annotated[float, typer.Option(min=1, help="Of load in each turn.")] = 6,
    requests: Annotated[int, typer.Option(min=1, help="Under way at once.")] = 8,
    only: Annotated[str, typer.Option(help="Models of benchmarks.models, by comma.")] = "wide,conv",
    port: Annotated[int, typer.Option(help="And the next one.")] = 18420,
    store: Annotated[str, typer.Option(help="Where the models are built.")] = str(HERE / ".store"),
) -> None:
    """Compare how this checkout and another one share engine calls; append the figures to results/batches.jsonl."""
    checkouts = {"after": HERE.parent, "before": before.resolve()}
    chosen = only.split(",")
    for model in chosen:
        build(model, Path(store))
    found: dict[str, object] = {"at": now(), "commits": {name: commit(path) for name, path in checkouts.items()}}
    for model in chosen:
        taken: dict[str, dict[str, list[Turn]]] = {way: {name: [] for name in checkouts} for way in ("clients", "http")}
        # The one that is started first is a little slower, with the same code in both: each is, once.
        for names in (list(checkouts), list(checkouts)[::-1]):
            with contextlib.ExitStack() as stack:
                processes: dict[str, Process] = {}
                for place, name in enumerate(names):
                    conditions = Conditions(store, model, "onnx-fp32", Path(), 1, 1, 32)
                    contestant = Enginehouse(name, "--threads 1")
                    started = running(contestant, python_of(checkouts[name]), conditions, port + place)
                    processes[name] = stack.enter_context(started)
                body, headers = answers.encode(_row())
                urls = {name: url_of(process, model) for name, process in processes.items()}
                for name, process in processes.items():
                    process.until_ready(body, headers, urls[name])
                by_http = {name: _http(url, body, headers, requests) for name, url in urls.items()}
                _take(taken["http"], by_http, turns // 2, seconds)
                # Started after the turns over HTTP: even idle ones take some of the cores.
                by_clients = {
                    name: stack.enter_context(_clients(process, python_of(checkouts[name]), model, requests))
                    for name, process in processes.items()
                }
                _take(taken["clients"], by_clients, turns // 2, seconds)
        for way, by_checkout in taken.items():
            found[f"{model}, {way}"] = _compared(f"{model}, {requests} by {way}", by_checkout)
    with (HERE / "results" / "batches.jsonl").open("a") as file:
        file.write(json.dumps(found) + "\n")


def _take(taken: dict[str, list[Turn]], loads: dict[str, Load], turns: int, seconds: float) -> None:
    for load in loads.values():
        load(WARM_S)
    order = list(loads)
    for _ in range(turns):
        random.shuffle(order)
        for name in order:
            answered = loads[name](seconds)
            latencies, compute = zip(*answered, strict=True)
            p50_ms, p99_ms = np.percentile(latencies, [50, 99])
            rows = len(answered) / len(set(compute))
            rate, compute_ms = len(answered) / seconds, statistics.median(compute)
            taken[name].append(Turn(rows, rate, float(p50_ms), float(p99_ms), compute_ms))


def _compared(title: str, taken: dict[str, list[Turn]]) -> dict[str, dict[str, float]]:
    table = Table("", "before", "after", "ratio", title=title)
    found = {}
    for figure in ("rows", "rate", "p50_ms", "p99_ms", "compute_ms"):
        medians = {name: statistics.median(getattr(turn, figure) for turn in of) for name, of in taken.items()}
        pairs = zip(taken["after"], taken["before"], strict=True)
        ratio = statistics.median(getattr(after, figure) / getattr(before, figure) for after, before in pairs)
        found[figure] = medians | {"ratio": ratio, "turns": len(taken["after"])}
        table.add_row(figure, f"{medians['before']:.2f}", f"{medians['after']:.2f}", f"{ratio:.2f}")
    console.print(table)
    return found


@contextlib.contextmanager
def _clients(process: Process, python: Path, model: str, count: int) -> Iterator[Load]:
    """So many processes that route for themselves, with the code of the checkout that they ask."""
    with contextlib.ExitStack() as stack:
        environment = psutil.Process(process.root.pid).environ() | {"RAY_AUTH_MODE": "token"}
        row_file = Path(environment["TMPDIR"]) / "row.npy"
        ((name, row),) = _row().items()
        np.save(row_file, row)
        told = [str(python), "-c", _CLIENT, model, name, str(row_file), _gcs_of(process)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        started = []
        for _ in range(count):
            one = stack.enter_context(subprocess.Popen(told, env=environment, text=True, cwd="/", **pipes))  # type: ignore[call-overload]
            stack.callback(one.kill)
            started.append(one)
        for one in started:
            if one.stdout.readline().strip() != "up":
                raise SystemExit(f"{process.contestant.name}: a client did not come up")

        def load(seconds: float) -> list[tuple[float, float]]:
            for one in started:
                one.stdin.write(f"{seconds}\n")
                one.stdin.flush()
            return [tuple(pair) for one in started for pair in json.loads(one.stdout.readline())]

        yield load


def _gcs_of(process: Process) -> str:
    """Address of its cluster. Not `auto`: there are two on this machine."""
    for root in process.processes():
        for one in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                for argument in one.cmdline():
                    if argument.startswith("--gcs-address="):
                        return argument.partition("=")[2]
    raise SystemExit(f"{process.contestant.name}: no Ray of its own was found")


def _http(url: str, body: bytes, headers: dict[str, str], count: int) -> Load:
    where = urlsplit(url)

    def load(seconds: float) -> list[tuple[float, float]]:
        taken: list[tuple[float, float]] = []
        end = time.monotonic() + seconds

        def ask() -> None:
            connection = http.client.HTTPConnection(where.hostname or "", where.port)
            while time.monotonic() < end:
                began = time.perf_counter()
                connection.request("POST", where.path, body, headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    raise SystemExit(f"{url}: {answer.status}")
                compute_ms = float(answer.headers["enginehouse-compute-ms"])
                taken.append(((time.perf_counter() - began) * 1e3, compute_ms))

        threads = [threading.Thread(target=ask) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return taken

    return load


def _row() -> dict[str, np.ndarray]:
    return {"x": models.vectors(1)}


if __name__ == "__main__":
    typer.run(main)
