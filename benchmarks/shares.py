"""Two models at once on the cores of one machine, one of them asked three times as often.

    python -m benchmarks.shares STORE --often mobilenet --seldom resnet18

First each model alone, as fast as 32 connections go: its capacity. Then requests at random moments (Poisson): each
model alone and both together, in turns, so that the cores are as busy in all three, `--busy` of what they can do. Last
both as fast as connections go, of which the one has three times as many. `enginehouse serve` has no option.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.served import served
from enginehouse.contract.store import Store
from enginehouse.tools.bench import answers, arrivals, generator
from enginehouse.tools.bench.generator import Order, Result
from enginehouse.tools.bench.samples import synthetic
from enginehouse.tools.bench.usage import Usage

CONNECTIONS = 32
WARM_S = 5.0
#: How often the one is asked for every request to the other.
TIMES = 3
console = Console(highlight=False, width=110)


@dataclass(frozen=True, eq=False)
class Asked:
    """A model, and a request to it."""

    name: str
    url: str
    body: bytes
    headers: dict[str, str]

    @classmethod
    def of(cls, store: Path, name: str, port: int) -> Asked:
        manifest = Store(str(store)).manifest(name, Store(str(store)).latest(name))
        body, headers = answers.encode(synthetic(manifest).request(0, 1))
        return cls(name, f"http://127.0.0.1:{port}/v2/models/{name}/infer", body, headers)

    def closed(self, connections: int, seconds: float) -> Order:
        return Order(self.url, self.headers, [self.body], connections=connections, seconds=seconds)


def opened(rates: dict[Asked, float], seconds: float, seed: int) -> Order:
    """Requests to all of `rates` (a second), each at moments of its own."""
    due = [
        (at, which) for which, rate in enumerate(rates.values()) for at in arrivals.poisson(rate, seconds, seed + which)
    ]
    moments, which = zip(*sorted(due), strict=True)
    models = list(rates)
    return Order(
        [model.url for model in models],
        [model.headers for model in models],
        [model.body for model in models],
        due_s=moments,
        which=which,
    )


def latencies_ms(result: Result, which: int) -> np.ndarray:
    if errors := {sent.error for sent in result.requests if sent.error}:
        raise SystemExit(f"requests failed: {', '.join(sorted(errors))}")
    return np.array([sent.latency_s * 1e3 for sent in result.requests if sent.body == which])


def busy(used: Usage) -> float:
    """The share of the cores that serving and the load took together."""
    return (used.serving_s + used.own_s) / (used.seconds * used.cores)


def main(
    store: Annotated[Path, typer.Argument(help="Store with both models.")],
    often: str = "mobilenet",
    seldom: str = "resnet18",
    share: Annotated[float, typer.Option("--busy", help="Share of the capacity that is asked for.")] = 0.7,
    seconds: float = 20,
    rounds: int = 2,
    port: int = 8440,
) -> None:
    """Measure both models alone and together."""
    with served(store, port, options=["--models", f"{often},{seldom}"]) as (process, _):
        models = [Asked.of(store, name, port) for name in (often, seldom)]
        capacity = [_capacity(model, seconds / 2, process) for model in models]
        for model, rate in zip(models, capacity, strict=True):
            console.print(f"{model.name}: {rate:,.1f} answers/s alone")
        # The two together ask for as much of the cores as each of them alone.
        unit = share / (TIMES / capacity[0] + 1 / capacity[1])
        together = dict(zip(models, (TIMES * unit, unit), strict=True))
        found: dict[str, list[np.ndarray]] = {}
        for number in range(rounds):
            for which, model in enumerate(models):
                alone, _ = generator.run(opened({model: share * capacity[which]}, seconds, number), [process])
                found.setdefault(f"{model.name} alone", []).append(latencies_ms(alone, 0))
            both, used = generator.run(opened(together, seconds, number), [process])
            for which, model in enumerate(models):
                found.setdefault(f"{model.name} together", []).append(latencies_ms(both, which))
            console.print(f"together: {busy(used):.0%} of the cores")
        _show(models, found)
        _saturated(models, capacity, seconds, process)


def _capacity(model: Asked, seconds: float, process: psutil.Process) -> float:
    generator.run(model.closed(CONNECTIONS, WARM_S), [process])
    result, _ = generator.run(model.closed(CONNECTIONS, seconds), [process])
    return len(latencies_ms(result, 0)) / seconds


def _show(models: list[Asked], found: dict[str, list[np.ndarray]]) -> None:
    table = Table(title="at random moments, the cores as busy in all", title_justify="left")
    for column in ("model", "p50 alone", "p50 together", "p99 alone", "p99 together", "p99 ratio"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model in models:
        alone, both = (np.concatenate(found[f"{model.name} {how}"]) for how in ("alone", "together"))
        p50, p99 = ([float(np.percentile(times, part)) for times in (alone, both)] for part in (50, 99))
        figures = [f"{each:.1f}" for each in (*p50, *p99)]
        table.add_row(model.name, *figures, f"{p99[1] / p99[0]:.2f}")
    console.print(table)


def _saturated(models: list[Asked], capacity: list[float], seconds: float, process: psutil.Process) -> None:
    """Both as fast as their connections go; the shares of the cores by what each takes alone."""
    connections = (TIMES * CONNECTIONS // (TIMES + 1), CONNECTIONS // (TIMES + 1))
    ended: dict[int, tuple[Result, Usage]] = {}

    def ask(which: int) -> None:
        ended[which] = generator.run(models[which].closed(connections[which], seconds), [process])

    threads = [threading.Thread(target=ask, args=(which,)) for which in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rates = [len(latencies_ms(ended[which][0], 0)) / seconds for which in range(len(models))]
    parts = [rate / most for rate, most in zip(rates, capacity, strict=True)]
    for model, rate, part, count in zip(models, rates, parts, connections, strict=True):
        console.print(f"{model.name}, {count} connections: {rate:,.1f} answers/s, {part:.0%} of alone")
    console.print(f"together {sum(parts):.2f} of alone, {busy(ended[0][1]):.0%} of the cores")


if __name__ == "__main__":
    typer.run(main)
