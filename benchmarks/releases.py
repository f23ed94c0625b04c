"""Two checkouts of enginehouse against each other: CPU time and rate of the same requests, in turns, on one machine.

    git worktree add ../before v0.1 && (cd ../before && ./scripts/install)
    python -m benchmarks.releases ../before

Both serve the same store at the same time, each from its own checkout and virtual environment. The load goes to one and
then to the other, `--turns` times, so that whatever else the machine does meets both; the idle one costs both the same.
A ratio is of this checkout to the other, its interval the 95 % bootstrap interval of the median over the turns.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import models as networks
from benchmarks.peers import Conditions, Enginehouse
from benchmarks.peers.process import Process, running
from enginehouse.contract.tensors import Tensors
from enginehouse.tools.bench import answers
from enginehouse.tools.bench.load import closed_loop

HERE = Path(__file__).parent
#: Where engines are: behind a hop, or in the routers, of one thread each; or as it comes, without an option.
SHAPES = {"pools": "--threads {threads}", "resident": "--threads {threads} --resident all", "default": ""}
#: Model -> a row of it.
ROWS: dict[str, Callable[[], Tensors]] = {
    "tiny": lambda: {"x": networks.vectors(1)},
    "frame": lambda: {"image": networks.images(1)},
    "mobilenet": lambda: {"image": networks.images(1)},
    "resnet18": lambda: {"image": networks.images(1)},
}
console = Console(highlight=False, width=110)


@dataclass(frozen=True, slots=True)
class Turn:
    """Of one turn of one checkout: CPU milliseconds of all its processes an answer, answers a second, and latency."""

    cpu_ms: float
    rate: float
    p50_ms: float
    p99_ms: float


def main(
    before: Annotated[Path, typer.Argument(help="The other checkout, installed by its own scripts/install.")],
    turns: Annotated[int, typer.Option(min=2)] = 12,
    seconds: Annotated[int, typer.Option(min=1, help="Of load in each turn.")] = 3,
    port: Annotated[int, typer.Option(help="And the next one.")] = 18400,
    only: Annotated[str, typer.Option(help="Shapes, by comma: pools, resident, default.")] = "pools,resident",
    models: Annotated[str, typer.Option(help="Of benchmarks.models, by comma.")] = "tiny,frame",
    connections: Annotated[int, typer.Option(min=1, help="With one request under way on each.")] = 32,
    store: Annotated[str, typer.Option(help="Where the models are built.")] = str(HERE / ".store"),
) -> None:
    """Compare this checkout with another one, and append the figures to results/releases.jsonl."""
    checkouts = {"after": HERE.parent, "before": before.resolve()}
    chosen = models.split(",")
    for model in chosen:
        build(model, Path(store))
    compared: dict[str, Any] = {"at": now(), "commits": {name: commit(path) for name, path in checkouts.items()}}
    compared["idle"] = {name: _imports(path) for name, path in checkouts.items()}
    for shape in only.split(","):
        taken: dict[str, dict[str, list[Turn]]] = {model: {name: [] for name in checkouts} for model in chosen}
        # The one that is started first is a little slower (2 %, with the same code in both): each is, once.
        for names in (list(checkouts), list(checkouts)[::-1]):
            with contextlib.ExitStack() as stack:
                served = {}
                for name in names:
                    conditions = Conditions(store, models, "onnx-fp32", Path(), 1, 1, 32)
                    contestant = Enginehouse(name, SHAPES[shape])
                    process = running(contestant, python_of(checkouts[name]), conditions, port + len(served))
                    served[name] = stack.enter_context(process)
                for model in chosen:
                    _take(taken[model], served, model, connections, turns // 2, seconds)
                for name, process in served.items():
                    compared["idle"][name][f"pss_mib, {shape}"] = _pss(process)
        for model, figures in taken.items():
            compared[f"{model}, {shape}, {connections}"] = found = {
                figure: _ratio(*([getattr(turn, figure) for turn in figures[name]] for name in ("after", "before")))
                for figure in ("cpu_ms", "rate", "p50_ms", "p99_ms")
            }
            _show(f"{model}, {shape}", found)
    console.print(compared["idle"])
    with (HERE / "results" / "releases.jsonl").open("a") as file:
        file.write(json.dumps(compared) + "\n")


def _take(
    taken: dict[str, list[Turn]], served: dict[str, Process], model: str, connections: int, turns: int, seconds: int
) -> None:
    """Add so many turns of each checkout to `taken`."""
    body, headers = answers.encode(ROWS[model]())
    urls = {name: url_of(process, model) for name, process in served.items()}
    for name, url in urls.items():
        served[name].until_ready(body, headers, url)
        closed_loop(url, body, headers, connections, 3, served[name].processes())
    order = list(urls)
    for _ in range(turns):
        # Whoever comes second may find a machine that the first has warmed.
        random.shuffle(order)
        for name in order:
            figure = closed_loop(urls[name], body, headers, connections, seconds, served[name].processes())
            if figure.errors:
                raise SystemExit(f"{name}: {figure.errors} errors, such as {figure.error}")
            cpu_ms = figure.usage.serving_s / figure.answers * 1e3
            rate, latency = figure.answers / figure.seconds, figure.latency
            taken[name].append(Turn(cpu_ms, rate, latency.p50, latency.p99))


def _ratio(after: Sequence[float], before: Sequence[float]) -> dict[str, float]:
    ratios = [one / other for one, other in zip(after, before, strict=True)]
    medians = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {
        "before": statistics.median(before),
        "after": statistics.median(after),
        "ratio": statistics.median(ratios),
        "low": medians[50],
        "high": medians[-50],
        "turns": len(ratios),
    }


def _show(name: str, found: dict[str, Any]) -> None:
    table = Table("", "before", "after", "ratio", "95 %", title=name)
    for figure, one in found.items():
        interval = f"{one['low']:.3f} - {one['high']:.3f}"
        table.add_row(figure, f"{one['before']:.3f}", f"{one['after']:.3f}", f"{one['ratio']:.3f}", interval)
    console.print(table)


def _imports(checkout: Path) -> dict[str, float]:
    """Best of five: seconds to import what a router and a command import, and resident MiB afterwards."""
    found = {}
    for name, module in (("router", "enginehouse.app"), ("command", _command_module(checkout))):
        code = (
            f"import time; began = time.perf_counter(); import {module}; took = time.perf_counter() - began\n"
            "import psutil; print(took, psutil.Process().memory_info().rss / 2**20)"
        )
        runs = []
        for _ in range(5):
            done = subprocess.run(
                [python_of(checkout), "-c", code], capture_output=True, text=True, check=True, cwd="/"
            )
            runs.append([float(part) for part in done.stdout.split()])
        found[f"import_s, {name}"], found[f"rss_mib, {name}"] = (min(column) for column in zip(*runs, strict=True))
    return found


def _command_module(checkout: Path) -> str:
    # The command line moved: a checkout has it here or, before, directly in the package.
    floor = "tools." if (checkout / "serve" / "enginehouse" / "tools").is_dir() else ""
    return f"enginehouse.{floor}cli"


def _pss(process: Process) -> float:
    """MiB of all processes, memory that they share counted once."""
    time.sleep(5)
    total = 0
    known = {one.pid: one for root in process.processes() for one in (root, *root.children(recursive=True))}
    for one in known.values():
        with contextlib.suppress(psutil.Error):
            total += one.memory_full_info().pss
    return total / 2**20


def build(model: str, store: Path) -> None:
    if (store / model).is_dir():
        return
    command = [sys.executable, "-m", "enginehouse", "build", f"benchmarks.models:{model}", "--name", model]
    options = ["--store", str(store), "--formats", "onnx", "--precisions", "fp32"]
    subprocess.run([*command, *options], check=True, cwd=HERE.parent)


def url_of(process: Process, model: str) -> str:
    return f"{process.url.split('/v2/')[0]}/v2/models/{model}/infer"


def python_of(checkout: Path) -> Path:
    return checkout / ".venv" / "bin" / "python"


def commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    typer.run(main)
