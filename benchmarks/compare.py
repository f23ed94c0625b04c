"""enginehouse beside other servers: the same model file, the same cores, as many engine threads, measured in turns.

    scripts/bench --peers

In every round each contestant is started in its turn, its answers are compared with the engine's own, it is measured
and ended: nobody else is there meanwhile. A round begins with the limit: the same engines with nothing around them.
All of it takes three quarters of an hour; `taskset -c 0,1 scripts/bench --peers` leaves all of them two cores.
"""

from __future__ import annotations

import datetime
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from benchmarks.peers import PEERS, Conditions, Contestant, Enginehouse, NotRun
from benchmarks.peers.environment import python_of, version_of
from benchmarks.peers.table import lines, table
from benchmarks.peers.turn import Durations, Turn, take
from enginehouse.contract.bundle import Bundle
from enginehouse.contract.manifest import EngineKind
from enginehouse.contract.store import Store
from enginehouse.engines import hardware
from enginehouse.tools.bench.limit import Engines, Order
from enginehouse.tools.bench.samples import synthetic

HERE = Path(__file__).parent
MODELS = ("tiny", "mobilenet", "resnet18")
#: Built here too, when it is asked for: takes pixels, and is the one that has other artifacts.
PIXELS = "pixels"
#: Engines in pools, behind a hop; and in the routers, of which there are two: by default they share the cores.
SHAPES = (
    "enginehouse=--threads {threads} --min-replicas {workers} --max-replicas {workers}",
    "enginehouse-resident=--threads {threads} --resident all",
)
_PROBES = 4
_LIMIT_S = 3.0
#: Wide enough for the table, also where the output goes to a file.
_console = Console(highlight=False, soft_wrap=True, width=max(120, Console().width))


def main(
    store: Annotated[str, typer.Option(help="Store with the models; those of benchmarks.models are built there.")] = (
        str(HERE / ".store")
    ),
    models: Annotated[str, typer.Option(help="Models, by comma.")] = ",".join(MODELS),
    artifact: Annotated[str, typer.Option(help="What all serve: onnx-fp32, openvino-int8 (of `pixels`), ...")] = (
        "onnx-fp32"
    ),
    only: Annotated[str, typer.Option(help="Contestants, by comma; default all.")] = "",
    shapes: Annotated[
        list[str] | None,
        typer.Option("--enginehouse", help="A shape of it: NAME=ARGUMENTS of `enginehouse serve`; repeatable."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; figures are medians over them.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of a measurement at 32 connections.")] = 15,
    warm_up: Annotated[float, typer.Option(min=1, help="Seconds of load before them.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Engines of each contestant; 0: one per physical core.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each engine.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch, where there are batches.")] = 8,
    port: Annotated[int, typer.Option(help="First of the ports to use.")] = 8700,
    results: Annotated[Path, typer.Option(help="Folder for the figures as JSON lines.")] = HERE / "results",
) -> None:
    """Measure enginehouse and its peers in turns, and print a table for each model."""
    # SystemExit unwinds, so that the contestant whose turn it is ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    contestants = _contestants(shapes or SHAPES, only)
    wanted = [name.strip() for name in models.split(",")]
    workers = workers or hardware.physical_cores()
    _build_missing(store, wanted)
    pythons = {contestant.name: _python(contestant) for contestant in contestants}
    results.mkdir(parents=True, exist_ok=True)
    run = _run()
    file = results / f"peers-{run['started']}.jsonl"
    for model in wanted:
        bundle = Store(store).open(model, Store(store).latest(model), [artifact])
        served = bundle.manifest.artifact(artifact)
        path = next(file for file in bundle.verified_files(served) if file.suffix in (".onnx", ".xml")).resolve()
        url, numerics = Store(store).absolute_url(), served.numerics_class
        conditions = Conditions(url, model, artifact, path, workers, threads, max_batch, numerics)
        turns: dict[str, list[Turn]] = {contestant.name: [] for contestant in contestants}
        for number in range(1, rounds + 1):
            _round(number, bundle, conditions, pythons, contestants, turns, Durations(warm_up, seconds), port)
            for contestant in contestants:
                name = contestant.name
                for line in lines(name, version_of(contestant), conditions, turns[name][-1], run):
                    with file.open("ab") as stream:
                        stream.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        _console.print(table(conditions, turns))
    _console.print(f"figures: {file}")


def _round(
    number: int,
    bundle: Bundle,
    conditions: Conditions,
    pythons: Mapping[str, Path | NotRun],
    contestants: list[Contestant],
    turns: dict[str, list[Turn]],
    durations: Durations,
    port: int,
) -> None:
    """The limit, then each contestant's turn, which is added to `turns`."""
    samples = synthetic(bundle.manifest)
    engine: EngineKind = "openvino-cpu" if conditions.file.suffix == ".xml" else "onnxruntime-cpu"
    order = Order(bundle.path, engine, conditions.artifact, conditions.threads)
    with Engines(order, conditions.workers) as engines:
        limits = [engines.limit(samples.request(0, rows), rows, _LIMIT_S) for rows in {1, conditions.max_batch}]
        probes = [(row, engines.infer(row)) for row in (samples.request(start, 1) for start in range(_PROBES))]
    limit = max(limits, key=lambda one: one.rows_per_s)
    where = f"{conditions.model}, round {number}"
    _console.print(f"{where}: limit {limit.rows_per_s:,.1f} rows/s")
    for index, contestant in enumerate(contestants):
        python = pythons[contestant.name]
        if isinstance(python, NotRun):
            turn = Turn(number, limit, failure=f"not run: {python}")
        else:
            # A port of its own, with room for side ports: those of the one before may linger.
            at = port + 10 * index
            turn = take(number, limit, contestant, python, conditions, at, probes, durations)
            found = f"{turn.figures[0].answers_per_s:,.1f} answers/s" if turn.figures else turn.failure
            _console.print(f"{where}: {contestant.name} {found}")
        turns[contestant.name].append(turn)


def _contestants(shapes: Sequence[str], only: str) -> list[Contestant]:
    ours = []
    for shape in shapes:
        name, separator, arguments = shape.partition("=")
        if not (name and separator):
            raise typer.BadParameter(f"--enginehouse {shape!r} is not NAME=ARGUMENTS, such as {SHAPES[0]!r}")
        ours.append(Enginehouse(name, arguments))
    everyone: list[Contestant] = [*ours, *PEERS]
    known = {contestant.name: contestant for contestant in everyone}
    chosen = [name.strip() for name in only.split(",") if name.strip()] or list(known)
    if unknown := set(chosen) - set(known):
        raise typer.BadParameter(f"--only {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    return [known[name] for name in chosen]


def _build_missing(store: str, models: list[str]) -> None:
    for model in models:
        if Store(store).versions(model):
            continue
        if model not in (*MODELS, PIXELS):
            raise typer.BadParameter(
                f"{store} has no model {model!r}; only {', '.join(MODELS)}, {PIXELS} are built here"
            )
        _console.print(f"building {model} into {store}")
        source = [f"benchmarks.models:{model}", "--name", model, "--store", store]
        made = ("onnx,openvino", "fp32,int8") if model == PIXELS else ("onnx", "fp32")
        formats = ["--formats", made[0], "--precisions", made[1]]
        build = [sys.executable, "-m", "enginehouse", "build", *source, *formats]
        if subprocess.run(build, check=False).returncode:
            raise typer.Exit(1)


def _python(contestant: Contestant) -> Path | NotRun:
    try:
        return python_of(contestant, lambda: _console.print(f"making an environment for {contestant.name}"))
    except NotRun as reason:
        _console.print(f"{contestant.name} is not run: {reason}")
        return reason


def _run() -> dict[str, Any]:
    """What all lines of this run share."""
    cpu = hardware.probe_cpu()
    return {
        "started": f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}",
        "cpu": cpu.model,
        "cores": hardware.physical_cores(),
        "python": platform.python_version(),
        **hardware.engine_versions(),
    }


if __name__ == "__main__":
    typer.run(main)
