"""The replay held against a real cluster: the same arrivals go to both.

    python -m benchmarks.replay.real STORE MODEL... [--replicas 2 --seconds 30 --load 0.5]

Replicas of one thread on this machine; in the simulated fleet each is a node. Its tables are those of the bundles, and
how much longer calls really take while all replicas compute is measured before the traces. Routers, the proxy and the
load generator use the same cores, of which the simulation knows nothing.
"""

from __future__ import annotations

import http.client
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Annotated

import numpy as np
import orjson
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.replay import traces
from benchmarks.replay.book import Ended
from benchmarks.replay.figures import Figure, figure
from benchmarks.replay.fleet import ZIPF, Fleet, Model, Node
from benchmarks.replay.replay import Outcome, policies, replay
from benchmarks.replay.router import NAME
from benchmarks.replay.traces import ROWS, Trace
from benchmarks.served import served
from enginehouse.contract.config import RouterConfig
from enginehouse.contract.latency import LatencyTable
from enginehouse.contract.manifest import FORMAT_OF, EngineKind, Manifest
from enginehouse.contract.store import Store
from enginehouse.tools.bench import answers, generator
from enginehouse.tools.bench.samples import synthetic

ENGINE: EngineKind = "onnxruntime-cpu"
#: A body and its headers, by model and rows.
Bodies = Mapping[tuple[str, int], tuple[bytes, dict[str, str]]]
console = Console(highlight=False, width=120)


def bodies(manifests: Sequence[Manifest]) -> Bodies:
    """A request of each size for each model."""
    return {
        (manifest.name, rows): answers.encode(synthetic(manifest).request(0, rows))
        for manifest in manifests
        for rows in ROWS
    }


def truth(port: int, manifests: Sequence[Manifest], replicas: int, seconds: float) -> dict[str, float]:
    """How often each model's table time fits into what its calls take while all replicas compute."""
    sent = bodies(manifests)
    times: defaultdict[tuple[str, int], list[float]] = defaultdict(list)

    def ask(_: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        until = time.monotonic() + seconds
        for (model, rows), (content, headers) in cycle(sent.items()):
            if time.monotonic() > until:
                return
            connection.request("POST", f"/v2/models/{model}/infer", content, headers)
            answer = connection.getresponse()
            answer.read()
            times[model, rows].append(float(answer.headers["enginehouse-compute-ms"]))

    with ThreadPoolExecutor(replicas) as callers:
        list(callers.map(ask, range(replicas)))
    medians = {key: statistics.median(found) for key, found in times.items()}
    return {
        manifest.name: sum(medians[manifest.name, rows] for rows in ROWS)
        / sum(_table(manifest).predict_ms(rows) for rows in ROWS)
        for manifest in manifests
    }


def fleet(manifests: Sequence[Manifest], true: Mapping[str, float], replicas: int) -> Fleet:
    """The cluster as the simulation has it; the models' popularity falls as everywhere in it."""
    popularity = 1 / np.arange(1, len(manifests) + 1) ** ZIPF
    popularity /= popularity.sum()
    return Fleet(
        [
            Model(
                manifest.name,
                0,
                float(share),
                {ENGINE: _table(manifest)},
                {ENGINE: manifest.efficient_rows(ENGINE, _table(manifest).artifact)},
                {ENGINE: true[manifest.name]},
                ENGINE,
            )
            for manifest, share in zip(manifests, popularity, strict=True)
        ],
        [Node(f"cpu-{number}", "cpu", 0) for number in range(replicas)],
    )


def send(port: int, made: Fleet, trace: Trace, sent: Bodies) -> Outcome:
    """What became of the arrivals on the real cluster, in the order in which they ended."""
    kinds = [(model, rows) for model in made.models for rows in ROWS]
    which = [kinds.index((made.models[model], rows)) for model, rows in zip(trace.models, trace.rows, strict=True)]
    order = generator.Order(
        [f"http://127.0.0.1:{port}/v2/models/{model.name}/infer" for model, _ in kinds],
        [
            sent[model.name, rows][1] | {"enginehouse-deadline-ms": f"{model.budget_s(rows) * 1e3:g}"}
            for model, rows in kinds
        ],
        [sent[model.name, rows][0] for model, rows in kinds],
        due_s=trace.at_s,
        which=which,
    )
    result, _ = generator.run(order, [])
    ends = []
    for one in result.requests:
        model, rows = kinds[one.body]
        ends.append(ended(one, model.budget_s(rows)))
    return Outcome(np.array(ends), np.array([one.latency_s for one in result.requests]), {"cpu": np.nan, "gpu": 0.0})


def ended(one: generator.Sent, budget_s: float) -> Ended:
    """How a request ended that a real client sent."""
    if one.error is None:
        return Ended.IN_TIME if one.latency_s <= budget_s else Ended.LATE
    if one.error.startswith("status 429") or "would pass" in one.error:
        return Ended.REFUSED
    return Ended.EXPIRED if one.error.startswith("status 504") else Ended.LOST


def _table(manifest: Manifest) -> LatencyTable:
    artifact = next(one for one in manifest.artifacts if (one.format, one.precision) == (FORMAT_OF[ENGINE], "fp32"))
    table = manifest.latency_of(ENGINE, artifact.name)
    if table is None or table.threads != 1:
        raise SystemExit(f"{manifest.name}: {artifact.name} has no times of one thread; build it with --threads 1")
    return table


def main(
    store: Annotated[Path, typer.Argument(help="Store with the models.")],
    models: Annotated[list[str], typer.Argument(help="Models, the most popular first, with fp32 ONNX of one thread.")],
    replicas: Annotated[int, typer.Option(min=1, help="Replicas; as many as there are cores.")] = 2,
    seconds: Annotated[float, typer.Option(min=10, help="Seconds of each trace.")] = 30,
    load: Annotated[float, typer.Option(min=0.01, help="Mean load over what full batches could do.")] = traces.LOAD,
    seed: int = 0,
    port: int = 8440,
    output: Annotated[Path | None, typer.Option(help="Append the figures to this JSON lines file.")] = None,
) -> None:
    """Send three traces to a real cluster and to a simulated one, and print what came of them."""
    kept = Store(str(store))
    manifests = [kept.manifest(model, kept.latest(model)) for model in models]
    options = ["--models", ",".join(models), "--threads", "1"]
    options += ["--min-replicas", str(replicas), "--max-replicas", str(replicas)]
    figures = []
    with served(store, port, options=options):
        sent = bodies(manifests)
        true = truth(port, manifests, replicas, seconds=3.0 * len(manifests))
        made = fleet(manifests, true, replicas)
        ours = policies(RouterConfig().num_replicas)[NAME]
        for trace in traces.make(made, seconds, seed, load):
            # Real replicas that are lost come back cold.
            if trace.loss is None:
                figures.append(figure(trace, "real", send(port, made, trace, sent)))
                figures.append(figure(trace, "simulated", replay(made, trace, ours, seed)))
    run = {"models": models, "replicas": replicas, "seconds": seconds, "load": load, "seed": seed, "truth": true}
    console.print(shown(figures, ", ".join(f"{name} {value}" for name, value in run.items())))
    if output is not None:
        with output.open("ab") as file:
            file.writelines(
                orjson.dumps(asdict(one) | {"run": run}, option=orjson.OPT_APPEND_NEWLINE) for one in figures
            )


def shown(figures: Sequence[Figure], title: str) -> Table:
    """A row for each figure: shares of the requests in per cent, and times of answers."""
    table = Table(title=title, title_justify="left")
    for column in ("trace", "cluster"):
        table.add_column(column)
    shares = ("violations", "late", "refused", "expired", "lost")
    for column in ("requests", *(f"{name} %" for name in shares), "p50 ms", "p99 ms"):
        table.add_column(column, justify="right")
    for one in figures:
        parts = (f"{getattr(one, name) * 100:.2f}" for name in shares)
        table.add_row(one.trace, one.policy, str(one.requests), *parts, f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}")
    return table


if __name__ == "__main__":
    typer.run(main)
