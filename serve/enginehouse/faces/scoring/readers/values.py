"""Columns from values that have no type of their own (JSON, CSV): each row becomes right by itself or is bad."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from enginehouse.faces.scoring.readers import Rows, Wanted
from enginehouse.faces.scoring.rows.columns import Bad

#: What values of a type may be; of other types (lists, objects) the array has to be what it was made of.
_ALLOWED = (
    (pa.types.is_boolean, {bool}),
    (pa.types.is_integer, {int}),
    (pa.types.is_floating, {int, float}),
    (pa.types.is_string, {str}),
)


def finite(text: str) -> float:
    """A number as it is written. Raises ValueError for one that a double does not hold: 1e400 is not infinite."""
    number = float(text)
    if math.isinf(number) and any(sign.isdigit() for sign in text):
        raise ValueError(f"{text} is larger than 64 bits hold")
    return number


def kind_of(values: Sequence[Any]) -> pa.DataType:
    """The type that all these values have: of whole numbers, numbers or truth values if they are such; or text.

    What is of several kinds, or nothing yet, is text.
    """
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values if value is not None):
        return pa.int64()
    if kinds and kinds <= {int, float}:
        return pa.float64()
    if kinds & {list, dict}:
        try:
            return pa.array([value for value in values if value is not None]).type
        except (pa.ArrowException, OverflowError):
            return pa.string()
    return pa.string()


def rows_of(
    rows: Sequence[Mapping[str, Any]], numbers: Sequence[int], wanted: Sequence[Wanted], bad: Mapping[int, Bad]
) -> Rows:
    """`rows` with these numbers as `wanted`, beside those that are `bad` already."""
    made, kept, wrong = table(rows, wanted)
    name = next((column.name for column in wanted if column.is_id), None)
    ids = {numbers[at]: rows[at].get(name) for at in wrong} if name is not None else {}
    return Rows(made, [numbers[at] for at in kept], {**bad, **{numbers[at]: why for at, why in wrong.items()}}, ids)


def table(rows: Sequence[Mapping[str, Any]], wanted: Sequence[Wanted]) -> tuple[pa.Table, list[int], dict[int, Bad]]:
    """`rows` as a table, the places of those that are in it, and why the others are not."""
    bad: dict[int, Bad] = {}
    kept = list(range(len(rows)))
    while True:
        columns: dict[str, pa.Array] = {}
        more: dict[int, Bad] = {}
        for column in wanted:
            values = [rows[at].get(column.name) for at in kept]
            made, wrong = _column(values, column)
            columns[column.name] = made
            for place, why in wrong.items():
                more.setdefault(kept[place], why)
        if not more:
            return pa.table(columns), kept, bad
        bad |= more
        kept = [at for at in kept if at not in more]


def _column(values: Sequence[Any], column: Wanted) -> tuple[pa.Array, dict[int, Bad]]:
    try:
        if column.use == "as it is":
            return _as_it_is(values, column), {}
        made = pa.array(values)
        if _is_right(made.type, column.use):
            return made, {}
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        pass
    wrong = {}
    for place, value in enumerate(values):
        try:
            if column.use == "as it is":
                _as_it_is([value], column)
            elif value is not None and not _is_right(pa.array([value]).type, column.use):
                raise TypeError
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            wrong[place] = _why(value, column)
    if not wrong:
        # Each by itself is right, and they have no common type: numbers of lists and numbers, say.
        depths = {place: _depth(value) for place, value in enumerate(values) if value is not None}
        usual = Counter(depths.values()).most_common(1)[0][0]
        wrong = {place: _nested(values[place], column) for place, depth in depths.items() if depth != usual}
        wrong = wrong or {place: _why(values[place], column) for place in depths}
    return pa.nulls(len(values)), wrong


def _as_it_is(values: Sequence[Any], column: Wanted) -> pa.Array:
    """Raises for a value that `column.kind` has no exact place for; Arrow itself cuts 1.5 down to a whole number."""
    kind = column.kind
    made = pa.array(values, kind)
    allowed = next((types for test, types in _ALLOWED if test(kind)), None)
    if allowed is None:
        is_same = made.to_pylist() == list(values)
    else:
        is_same = all(type(value) in allowed for value in values if value is not None)
        if is_same and pa.types.is_floating(kind):
            is_same = all(int(float(value)) == value for value in values if isinstance(value, int))
    if not is_same:
        raise TypeError
    return made


def _is_right(kind: pa.DataType, use: str) -> bool:
    while pa.types.is_list(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):
        return True
    if use == "text":
        return bool(pa.types.is_string(kind))
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _depth(value: Any) -> int:
    return 1 + _depth(value[0]) if isinstance(value, list) and value else int(isinstance(value, list))


def _nested(value: Any, column: Wanted) -> Bad:
    told = f"column {column.name!r} has the value {_shown(value)}, with lists in lists otherwise than most rows"
    return Bad("shape", told)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _why(value: Any, column: Wanted) -> Bad:
    shown = _shown(value)
    if column.use == "as it is":
        return Bad("cast", f"column {column.name!r} has the value {shown}, and was {column.kind} in the first rows")
    wants = "text" if column.use == "text" else "numbers that 64 bits hold"
    return Bad("cast", f"column {column.name!r} has the value {shown}, and the model wants {wants}")
