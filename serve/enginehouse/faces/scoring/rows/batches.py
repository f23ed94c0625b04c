"""Rows of a table -> what a model is asked: groups of rows of equal shapes that pass the signature; and bad rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.tensors import Signature, Tensors, TensorSpec
from enginehouse.faces.scoring.rows.columns import Bad, Cast, cast


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that may be asked together: their numbers in the table, and their inputs with the rows in front."""

    rows: np.ndarray
    inputs: Tensors

    def parts(self, most: int) -> Iterator[Group]:
        """Groups of up to so many rows."""
        for start in range(0, len(self.rows), most):
            yield self.part(start, start + most)

    def part(self, start: int, end: int) -> Group:
        """The rows from `start` up to, not including, `end`."""
        return Group(self.rows[start:end], {name: array[start:end] for name, array in self.inputs.items()})


def with_rows(signature: Signature) -> tuple[TensorSpec, ...]:
    """The inputs with the rows in front, also of a model that has no batch."""
    if signature.batched:
        return signature.inputs
    return tuple(TensorSpec(spec.name, spec.dtype, (None, *spec.shape), spec.domain) for spec in signature.inputs)


def grouped(
    table: pa.Table, inputs: Mapping[str, Sequence[str]], constants: Tensors, signature: Signature
) -> tuple[list[Group], dict[int, Bad]]:
    """Groups of rows that pass `Signature.check`, and why the others do not.

    `inputs` are names of columns by the names of inputs; several are the numbers of a row. `constants` have one row.
    """
    casts = {spec.name: _cast(table, inputs[spec.name], spec) for spec in with_rows(signature) if spec.name in inputs}
    if not casts:
        casts = {"": Cast([(np.arange(table.num_rows), np.zeros(table.num_rows))])}
    bad: dict[int, Bad] = {}
    for each in casts.values():
        for row, why in each.bad.items():
            bad.setdefault(row, why)
    good = []
    for group in _of_equal_shapes(casts, bad):
        fixed = {name: np.repeat(row[None], len(group.rows), axis=0) for name, row in constants.items()}
        known = {name: array for name, array in group.inputs.items() if name}
        good += _checked(Group(group.rows, {**known, **fixed}), signature, bad)
    return good, bad


def _cast(table: pa.Table, columns: Sequence[str], spec: TensorSpec) -> Cast:
    if len(columns) == 1:
        return cast(table.column(columns[0]), replace(spec, name=columns[0]))
    each = [cast(table.column(column), TensorSpec(column, spec.dtype, (None,))) for column in columns]
    bad: dict[int, Bad] = {}
    for one in each:
        bad = {**one.bad, **bad}
    stacked = np.empty((table.num_rows, len(columns)), spec.dtype)
    for at, one in enumerate(each):
        for where, array in one.blocks:
            if array.ndim != 1:
                told = f"column {columns[at]!r} has lists, and is one number of a row of input {spec.name!r}"
                bad |= {row: Bad("shape", told) for row in where.tolist() if row not in bad}
            else:
                stacked[where, at] = array
    good = np.array([row for row in range(table.num_rows) if row not in bad], np.int64)
    return Cast([(good, stacked[good])] if len(good) else [], bad)


def _of_equal_shapes(casts: Mapping[str, Cast], bad: Mapping[int, Bad]) -> list[Group]:
    names = list(casts)
    if all(len(each.blocks) == 1 for each in casts.values()) and not bad:
        (rows, _), *_ = casts[names[0]].blocks
        return [Group(rows, {name: casts[name].blocks[0][1] for name in names})]
    # Of each row: which block of each input it is in, and where there.
    places: dict[int, list[tuple[int, int]]] = {}
    for name in names:
        for number, (rows, _) in enumerate(casts[name].blocks):
            for at, row in enumerate(rows.tolist()):
                places.setdefault(row, []).append((number, at))
    together: dict[tuple[int, ...], list[int]] = {}
    for row in sorted(places):
        if row not in bad:
            together.setdefault(tuple(number for number, _ in places[row]), []).append(row)
    groups = []
    for blocks, members in together.items():
        inputs = {}
        for place, name in enumerate(names):
            array = casts[name].blocks[blocks[place]][1]
            inputs[name] = array[[places[row][place][1] for row in members]]
        groups.append(Group(np.array(members), inputs))
    return groups


def _checked(group: Group, signature: Signature, bad: dict[int, Bad]) -> list[Group]:
    """The rows of `group` that pass, as one group or none; the others are added to `bad`."""
    kept = np.ones(len(group.rows), bool)
    for spec in signature.inputs:
        if spec.domain is None:
            continue
        array = group.inputs[spec.name]
        outside = (array < spec.domain.low) | (array >= spec.domain.high)
        for at in np.flatnonzero(outside.reshape(len(array), -1).any(axis=1)).tolist():
            value = array[at][outside[at]].reshape(-1)[0]
            told = (
                f"column {spec.name!r} has the value {value}; the model looks it up in a table that takes {spec.domain}"
            )
            bad.setdefault(int(group.rows[at]), Bad("domain", told))
            kept[at] = False
    if not kept.any():
        return []
    if not kept.all():
        group = Group(group.rows[kept], {name: array[kept] for name, array in group.inputs.items()})
    try:
        # What is left to be checked depends on the shapes only, which all of them share.
        signature.check(asked(group.part(0, 1), signature))
    except InvalidInput as error:
        bad |= {row: Bad("shape", str(error)) for row in group.rows.tolist() if row not in bad}
        return []
    return [group]


def asked(group: Group, signature: Signature) -> Tensors:
    """The inputs as a request has them: without the rows in front for a model that has no batch."""
    if signature.batched:
        return group.inputs
    return {name: array[0] for name, array in group.inputs.items()}
