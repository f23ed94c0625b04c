"""The matrix: for each way to break a graph and each precision, the smallest effect that the gates of a build catch.

python -m benchmarks.mutations [KIND ...]
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.mutations.judged import Subject, caught
from benchmarks.mutations.models import MODELS
from benchmarks.mutations.mutants import MUTANTS, Mutant
from enginehouse.contract.manifest import Format, Precision

FORMATS: Sequence[Format] = ("onnx", "openvino")
PRECISIONS: Sequence[Precision] = ("fp32", "fp16", "int8")
COLUMNS = [(format, precision) for format in FORMATS for precision in PRECISIONS]
#: Each is a quarter of the one before; the first that passes ends the sweep.
STRENGTHS = [4.0**-step for step in range(8)]
RESULTS = Path(__file__).parent.parent / "results" / "mutations.jsonl"
console = Console(highlight=False)


@dataclass(frozen=True)
class Cell:
    """The effects of the weakest fault that was caught and of the strongest that passed; None where there is none.

    An effect is the share of changed answers on the user's rows and the relative L2 of their numbers. `sound` is what
    became of the unbroken artifact: only where that is ready, being caught says anything.
    """

    mutant: str
    artifact: str
    sound: str
    smallest_caught: tuple[float, float] | None = None
    largest_passed: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.sound != "ready":
            return "-"
        least = _effect(self.smallest_caught) if self.smallest_caught else "none"
        return f"{least} (passes: {_effect(self.largest_passed)})" if self.largest_passed else least


def _effect(effect: tuple[float, float]) -> str:
    changed, distance = effect
    told = [f"{changed:.2%}" if changed else "", f"{distance:.0e}" if distance else ""]
    return ", ".join(filter(None, told)) or "nothing"


def main(
    kinds: Annotated[list[str] | None, typer.Argument(help="Only these; all by default.")] = None,
    output: Annotated[Path, typer.Option(help="Append the figures to this JSON lines file.")] = RESULTS,
) -> None:
    """Break artifacts in ever weaker ways and print what was caught; exit 1 when a whole fault passes in fp32."""
    wanted = [mutant for mutant in MUTANTS.values() if not kinds or mutant.kind in kinds]
    table = Table(title="smallest effect caught", title_justify="left")
    for column in ("", *(f"{format}-{precision}" for format, precision in COLUMNS)):
        table.add_column(column)
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        subjects = {name: Subject.of(MODELS[name], Path(folder) / name) for name in {each.model for each in wanted}}
        for mutant in wanted:
            cells = list(_row(mutant, subjects[mutant.model]))
            table.add_row(mutant.name, *map(str, cells))
            missed |= any(cell.artifact.endswith("fp32") and cell.smallest_caught is None for cell in cells if
                          cell.sound == "ready")  # fmt: skip
            with output.open("a") as file:
                file.writelines(json.dumps(asdict(cell)) + "\n" for cell in cells)
    console.print(table)
    if missed:
        raise typer.Exit(1)


def _row(mutant: Mutant, subject: Subject) -> Iterator[Cell]:
    for format, precision in COLUMNS:
        name = f"{format}-{precision}"
        sound = subject.judged(format, precision)
        if sound.status != "ready":
            yield Cell(mutant.name, name, sound.reason or sound.status)
            continue
        least, passed = None, None
        for strength in STRENGTHS:
            change = mutant.change(strength)
            effect = subject.effect(change)
            if not caught(subject.judged(format, precision, change), sound):
                passed = effect
                break
            least = effect
        yield Cell(mutant.name, name, sound.status, least, passed)


if __name__ == "__main__":
    typer.run(main)
