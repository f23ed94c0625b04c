"""Rows that kill the process which computes them: found by asking fewer and fewer, in one process after another.

What a scorer is about to ask is written down before, so that the driver can read it when the scorer is dead. A row that
was asked alone when that happened, twice, is to blame: it is rejected, and the unit goes on without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from enginehouse.faces.scoring.rows.batches import Group
from enginehouse.faces.scoring.rows.columns import Bad
from enginehouse.faces.scoring.storage import Folder
from enginehouse.faces.scoring.units import Unit

BLAMED = Bad("engine", "the process that computed it died, each time that it was asked alone")


@dataclass(frozen=True, slots=True)
class Caution:
    """What is known of a unit that scorers died with, by the rows' places in its table.

    One of `suspects` may be to blame; `accused` was asked alone at the last death; `guilty` are not asked any more.
    """

    suspects: tuple[int, ...] = ()
    accused: int | None = None
    guilty: tuple[int, ...] = ()

    def parts(self, groups: Sequence[Group], most: int) -> Iterator[Group]:
        """`groups` in the pieces that are to be asked: suspects half as many at a time as when the last scorer died."""
        step = max(1, len(self.suspects) // 2)
        for group in groups:
            is_suspect = np.isin(group.rows, self.suspects)
            is_guilty = np.isin(group.rows, self.guilty)
            for mask, rows in ((is_suspect & ~is_guilty, step), (~is_suspect & ~is_guilty, most)):
                chosen = np.flatnonzero(mask)
                if len(chosen):
                    inputs = {name: array[chosen] for name, array in group.inputs.items()}
                    yield from Group(group.rows[chosen], inputs).parts(min(rows, most))

    def after(self, asked: tuple[int, ...]) -> Caution:
        """What is known once a scorer has died with these rows under way."""
        if len(asked) != 1:
            return replace(self, suspects=asked or self.suspects, accused=None)
        if asked[0] == self.accused:
            return Caution((), None, (*self.guilty, asked[0]))
        return replace(self, suspects=asked, accused=asked[0])


def write(folder: Folder, unit: Unit, rows: Sequence[int]) -> None:
    """Write down that these rows are about to be asked."""
    folder.put(_name(unit), json.dumps([int(row) for row in rows]).encode())


def read(folder: Folder, unit: Unit) -> tuple[int, ...]:
    """The rows that were asked when a scorer died; none if it was at something else."""
    return tuple(json.loads(folder.read(_name(unit)) or b"[]"))


def clear(folder: Folder, unit: Unit) -> None:
    """Nothing is asked."""
    folder.remove(_name(unit))


def _name(unit: Unit) -> str:
    return f"_job/asked/{unit.name}.json"
