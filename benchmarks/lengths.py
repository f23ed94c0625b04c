"""Requests of many lengths: padded, equal lengths only, and beside an oracle, in turns, on one machine.

    python -m benchmarks.lengths

One encoder is built twice, with the padding that its build has proven and with `--pad none`, and both are served by one
server. Connections send one row each, of log-normal lengths (half of them longer than 48, none than 512). The oracle is
the same engine in this process: it has all the rows beforehand, sorts them by length, pads each batch to its longest,
and takes the number of rows a call that is best. A sample of the answers is compared with the engine's own, unpadded.
"""

from __future__ import annotations

import http.client
import json
import random
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
from enginehouse.contract.store import Store
from enginehouse.engines import Engine, load_engine
from enginehouse.engines.padding import Padder
from enginehouse.tools.bench import answers

if TYPE_CHECKING:
    from enginehouse_build import ModelSource

HERE = Path(__file__).parent
SEED, ROWS = 7, 512
MEDIAN, SIGMA, LONGEST = 48, 0.8, 512
#: Options of the build by the name of the model.
BUILDS: Mapping[str, Sequence[str]] = {"padded": (), "apart": ("--pad", "none")}
console = Console(highlight=False, width=110)

#: Answers for so many seconds; milliseconds of each.
Load = Callable[[float], list[float]]


@dataclass(frozen=True, slots=True)
class Turn:
    """Answers a second, and the latency."""

    rate: float
    p50_ms: float
    p99_ms: float


def encoder() -> ModelSource:
    """The encoder of the examples, for sentences of up to 512 tokens."""
    from examples import encoder as example

    return example.encoder(LONGEST)


def main(
    turns: Annotated[int, typer.Option(min=2)] = 6,
    seconds: Annotated[float, typer.Option(min=1, help="Of load in each turn.")] = 10,
    connections: Annotated[int, typer.Option(min=1)] = 32,
    port: Annotated[int, typer.Option()] = 18430,
    store: Annotated[str, typer.Option(help="Where the models are built.")] = str(HERE / ".store"),
    options: Annotated[str, typer.Option(help="More options of `enginehouse serve`.")] = "",
) -> None:
    """Measure what padding gains; append the figures to results/lengths.jsonl."""
    for name, pad in BUILDS.items():
        what = ["benchmarks.lengths:encoder", "--name", name, "--formats", "onnx", "--precisions", "fp32", *pad]
        subprocess.run([ENGINEHOUSE, "build", *what, "--store", store], check=True, cwd=HERE.parent)
    rows = sentences()
    with served(Path(store), port, options=options.split()):
        bundle = Store(store).open("padded", Store(store).latest("padded"), ["onnx-fp32"])
        artifact = bundle.manifest.artifact("onnx-fp32")
        padder = Padder.of(bundle.manifest, artifact, "onnxruntime-cpu")
        if padder is None:
            raise SystemExit(f"nothing was proven: {'; '.join(artifact.remarks)}")
        engine = load_engine("onnxruntime-cpu", bundle, artifact, threads=psutil.cpu_count(logical=False) or 1)
        loads: dict[str, Load] = {name: _http(port, name, rows, connections) for name in BUILDS}
        best = max((1, 2, 4, 8, 16, 32), key=lambda size: len(_oracle(engine, padder, rows, size)(seconds / 4)))
        loads["oracle"] = _oracle(engine, padder, rows, best)
        for name in BUILDS:
            _compare(port, name, rows[:: ROWS // 16], engine)
            loads[name](3.0)
        taken: dict[str, list[Turn]] = {name: [] for name in loads}
        for _ in range(turns):
            for name in random.sample(list(loads), len(loads)):
                began = time.monotonic()
                found = loads[name](seconds)
                rate = len(found) / (time.monotonic() - began)
                p50_ms, p99_ms = np.percentile(found, [50, 99])
                taken[name].append(Turn(rate, float(p50_ms), float(p99_ms)))
    _tell(taken, best, connections)


def sentences() -> list[dict[str, np.ndarray]]:
    """Requests of one row, the same in every run."""
    generator = np.random.default_rng(SEED)
    lengths = np.clip(generator.lognormal(np.log(MEDIAN), SIGMA, ROWS).round(), 8, LONGEST).astype(int)
    words = (generator.integers(1, 5000, (1, length)) for length in lengths)
    return [{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in words]


def _tell(taken: Mapping[str, Sequence[Turn]], best: int, connections: int) -> None:
    shown = Table("", "answers/s", "p50 ms", "p99 ms", "to apart", "to oracle", title=f"{connections} connections")
    figures: dict[str, object] = {"at": now(), "commit": commit(HERE.parent), "oracle_rows": best}
    for name, found in taken.items():
        medians = {each: statistics.median(getattr(turn, each) for turn in found) for each in Turn.__slots__}
        ratios = {
            other: statistics.median(one.rate / two.rate for one, two in zip(found, taken[other], strict=True))
            for other in ("apart", "oracle")
        }
        figures[name] = medians | {f"to_{other}": ratio for other, ratio in ratios.items()}
        numbers = [f"{medians['rate']:.1f}", f"{medians['p50_ms']:.1f}", f"{medians['p99_ms']:.1f}"]
        shown.add_row(name, *numbers, *(f"{ratio:.2f}" for ratio in ratios.values()))
    console.print(shown)
    with (HERE / "results" / "lengths.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")


def _oracle(engine: Engine, padder: Padder, rows: Sequence[dict[str, np.ndarray]], size: int) -> Load:
    ordered = sorted(rows, key=padder.length)
    batches = [padder.joined(ordered[at : at + size]) for at in range(0, len(ordered), size)]

    def load(seconds: float) -> list[float]:
        taken: list[float] = []
        end = time.monotonic() + seconds
        # Not from short to long: a turn may end amid them.
        for at in _shuffled(len(batches)):
            if time.monotonic() >= end:
                return taken
            began = time.perf_counter()
            engine.infer(batches[at])
            taken += [(time.perf_counter() - began) * 1e3] * len(batches[at]["input_ids"])
        return taken

    return load


def _shuffled(length: int) -> Iterator[int]:
    while True:
        yield from random.sample(range(length), length)


def _http(port: int, name: str, rows: Sequence[dict[str, np.ndarray]], connections: int) -> Load:
    bodies = [answers.encode(row) for row in rows]
    path = f"/v2/models/{name}/infer"

    def load(seconds: float) -> list[float]:
        taken: list[float] = []
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
                taken.append((time.perf_counter() - began) * 1e3)

        threads = [threading.Thread(target=ask) for _ in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return taken

    return load


def _compare(port: int, name: str, rows: Sequence[dict[str, np.ndarray]], engine: Engine) -> None:
    """Ask for all `rows` at once, and compare with what the engine answers to each alone."""
    got: dict[int, np.ndarray] = {}

    def ask(at: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        body, headers = answers.encode(rows[at])
        connection.request("POST", f"/v2/models/{name}/infer", body, headers)
        answer = connection.getresponse()
        got[at] = answers.decode(answer.read(), answer.headers)["embedding"]

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at, row in enumerate(rows):
        np.testing.assert_allclose(got[at], engine.infer(row)["embedding"], atol=1e-5)


if __name__ == "__main__":
    typer.run(main)
