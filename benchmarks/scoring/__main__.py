"""`enginehouse score` beside loops by hand and Ray Data, over the same files beside the same idle server, in turns.

    python -m benchmarks.scoring digits
    python -m benchmarks.scoring pictures --only loop,engines

Every contestant is a command of its own that reads INPUT and writes Parquet. Two rates: of the whole command, from its
start to its end, and *steady*, of the rows that were written after the first file of results (of Ray Data, which may
write one file, of its job without the start of Ray). Ratios are to the loop by hand that calls the same engine
(`by_hand`), turn by turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer
from pyarrow import dataset, parquet
from rich.console import Console
from rich.table import Table

from benchmarks.releases import commit, now
from benchmarks.scoring.inputs import SUBJECTS
from benchmarks.served import served

HERE = Path(__file__).parents[1]
LOOP = "loop"
#: What is run: module and options; the last two are `enginehouse score`. Options are the best of those that were tried.
CONTESTANTS: dict[str, list[str]] = {
    LOOP: ["benchmarks.scoring.by_hand"],
    "ort": ["benchmarks.scoring.by_hand", "--bare"],
    "ray-data": ["benchmarks.scoring.ray_data"],
    "engines": ["enginehouse", "score", "--via", "engines"],
    "serve": ["enginehouse", "score", "--via", "serve"],
    "default": ["enginehouse", "score"],
}
console = Console(highlight=False, width=110)


@dataclass(frozen=True, slots=True)
class Turn:
    """Rows a second of the whole command and of all but its start, and how long the command took."""

    whole: float
    steady: float
    seconds: float


def main(
    subject: Annotated[str, typer.Argument(help="digits or pictures.")],
    rows: Annotated[int | None, typer.Option(min=1, help="By default 1,000,000 digits, 2,000 pictures.")] = None,
    turns: Annotated[int, typer.Option(min=1)] = 3,
    only: Annotated[str, typer.Option(help="Contestants, by comma.")] = "loop,ort,ray-data,engines,serve",
    store: Annotated[Path, typer.Option(help="Where the model is built.")] = HERE / ".store" / "scoring",
    port: Annotated[int, typer.Option(help="Of the server.")] = 18460,
    options: Annotated[str, typer.Option(help="Further ones of by_hand and ray_data, such as '--batch 32'.")] = "",
) -> None:
    """Compare, and append the figures to results/scoring.jsonl."""
    what = SUBJECTS[subject]
    store = store.resolve() / subject
    what.build(store)
    count = rows or what.rows
    source = what.write(store.parent / "inputs", count)
    taken: dict[str, list[Turn]] = {name: [] for name in only.split(",")}
    with served(store, port) as (server, _), tempfile.TemporaryDirectory(dir=store.parent) as folder:
        address = _gcs_of(server)
        for _ in range(turns):
            order = list(taken)
            random.shuffle(order)
            for name in order:
                target = Path(folder) / name
                taken[name].append(
                    _turn(_command(name, what.model, store, source, target, address, options), target, count)
                )
                shutil.rmtree(target)
                console.print(f"{name}: {taken[name][-1]}")
    found = _show(f"{what.model}, {count:,} rows", taken)
    with (HERE / "results" / "scoring.jsonl").open("a") as file:
        file.write(json.dumps({"at": now(), "commit": commit(HERE.parent), subject: count, **found}) + "\n")


def _command(name: str, model: str, store: Path, source: Path, target: Path, address: str, options: str) -> list[str]:
    module, *own = CONTESTANTS[name]
    command = [sys.executable, "-m", module]
    if module == "enginehouse":
        return [*command, own[0], model, str(source), str(target), *own[1:], "--address", address]
    return [*command, str(store), model, str(source), str(target), *own, *options.split()]


def _turn(command: Sequence[str], target: Path, rows: int) -> Turn:
    # Ray of its own, where one is started, and not the server's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, env=environment, check=False)
    took = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    files = sorted((path.stat().st_mtime, parquet.read_metadata(path).num_rows) for path in target.glob("*.parquet"))
    written = dataset.dataset(target, format="parquet")
    ids = written.to_table(columns=written.schema.names[:1]).column(0)
    if len(ids) != rows or len(ids.unique()) != rows:
        raise SystemExit(f"{command}: {len(ids)} rows, {len(ids.unique())} ids, for {rows}")
    if len(files) > 1:
        steady = sum(own for _, own in files[1:]) / (files[-1][0] - files[0][0])
    else:
        # Ray Data may write one file; it says how long its job took without the start of Ray.
        steady = rows / float(json.loads(done.stdout.splitlines()[-1])["seconds"])
    return Turn(rows / took, steady, took)


def _show(title: str, taken: dict[str, list[Turn]]) -> dict[str, dict[str, float]]:
    table = Table("", "rows/s, whole", "of the loop", "rows/s, steady", "of the loop", "seconds", title=title)
    found = {}
    for name, turns in taken.items():
        figures = {each: statistics.median(getattr(turn, each) for turn in turns) for each in Turn.__slots__}
        ratios = {
            each: statistics.median(
                getattr(turn, each) / getattr(loop, each) for turn, loop in zip(turns, taken[LOOP], strict=True)
            )
            for each in ("whole", "steady")
            if LOOP in taken and all(loop.steady for loop in taken[LOOP])
        }
        found[name] = figures | {f"{each} ratio": ratio for each, ratio in ratios.items()} | {"turns": len(turns)}
        table.add_row(
            name,
            f"{figures['whole']:,.0f}",
            f"{ratios.get('whole', 0):.2f}",
            f"{figures['steady']:,.0f}",
            f"{ratios.get('steady', 0):.2f}",
            f"{figures['seconds']:.1f}",
        )
    console.print(table)
    return found


def _gcs_of(server: psutil.Process) -> str:
    """Address of its cluster. Not `auto`: there may be others on this machine."""
    for one in server.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            for argument in one.cmdline():
                if argument.startswith("--gcs-address="):
                    return argument.partition("=")[2]
    raise SystemExit("the server has no Ray of its own")


if __name__ == "__main__":
    typer.run(main)
