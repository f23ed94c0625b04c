"""Batch scoring with Ray Data: rows of Parquet or NPZ are answered by the live backends; outputs keep the id column."""

from __future__ import annotations

import asyncio
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from pyarrow import dataset, parquet
from ray.data import ActorPoolStrategy, DataContext, Dataset

from enginehouse.contract.errors import ConfigError, EnginehouseError, InferenceFailed, InvalidInput
from enginehouse.contract.magic import seen_in
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse.faces.python.client import Client
from enginehouse.faces.scoring.columns import column_of, tensor_of
from enginehouse.routing.policy import LAST

#: Logical CPUs of one scoring actor, and of one reading or writing task. With Ray Data's default of a whole CPU, tasks
#: are never scheduled on a small cluster whose engines hold the others.
ACTOR_CPUS = 0.25
IO_CPUS = 0.25
#: Rows of one request to the router, and requests that one actor has in flight.
REQUEST_ROWS = 32
REQUESTS_IN_FLIGHT = 8
#: Rows of one Ray Data block made from an .npz file.
PIECE_ROWS = 4096
_TRIES = 3
#: What rows that have no id are numbered in.
_ID = "id"


@dataclass(frozen=True, slots=True)
class Scored:
    """Result of a scoring run: rows written, and the backends that answered, sorted."""

    rows: int
    backends: tuple[str, ...]


def score(
    model: str,
    signature: Signature,
    source: str,
    target: str,
    *,
    id_column: str = _ID,
    min_actors: int = 1,
    max_actors: int = 4,
    progress: bool = True,
) -> Scored:
    """Score every row of `source` and write `id_column` plus one column per output to Parquet files under `target`.

    `source` is a Parquet file or folder with one column per input, or an .npz file with one array per input; the rows
    of one without ids are numbered from 0, unless a column of them was named. The pool of scoring actors grows from
    `min_actors` to `max_actors`.
    Raises ConfigError when too few CPUs are free (Ray Data would wait for ever), InvalidInput for a source that cannot
    be read or lacks columns, and the EnginehouseError that stopped scoring.
    """
    _check_names(signature, id_column)
    _check_free_cpus(min_actors)
    DataContext.get_current().enable_progress_bars = progress
    names = [spec.name for spec in signature.inputs]
    rows = _from_npz(source, names, id_column) if source.endswith(".npz") else _from_parquet(source, names, id_column)
    scored = rows.map_batches(
        _Scorer,
        fn_constructor_kwargs={"model": model, "signature": signature, "id_column": id_column},
        batch_size=REQUEST_ROWS * REQUESTS_IN_FLIGHT,
        # As Arrow has them: numpy would lose nulls, and the digits of large ids beside them.
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=min_actors, max_size=max_actors, initial_size=min_actors),
        num_cpus=ACTOR_CPUS,
    )
    try:
        scored.write_parquet(target, ray_remote_args={"num_cpus": IO_CPUS})
    except Exception as error:
        raise _unwrapped(error) from None
    written = dataset.dataset(target)
    backends = written.to_table(columns=[_BACKEND]).column(_BACKEND).unique().to_pylist()
    return Scored(written.count_rows(), tuple(sorted(backends)))


_BACKEND = "backend"


class _Scorer:
    """Ray Data actor: sends a batch as several requests, all in flight at once."""

    def __init__(self, model: str, signature: Signature, id_column: str) -> None:
        self._client = Client()
        self._model, self._signature, self._id_column = model, signature, id_column

    async def __call__(self, batch: pa.Table) -> Any:
        count = batch.num_rows
        if not count:
            return
        ids = batch.column(self._id_column)
        inputs = {spec.name: tensor_of(batch.column(spec.name), spec, ids) for spec in self._signature.inputs}
        step = REQUEST_ROWS if self._signature.batched else 1
        answers = await asyncio.gather(
            *(self._answer(_rows(inputs, start, step, self._signature.batched)) for start in range(0, count, step))
        )
        result: dict[str, Any] = {self._id_column: ids}
        for spec in self._signature.outputs:
            parts = [answer["outputs"][spec.name] for answer in answers]
            result[spec.name] = column_of(np.concatenate(parts) if self._signature.batched else np.stack(parts))
        sizes = [min(step, count - start) for start in range(0, count, step)]
        result[_BACKEND] = pa.array(np.repeat([answer["backend"] for answer in answers], sizes))
        yield pa.table(result)

    async def _answer(self, inputs: Tensors) -> dict[str, Any]:
        for attempt in range(_TRIES):
            try:
                return await self._client.answer_async(self._model, inputs, deadline_s=60, priority=LAST)
            except EnginehouseError as error:
                if not error.retryable or attempt == _TRIES - 1:
                    raise
                await asyncio.sleep(1.0 * (attempt + 1))
        raise AssertionError("unreachable")


def _from_parquet(source: str, names: list[str], id_column: str) -> Dataset:
    """One block per row group, read by tasks of IO_CPUS: Ray Data's own reader lists files in a task of a whole CPU."""
    try:
        files = dataset.dataset(source)
    except FileNotFoundError:
        raise InvalidInput(f"{source}: no such file or folder") from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{source}: not readable as Parquet: {error}") from None
    columns = [id_column, *names]
    _check_columns(source, names, files.schema.names)
    _check_id(source, id_column, files.schema.names)
    pieces = [
        {"file": piece.path, "row_group": piece.row_groups[0].id}
        for file in files.get_fragments()
        for piece in file.split_by_row_group()
    ]
    if not files.count_rows():
        raise InvalidInput(f"{source}: no rows")

    def read(piece: dict[str, np.ndarray]) -> Any:
        with files.filesystem.open_input_file(str(piece["file"][0])) as stream:
            yield parquet.ParquetFile(stream).read_row_group(int(piece["row_group"][0]), columns=columns)

    return ray.data.from_items(pieces).map_batches(read, batch_size=1, num_cpus=IO_CPUS)


def _from_npz(source: str, names: list[str], id_column: str) -> Dataset:
    if not Path(source).is_file():
        raise InvalidInput(f"{source}: no such file")
    try:
        with np.load(source, allow_pickle=False) as file:
            _check_columns(source, names, file.files)
            if id_column != _ID:
                _check_id(source, id_column, file.files)
            # Others may be of any kind, and are not asked for.
            arrays = {name: file[name] for name in file.files if name in (*names, id_column)}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise InvalidInput(f"{source}: not a readable .npz of plain arrays: {seen_in(Path(source), error)}") from None
    if scalars := [name for name, array in arrays.items() if not array.ndim]:
        raise InvalidInput(f"{source}: {scalars[0]!r} is one number; give an array with one row for each request")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise InvalidInput(f"{source}: arrays differ in rows: {counts}")
    count = counts[names[0]]
    if not count:
        raise InvalidInput(f"{source}: no rows")
    arrays.setdefault(id_column, np.arange(count))
    columns = [id_column, *names]
    return ray.data.from_blocks(
        [
            pa.table({name: column_of(arrays[name][start : start + PIECE_ROWS]) for name in columns})
            for start in range(0, count, PIECE_ROWS)
        ]
    )


def _check_names(signature: Signature, id_column: str) -> None:
    """Raises ConfigError for an output that would be written over the id or over who answered."""
    outputs = {spec.name for spec in signature.outputs}
    if id_column in outputs:
        raise ConfigError(
            f"the model has an output {id_column!r}, which is the column that results are joined by; call that column "
            "something else, with --id-column"
        )
    if _BACKEND in outputs:
        raise ConfigError(
            f"the model has an output {_BACKEND!r}, the name of the column that says who answered; give the output "
            "another name in the model"
        )


def _check_columns(source: str, wanted: list[str], have: list[str]) -> None:
    missing = [name for name in wanted if name not in have]
    if missing:
        raise InvalidInput(f"{source}: no column {', '.join(missing)}; it has {', '.join(have) or 'none'}")


def _check_id(source: str, id_column: str, have: list[str]) -> None:
    if id_column not in have:
        raise InvalidInput(
            f"{source}: no column {id_column}, which results are joined by; it has {', '.join(have)}: name one with "
            "--id-column"
        )


def _rows(inputs: Tensors, start: int, step: int, batched: bool) -> Tensors:
    if batched:
        return {name: array[start : start + step] for name, array in inputs.items()}
    return {name: array[start] for name, array in inputs.items()}


def _check_free_cpus(actors: int) -> None:
    free = ray.available_resources().get("CPU", 0.0)
    needed = actors * ACTOR_CPUS + 2 * IO_CPUS
    if free < needed:
        total = ray.cluster_resources().get("CPU", 0.0)
        raise ConfigError(
            f"scoring needs {needed:g} free logical CPUs ({actors} actors of {ACTOR_CPUS:g}, {IO_CPUS:g} each to read "
            f"and to write), but {free:g} of {total:g} are free; add a CPU node or lower the pools' num_cpus"
        )


def _unwrapped(error: BaseException) -> EnginehouseError:
    """The error of an actor, without the errors that Ray and Ray Data wrap around it."""
    cause: BaseException | None = error
    text = ""
    while cause is not None:
        if isinstance(cause, EnginehouseError):
            return cause
        text += f"{getattr(cause, 'traceback_str', '')}\n{cause}\n"
        last, cause = cause, getattr(cause, "cause", None) or cause.__cause__
    # Ray Data chains its error to ours, and pickling turns such a chain into text.
    if ours := re.findall(r"^enginehouse\.(\w+): (.*)$", text, re.MULTILINE):
        name, message = ours[0]
        if name == "InvalidInput":
            return InvalidInput(message)
        return InferenceFailed(f"scoring stopped: {name}: {message}")
    return InferenceFailed(f"scoring stopped: {type(last).__name__}: {last}")
