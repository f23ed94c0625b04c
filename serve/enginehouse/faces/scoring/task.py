"""What is the same for every unit of a job, and the half of a unit's way that needs no model: reading and casting."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.tensors import Signature
from enginehouse.faces.scoring import mapping, readers
from enginehouse.faces.scoring.readers import Part, Rows
from enginehouse.faces.scoring.rows.batches import Group, grouped, with_rows
from enginehouse.faces.scoring.rows.columns import Bad
from enginehouse.faces.scoring.units import Unit

#: Rows that are looked at before a job begins.
_FIRST = 100
#: Files of one row each that are read at a time.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Task:
    """`folder` is OUTPUT, `form` the format of results, `key` what names model and options in names of results."""

    signature: Signature
    plan: mapping.Plan
    folder: str
    form: str
    key: str

    def constants(self) -> Mapping[str, np.ndarray]:
        """One row of each input that is the same in all rows."""
        specs = {spec.name: spec for spec in with_rows(self.signature)}
        return {name: mapping.constant_of(value, specs[name]) for name, value in self.plan.constants.items()}

    def read(self, unit: Unit) -> Rows:
        """The rows of `unit` that are to be scored."""
        found = self._read(unit)
        chosen = unit.chosen()
        if chosen is None:
            return found
        kept = [at for at, number in enumerate(found.numbers) if chosen[number - unit.part.first]]
        bad = {number: why for number, why in found.bad.items() if chosen[number - unit.part.first]}
        return Rows(
            found.table.take(pa.array(kept, pa.int64())), [found.numbers[at] for at in kept], bad, found.bad_ids
        )

    def _read(self, unit: Unit) -> Rows:
        wanted, reader = self.plan.wanted(self.signature), readers.of(unit.file.format)
        if len(unit.files) == 1:
            return reader.read(unit.file, unit.part, wanted)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            each = list(threads.map(lambda file: reader.read(file, Part(0, 1), wanted), unit.files))
        return Rows(pa.concat_tables([rows.table for rows in each]), range(len(each)))

    def prepare(self, rows: Rows) -> tuple[list[Group], dict[int, Bad]]:
        """What the model is asked, and the rows of the table that it is not asked, with why."""
        if not rows.table.num_rows:
            return [], {}
        return grouped(rows.table, self.plan.inputs, self.constants(), self.signature)

    def try_first_rows(self, unit: Unit) -> int:
        """Read and cast the first rows of a job; how many of them are right.

        Raises InvalidInput with the first reason if none is: then it is not a row that is wrong.
        """
        count = min(unit.part.rows, _FIRST)
        rows = self.read(replace(unit.first(count), share=1.0))
        groups, bad = self.prepare(rows)
        right = sum(len(group.rows) for group in groups)
        if not right:
            why = next(iter([*rows.bad.values(), *bad.values()])).reason
            of = "the only row" if count == 1 else f"none of the first {count} rows"
            raise InvalidInput(f"{unit.file.url}: {of} can{'not' if count == 1 else ''} be scored: {why}")
        return right
