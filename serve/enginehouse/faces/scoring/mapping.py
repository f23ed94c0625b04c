"""Which columns become which inputs, what rows are called, and what the results' columns are: settled before a job."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from enginehouse.contract.errors import ConfigError, InvalidInput
from enginehouse.contract.tensors import Signature, datatype
from enginehouse.faces.scoring.readers import Look, Rows, Wanted
from enginehouse.faces.scoring.results.top import Top
from enginehouse.faces.scoring.rows.batches import with_rows
from enginehouse.faces.scoring.rows.columns import check_type, type_of
from enginehouse.faces.scoring.rows.exactly import cast_exactly
from enginehouse.faces.scoring.sources import File, Listing

#: The column that rows are called by unless another is named, and what rows without one get.
ID = "id"
#: Columns of who answered.
VERSION, BACKEND = "model_version", "backend"
#: In front of the names of outputs, so that none takes the place of another column.
OUTPUT = "output."
#: The only column that could be meant, in formats of one: these need no name of an input.
_ONLY = {"npy": "array", "images": "image"}
#: How rows of a format are called unless a column is named.
_IDS = {"images": "path"}


@dataclass(frozen=True, slots=True)
class Mapped:
    """What was asked for: `inputs` name one column each, or several numbers that make a row; the rest is plain."""

    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    top_k: int = 0
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is read and written, the same in every unit. `kinds`: the types of the id and of kept columns.

    `id_column` None: rows are called by where they are, by number in the only file or by file and number.
    """

    inputs: Mapping[str, tuple[str, ...]]
    constants: Mapping[str, Any]
    id_column: str | None
    id_name: str
    keep: tuple[str, ...]
    rename: Mapping[str, str]
    kinds: pa.Schema
    is_typed: bool
    is_one_file: bool
    top: Top | None = None

    def wanted(self, signature: Signature) -> list[Wanted]:
        """The columns to read."""
        uses: dict[str, Wanted] = {}
        if self.id_column is not None:
            uses[self.id_column] = Wanted(self.id_column, "as it is", self.kinds.field(self.id_name).type, True)
        for name in self.keep:
            uses[name] = Wanted(name, "as it is", self.kinds.field(name).type)
        for spec in signature.inputs:
            for column in self.inputs.get(spec.name, ()):
                if column in uses and not self.is_typed:
                    raise ConfigError(
                        f"column {column!r} is an input; in files whose columns have no types (CSV, JSON lines) it "
                        "cannot be the id or kept as well"
                    )
                uses.setdefault(column, Wanted(column, "text" if spec.dtype.hasobject else "number"))
        return list(uses.values())

    def ids(self, rows: Rows, file: File) -> pa.ChunkedArray:
        """What the rows are called, of the type that every unit has."""
        if self.id_column is not None:
            return rows.table.column(self.id_column)
        if self.is_one_file:
            return pa.chunked_array([pa.array(np.asarray(rows.numbers, np.int64))], pa.int64())
        return pa.chunked_array([pa.array([place(file, number) for number in rows.numbers], pa.string())])

    def bad_id(self, rows: Rows, number: int, file: File) -> Any:
        """What a row is called that is not in the table, None if that could not be read."""
        if self.id_column is not None:
            return rows.bad_ids.get(number)
        return number if self.is_one_file else place(file, number)

    def document(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "inputs": {name: list(columns) for name, columns in self.inputs.items()},
            "constants": dict(self.constants),
            "id_column": self.id_column,
            "id_name": self.id_name,
            "keep": list(self.keep),
            "rename": dict(self.rename),
            "kinds": base64.b64encode(self.kinds.serialize().to_pybytes()).decode(),
            "is_typed": self.is_typed,
            "is_one_file": self.is_one_file,
            "top": None if self.top is None else [self.top.count, list(self.top.labels)],
        }

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Plan:
        """The inverse of `document`."""
        kinds = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(document["kinds"])))
        inputs = {name: tuple(columns) for name, columns in document["inputs"].items()}
        top = None if document["top"] is None else Top(document["top"][0], tuple(document["top"][1]))
        return cls(**{**document, "inputs": inputs, "keep": tuple(document["keep"]), "kinds": kinds, "top": top})


def place(file: File, number: int) -> str:
    """What a row without an id is called, where there are several files."""
    return f"{file.name}:{number}"


def plan(mapped: Mapped, signature: Signature, listing: Listing, look: Look) -> Plan:
    """`mapped` against the columns of the first file. Raises InvalidInput and ConfigError for what does not fit."""
    have = look.schema.names
    where = listing.files[0].url
    inputs, constants = _inputs(mapped, signature, listing.format, look, where)
    fallback = _IDS.get(listing.format, ID)
    id_column = mapped.id_column or (fallback if fallback in have else None)
    if id_column is not None:
        _check_there(where, id_column, have, "which results are joined by", "name one with --id-column")
    for name in mapped.keep:
        _check_there(where, name, have, "which was to be passed on", "--keep names columns of INPUT")
    keep = tuple(name for name in dict.fromkeys(mapped.keep) if name != id_column)
    id_name = id_column or ID
    if id_column is not None:
        id_type = look.schema.field(id_column).type
    else:
        id_type = pa.int64() if listing.is_one else pa.string()
    kinds = pa.schema([(id_name, id_type), *((name, look.schema.field(name).type) for name in keep)])
    if mapped.labels and not mapped.top_k:
        raise ConfigError("labels are those of the best classes; say how many with --top-k")
    top = Top(mapped.top_k, mapped.labels) if mapped.top_k else None
    made = Plan(inputs, constants, id_column, id_name, keep, mapped.rename, kinds, look.is_typed, listing.is_one, top)
    results(made, signature)
    return made


def check_alike(plan: Plan, signature: Signature, file: File, look: Look, first: File) -> None:
    """Raises InvalidInput where `file` lacks a column, or has the id or a kept one in another type than the first."""
    specs = {spec.name: spec for spec in with_rows(signature)}
    for name, columns in plan.inputs.items():
        for column in columns:
            _check_there(file.url, column, look.schema.names, f"which is input {name!r}", f"{first.name} has one")
            if len(columns) == 1:
                check_type(look.schema.field(column).type, specs[name], column)
    for column in filter(None, (plan.id_column, *plan.keep)):
        _check_there(file.url, column, look.schema.names, "which is passed on", f"{first.name} has one")
        found, wanted = look.schema.field(column).type, plan.kinds.field(column).type
        if found != wanted:
            raise InvalidInput(
                f"{file.url}: column {column!r} is {found}, and {wanted} in {first.name}; results have one type: write "
                "the files alike, or score them apart"
            )


def results(plan: Plan, signature: Signature) -> pa.Schema:
    """The columns of every file of results. Raises ConfigError where two would have one name."""
    fields = [pa.field(plan.id_name, plan.kinds.field(plan.id_name).type)]
    fields += [pa.field(name, plan.kinds.field(name).type) for name in plan.keep]
    fields += [pa.field(f"{OUTPUT}{spec.name}", type_of(spec, signature.batched)) for spec in signature.outputs]
    if plan.top is not None:
        fields += [pa.field(f"{OUTPUT}{spec.name}.top", plan.top.kind(spec)) for spec in plan.top.outputs(signature)]
    fields += [pa.field(VERSION, pa.string()), pa.field(BACKEND, pa.string())]
    known = {each.name for each in fields}
    rename = {(name if name in known else f"{OUTPUT}{name}"): new for name, new in plan.rename.items()}
    if strange := [name for name in rename if name not in known]:
        raise ConfigError(
            f"--rename of {strange[0].removeprefix(OUTPUT)!r}, which is no column of the results; they have "
            + ", ".join(each.name for each in fields)
        )
    fields = [each.with_name(rename.get(each.name, each.name)) for each in fields]
    names = [each.name for each in fields]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"two columns of the results would be called {twice[0]!r}; give one another name with --rename"
        )
    return pa.schema(fields)


def _inputs(
    mapped: Mapped, signature: Signature, form: str, look: Look, where: str
) -> tuple[dict[str, tuple[str, ...]], dict[str, Any]]:
    specs = {spec.name: spec for spec in with_rows(signature)}
    if strange := [name for name in (*mapped.inputs, *mapped.constants) if name not in specs]:
        raise ConfigError(f"{strange[0]!r} is no input of the model; it has {', '.join(map(str, specs.values()))}")
    inputs: dict[str, tuple[str, ...]] = {}
    for name, spec in specs.items():
        if name in mapped.constants:
            if name in mapped.inputs:
                raise ConfigError(f"input {name!r} is mapped to a column and to a constant; leave one out")
            continue
        columns = mapped.inputs.get(name) or (name,)
        if name not in mapped.inputs and name not in look.schema.names and form in _ONLY and len(specs) == 1:
            columns = (_ONLY[form],)
        for column in columns:
            _check_there(
                where, column, look.schema.names, f"which is input {name!r}", f"--map {name}=COLUMN names another"
            )
        if look.is_typed and len(columns) == 1:
            check_type(look.schema.field(columns[0]).type, spec, columns[0])
        elif len(columns) > 1 and len(spec.shape) != 2:
            raise ConfigError(
                f"input {name!r} is mapped to {len(columns)} columns, which make a row of one dimension; it is {spec}"
            )
        inputs[name] = columns
    return inputs, {name: _constant(value, specs[name]) for name, value in mapped.constants.items()}


def _constant(value: Any, spec: Any) -> Any:
    """`value` as it was given, if every row may have it."""
    constant_of(value, spec)
    return value


def constant_of(value: Any, spec: Any) -> np.ndarray:
    """A constant as one row of `spec`, nested or, as in columns, a flat list of all its numbers.

    Raises ConfigError for one that does not fit.
    """
    try:
        array = np.array(value, object) if spec.dtype.hasobject else np.array(value)
    except ValueError:
        raise ConfigError(f"constant {value!r} of input {spec.name!r} is ragged; the model wants {spec}") from None
    if not spec.dtype.hasobject:
        if array.dtype.kind not in "biuf":
            raise ConfigError(f"constant {value!r} of input {spec.name!r} is no number; the model wants {spec}")
        array, kept = cast_exactly(array[None], spec.dtype)
        array = array[0]
        if kept is not None:
            raise ConfigError(f"constant {value!r} of input {spec.name!r} is nothing that {datatype(spec.dtype)} holds")
    dims = spec.shape[1:]
    if array.ndim == 1 and len(dims) > 1 and None not in dims and array.size == math.prod(dims):
        array = array.reshape(dims)
    if array.ndim != len(dims) or any(dim not in (None, have) for dim, have in zip(dims, array.shape, strict=True)):
        raise ConfigError(f"constant of input {spec.name!r} has shape {list(array.shape)}; the model wants {spec}")
    return np.asarray(array)


def _check_there(where: str, name: str, have: Sequence[str], what: str, way: str) -> None:
    count = list(have).count(name)
    if count > 1:
        raise InvalidInput(f"{where}: {count} columns are called {name!r}; give each its own name")
    if not count:
        raise InvalidInput(f"{where}: no column {name!r}, {what}; it has {', '.join(have) or 'none'}: {way}")
