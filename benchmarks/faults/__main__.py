"""The command.

python -m benchmarks.faults [ROW ...]
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.faults.apart import APART
from benchmarks.faults.house import running
from benchmarks.faults.rows import ROWS, Outcome
from benchmarks.faults.step import load_step

#: In the order in which they are run: first those that share a house.
SHARED = {**ROWS, "step": load_step}
ALL = [*SHARED, *APART]
RESULTS = Path(__file__).parent.parent / "results" / "faults.jsonl"
console = Console(highlight=False)


def main(
    rows: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(ALL)}; all by default.")] = None,
    output: Annotated[Path, typer.Option(help="Append the figures to this JSON lines file.")] = RESULTS,
) -> None:
    """Break parts of a cluster under load and print what became of the requests; exit 1 when a row was not reached."""
    wanted = rows or ALL
    if unknown := set(wanted) - set(ALL):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; the rows are {', '.join(ALL)}")
    outcomes = []
    for outcome in _run(wanted):
        console.print(outcome.row, outcome.figures)
        outcomes.append(outcome)
        with output.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
    table = Table(title="faults", title_justify="left")
    for column in ("row", "to reach", "", "seen"):
        table.add_column(column)
    for outcome in outcomes:
        seen = "\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in outcome.figures.items() if value != "")
        table.add_row(outcome.row, outcome.bar, "reached" if outcome.reached else "MISSED", seen, end_section=True)
    console.print(table)
    if not all(outcome.reached for outcome in outcomes):
        raise typer.Exit(1)


def _run(wanted: list[str]) -> Iterator[Outcome]:
    together = [name for name in SHARED if name in wanted]
    if together:
        with running() as house:
            for name in together:
                yield SHARED[name](house)
    for name, row in APART.items():
        if name in wanted:
            yield row()


if __name__ == "__main__":
    typer.run(main)
