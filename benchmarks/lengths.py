"""Requests of many lengths: padded, equal lengths only, and beside an oracle, in turns, on one machine.

    python -m benchmarks.lengths

An encoder is built once and served under two names by one server: as it is, *padded*, and without what the build has
proven of padding, *apart*. Connections send one row each, of log-normal lengths (half of them longer than 48, none than
512). The *oracle* is the same engine in this process: it has all the rows beforehand, sorts them by length, pads each
batch to its longest, and takes the number of rows a call that is best. Some answers are compared with the engine's own,
unpadded. All requests of a call report the same `compute_ms`, to the microsecond, which tells the rows a call.
"""

from __future__ import annotations

import http.client
import json
import random
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.releases import commit, now
from benchmarks.served import ENGINEHOUSE, served
from enginehouse.contract.bundle import MANIFEST, Bundle
from enginehouse.contract.store import Store
from enginehouse.engines import Engine, load_engine
from enginehouse.engines.padding import Padder
from enginehouse.tools.bench import answers, usage

if TYPE_CHECKING:
    from enginehouse_build import ModelSource

HERE = Path(__file__).parent
SEED, ROWS = 7, 512
MEDIAN, SIGMA, LONGEST = 48, 0.8, 512
ARTIFACT = "onnx-fp32"
console = Console(highlight=False, width=110)

#: Of so many seconds of load (milliseconds, compute_ms) of each answer.
Load = Callable[[float], list[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Turn:
    """Answers a second, the latency, rows a call, and CPU milliseconds of an answer, of all that serves."""

    rate: float
    p50_ms: float
    p99_ms: float
    rows: float
    cpu_ms: float


def encoder() -> ModelSource:
    """The encoder of the examples, for sentences of up to 512 tokens: its cost is its arithmetic."""
    from examples import encoder as example

    return example.encoder(LONGEST)


def small() -> ModelSource:
    """Two layers of width 64: its cost is that of a call."""
    from examples import encoder as example

    return example.encoder(LONGEST, layers=2, width=64)


def main(
    model: Annotated[str, typer.Argument(help="encoder or small.")] = "encoder",
    turns: Annotated[int, typer.Option(min=2)] = 6,
    seconds: Annotated[float, typer.Option(min=1, help="Of load in each turn.")] = 10,
    connections: Annotated[int, typer.Option(min=1)] = 32,
    port: Annotated[int, typer.Option()] = 18430,
    store: Annotated[str, typer.Option(help="Where the model is built.")] = str(HERE / ".store"),
    options: Annotated[str, typer.Option(help="More options of `enginehouse serve`.")] = "",
) -> None:
    """Measure what padding gains; append the figures to results/lengths.jsonl."""
    bundle = _built(model, Path(store) / "lengths" / model)
    padder = Padder.of(bundle.manifest, bundle.manifest.artifact(ARTIFACT), "onnxruntime-cpu")
    if padder is None:
        raise SystemExit(f"nothing was proven: {bundle.manifest.artifact(ARTIFACT).remarks}")
    rows = sentences()
    with served(bundle.path.parents[1], port, options=options.split()) as (server, _):
        threads = psutil.cpu_count(logical=False) or 1
        engine = load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifact(ARTIFACT), threads=threads)
        best = max((1, 2, 4, 8, 16, 32), key=lambda size: len(_oracle(engine, padder, rows, size)(seconds / 4)))
        loads = {name: _http(port, name, rows, connections) for name in ("padded", "apart")}
        for name, load in loads.items():
            _compare(port, name, rows[:: ROWS // 16], engine)
            load(3.0)
        loads["oracle"] = _oracle(engine, padder, rows, best)
        taken: dict[str, list[Turn]] = {name: [] for name in loads}
        for _ in range(turns):
            for name in random.sample(list(loads), len(loads)):
                # The oracle computes in this process.
                taken[name].append(_turn(loads[name], seconds, psutil.Process() if name == "oracle" else server))
    _tell(taken, f"{model}, {connections} connections", best)


def sentences() -> list[dict[str, np.ndarray]]:
    """Requests of one row, the same in every run."""
    generator = np.random.default_rng(SEED)
    lengths = np.clip(generator.lognormal(np.log(MEDIAN), SIGMA, ROWS).round(), 8, LONGEST).astype(int)
    words = (generator.integers(1, 5000, (1, length)) for length in lengths)
    return [{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in words]


def _built(model: str, store: Path) -> Bundle:
    """The model, and a copy called `apart` of whose padding nothing is known."""
    if not (store / "apart").is_dir():
        what = [f"benchmarks.lengths:{model}", "--name", "padded", "--version", "1", "--store", str(store)]
        command = [ENGINEHOUSE, "build", *what, "--formats", "onnx", "--precisions", "fp32"]
        subprocess.run(command, check=True, cwd=HERE.parent)
        shutil.copytree(store / "padded", store / "apart")
        file = store / "apart" / "1" / MANIFEST
        manifest = Bundle.open(file.parent).manifest
        artifacts = tuple(each.model_copy(update={"padding": {}}) for each in manifest.artifacts)
        file.write_text(manifest.model_copy(update={"name": "apart", "artifacts": artifacts}).model_dump_json())
    return Store(str(store)).open("padded", "1")


def _turn(load: Load, seconds: float, serving: psutil.Process) -> Turn:
    before = usage.read([serving])
    found = load(seconds)
    used = before.until(usage.read([serving]))
    latencies, compute = zip(*found, strict=True)
    p50_ms, p99_ms = np.percentile(latencies, [50, 99])
    cpu_ms = used.serving_s / len(found) * 1e3
    return Turn(len(found) / used.seconds, float(p50_ms), float(p99_ms), len(found) / len(set(compute)), cpu_ms)


def _tell(taken: Mapping[str, Sequence[Turn]], title: str, best: int) -> None:
    shown = Table("", "answers/s", "p50 ms", "p99 ms", "rows a call", "CPU ms", "to apart", "to oracle", title=title)
    figures: dict[str, object] = {"at": now(), "commit": commit(HERE.parent), "of": title, "oracle_rows": best}
    for name, found in taken.items():
        medians = {each: statistics.median(getattr(turn, each) for turn in found) for each in Turn.__slots__}
        ratios = {
            other: statistics.median(one.rate / two.rate for one, two in zip(found, taken[other], strict=True))
            for other in ("apart", "oracle")
        }
        figures[name] = medians | {f"to_{other}": ratio for other, ratio in ratios.items()}
        shown.add_row(name, *(f"{value:.2f}" for value in (*medians.values(), *ratios.values())))
    console.print(shown)
    with (HERE / "results" / "lengths.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")


def _oracle(engine: Engine, padder: Padder, rows: Sequence[dict[str, np.ndarray]], size: int) -> Load:
    ordered = sorted(rows, key=padder.length)
    batches = [padder.joined(ordered[at : at + size]) for at in range(0, len(ordered), size)]

    def load(seconds: float) -> list[tuple[float, float]]:
        taken: list[tuple[float, float]] = []
        end = time.monotonic() + seconds
        # Not from short to long: a turn may end amid them.
        for at in _shuffled(len(batches)):
            if time.monotonic() >= end:
                break
            began = time.perf_counter()
            engine.infer(batches[at])
            took_ms = (time.perf_counter() - began) * 1e3
            taken += [(took_ms, took_ms)] * len(batches[at]["input_ids"])
        return taken

    return load


def _shuffled(length: int) -> Iterator[int]:
    while True:
        yield from random.sample(range(length), length)


def _http(port: int, name: str, rows: Sequence[dict[str, np.ndarray]], connections: int) -> Load:
    bodies = [answers.encode(row) for row in rows]
    path = f"/v2/models/{name}/infer"

    def load(seconds: float) -> list[tuple[float, float]]:
        taken: list[tuple[float, float]] = []
        end, turn = time.monotonic() + seconds, count()

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            while time.monotonic() < end:
                body, headers = bodies[next(turn) % len(bodies)]
                began = time.perf_counter()
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200:
                    raise SystemExit(f"{path}: {answer.status} {text[:200]!r}")
                taken.append(((time.perf_counter() - began) * 1e3, float(answer.headers["enginehouse-compute-ms"])))

        _at_once(ask, connections)
        return taken

    return load


def _compare(port: int, name: str, rows: Sequence[dict[str, np.ndarray]], engine: Engine) -> None:
    """Ask for all `rows` at once, and compare with what the engine answers to each alone."""
    got: dict[int, np.ndarray] = {}
    turn = count()

    def ask() -> None:
        at = next(turn)
        connection = http.client.HTTPConnection("127.0.0.1", port)
        body, headers = answers.encode(rows[at])
        connection.request("POST", f"/v2/models/{name}/infer", body, headers)
        answer = connection.getresponse()
        got[at] = answers.decode(answer.read(), answer.headers)["embedding"]

    _at_once(ask, len(rows))
    for at, row in enumerate(rows):
        np.testing.assert_allclose(got[at], engine.infer(row)["embedding"], atol=1e-5)


def _at_once(do: Callable[[], None], times: int) -> None:
    threads = [threading.Thread(target=do) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    typer.run(main)
