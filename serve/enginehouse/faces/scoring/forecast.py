"""How long a job takes, before it does: starting, computing by the latency tables, and reading and writing as measured.

Reading, casting and writing are measured on the first rows of what is left, here; a scorer does them on one core while
its engine computes on the others. They are done beside computing, so on a CPU they take cores from it, and on a GPU
whichever takes longer counts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from enginehouse.contract.tensors import Signature
from enginehouse.faces.scoring import mapping
from enginehouse.faces.scoring.results import writing
from enginehouse.faces.scoring.rows.batches import Group
from enginehouse.faces.scoring.task import Task
from enginehouse.faces.scoring.units import Unit

#: Seconds in which a scorer is there with its engine, as seen on two idle cores; a job that ran before knows its own.
START_S = 1.0
#: Rows that are read at first for it, and by how much more each time, as long as that takes less than so many seconds.
_FIRST, _TIMES, _MEASURED_S = 256, 4, 0.2


@dataclass(frozen=True, slots=True)
class Speed:
    """Scorers of one kind: how many there will be, rows a second of each one's engine, and its cores; or it is a GPU.

    A second of one costs `price`, as a pool's configuration has it.
    """

    scorers: int
    rows_per_s: float
    threads: int
    on_cpu: bool = True
    price: float = 1.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds of a job by what takes them; `beside_s` is how much longer reading and writing make the computing.

    `price`: what a second of all its scorers costs.
    """

    starting_s: float
    computing_s: float
    beside_s: float
    price: float = 1.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.starting_s + self.computing_s + self.beside_s

    @property
    def cost(self) -> float:
        """Seconds of scorers, at the prices of their pools."""
        return self.seconds * self.price


def forecast(task: Task, left: Sequence[Unit], speeds: Sequence[Speed], starting_s: float = START_S) -> Forecast | None:
    """What is `left` of a job by scorers of these speeds; None where there is nothing to go by."""
    rows = sum(unit.rows for unit in left)
    if not rows or not speeds:
        return None
    row_s = seconds_beside(task, left[0])
    computing_s = rows / sum(each.scorers * each.rows_per_s for each in speeds)
    taken_s = rows / sum(each.scorers / _row_s(each, row_s) for each in speeds)
    price = sum(each.scorers * each.price for each in speeds)
    return Forecast(starting_s, computing_s, taken_s - computing_s, price)


def _row_s(speed: Speed, beside_s: float) -> float:
    """Seconds of a row in one scorer."""
    own_s = 1 / speed.rows_per_s
    return own_s + beside_s / speed.threads if speed.on_cpu else max(own_s, beside_s)


def seconds_beside(task: Task, unit: Unit) -> float:
    """Seconds of reading, casting and writing one row of `unit`, measured on some of them."""
    rows = _FIRST
    while True:
        part = unit.first(rows)
        began = time.perf_counter()
        _read_and_write(task, part)
        took = time.perf_counter() - began
        if part.part.rows == unit.part.rows or took * _TIMES > _MEASURED_S:
            return took / max(1, part.rows)
        rows *= _TIMES


def _read_and_write(task: Task, unit: Unit) -> None:
    """All that is done with a unit but computing; what is written is not kept."""
    rows = task.read(unit)
    groups, _ = task.prepare(rows)
    plan = task.plan
    passed_on = [plan.ids(rows, unit.file), *(rows.table.column(name) for name in plan.keep)]
    parts = [_zeros(group, task.signature) for group in groups]
    schema = mapping.results(plan, task.signature)
    writing.encoded(writing.table(parts, passed_on, task.signature, schema, plan.top), task.form)


def _zeros(group: Group, signature: Signature) -> writing.Part:
    """Answers to `group` that nobody computed: free extents are 1."""
    rows = len(group.rows)
    outputs = {}
    for spec in signature.outputs:
        dims = [dim or 1 for dim in (spec.shape[1:] if signature.batched else spec.shape)]
        outputs[spec.name] = (
            np.full((rows, *dims), "", object) if spec.dtype.hasobject else np.zeros((rows, *dims), spec.dtype)
        )
    return writing.Part(group.rows, outputs, "", "")
