"""Each row beside strangers, whatever the door lets in: its answer in their company is what it is alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import TypeAlias

import numpy as np

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.parity import LIMITS, first_difference
from enginehouse.contract.tensors import Tensors
from enginehouse_build.reference.onnx import reason
from enginehouse_build.reference.strangers import Door, strangers

Ask: TypeAlias = Callable[[Tensors], Tensors]
#: A row of a batch: what it is, itself, and what it is answered alone.
Member: TypeAlias = tuple[str, Tensors, Tensors]

#: Strangers that are asked together with real rows; of large rows fewer, each of which takes more than so many bytes.
_TOGETHER, _FEW_TOGETHER, _LARGE_ROW = 14, 3, 1 << 16
#: No further strangers are made up after so many seconds of a proof: those that tell most come first.
_SECONDS = 5.0
WHY = (
    "requests of strangers share a batch, so no row may depend on who else is in it; batch statistics, one scale for "
    "the whole tensor (dynamic quantization, normalisation) and a dim 0 that is time are the usual causes: "
    "--no-batch helps"
)


def prove_strangers(
    run: Ask,
    rows: Sequence[Tensors],
    alone: Sequence[Tensors],
    original: Ask,
    samples: Tensors,
    door: Door,
    far: Sequence[tuple[str, Tensors]] = (),
) -> list[Member]:
    """Ask `run` for `rows` together with `far` ones and all that the `door` lets in, and for each of these as well.

    Each has to be answered as `original` answers it alone; what `original` refuses alone proves nothing. A made-up row
    may be where a model magnifies rounding, so that a difference counts only if it is there beside copies of the row
    as well: the same computation in the same place, in which nothing but the company is another one. Raises
    ExportFailed naming company, output and row. Returns the company that says most: the first made-up rows.
    """
    began = time.monotonic()
    made = chain(far, strangers(rows[0], samples, door))
    size = _FEW_TOGETHER if sum(array.nbytes for array in rows[0].values()) > _LARGE_ROW else _TOGETHER
    first: list[Member] | None = None
    while group := list(islice(made, size + (len(far) if first is None else 0))):
        known = [(what, row, answer) for what, row in group if (answer := _answer(original, row)) is not None]
        if known:
            prove_group(run, of_samples(rows, alone), known)
        first = known if first is None else first
        if time.monotonic() - began > _SECONDS:
            break
    return first or []


def of_samples(rows: Sequence[Tensors], alone: Sequence[Tensors]) -> list[Member]:
    """`rows` and what they are answered `alone` as members of a batch."""
    return [(f"row {at} of the samples", *each) for at, each in enumerate(zip(rows, alone, strict=True))]


def prove_group(run: Ask, real: Sequence[Member], made: Sequence[Member]) -> None:
    """Ask `run` for all of them together. Raises ExportFailed for one that is answered otherwise than alone."""
    members = [*real, *made]
    try:
        got = run(joined([row for _, row, _ in members]))
    except Exception as error:
        # A request that fails its group is asked again alone when it is served: only who else fails with it counts.
        made = [each for each in made if answer_of(run, [real[0][1], each[1]]) is not None]
        members = [*real, *made]
        try:
            got = run(joined([row for _, row, _ in members]))
        except Exception:
            what = ", ".join(dict.fromkeys(what for what, _, _ in made)) or "the samples"
            raise ExportFailed(
                f"{len(members)} rows that the model answers alone fail together, beside rows of {what}: "
                f"{reason(error)}; {WHY}"
            ) from error
    has_rows(got, len(members))
    # A row may be there several times.
    places: dict[int, list[int]] = {}
    for at, (_, row, _) in enumerate(members):
        places.setdefault(id(row), []).append(at)
    for where in places.values():
        what, row, answer = members[where[0]]
        fault = by_company(run, row, answer, where, len(members), got)
        if fault is None:
            continue
        beside = f"others in a batch of {len(members)} rows"
        # The least company that shows it says most.
        for other, stranger in {other: stranger for other, stranger, _ in made}.items():
            pair = answer_of(run, [row, stranger])
            if pair is not None and (found := by_company(run, row, answer, [0], 2, pair)):
                beside, fault = f"a row with {other}", found
                break
        raise ExportFailed(
            f"a row that shares its batch is answered otherwise than alone: {what}, beside {beside}: {fault}; {WHY}"
        )


def by_company(run: Ask, row: Tensors, answer: Tensors, places: Sequence[int], count: int, got: Tensors) -> str | None:
    """How `row`, at `places` among `count`, is answered otherwise than alone, unless copies of it are so too."""
    limit = LIMITS["fp32"].relative_l2
    within = {name: array[places] for name, array in got.items()}
    fault = first_difference(within, repeated(answer, len(places)), limit, limit)
    if fault is None:
        return None
    copies = answer_of(run, [row] * count)
    if copies is None:
        return fault
    same = {name: array[places] for name, array in copies.items()}
    return fault if first_difference(within, same, limit, limit) else None


def answer_of(run: Ask, rows: Sequence[Tensors]) -> Tensors | None:
    """What `run` answers `rows` together; None where it refuses, or has not a row for each."""
    try:
        answer = run(joined(rows))
    except Exception:
        # ONNX Runtime raises classes of its own.
        return None
    return answer if all(array.ndim and len(array) == len(rows) for array in answer.values()) else None


def _answer(run: Ask, row: Tensors) -> Tensors | None:
    return answer_of(run, [row])


def joined(rows: Sequence[Tensors]) -> dict[str, np.ndarray]:
    """Requests or answers as one, along dim 0."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def repeated(row: Tensors, count: int) -> dict[str, np.ndarray]:
    """`count` copies of a request or answer of one row."""
    return {name: np.repeat(array, count, axis=0) for name, array in row.items()}


def has_rows(got: Tensors, rows: int) -> None:
    for name, array in got.items():
        if array.ndim == 0 or array.shape[0] != rows:
            raise ExportFailed(
                f"output {name!r} has shape {list(array.shape)} for {rows} rows: dim 0 must be the batch "
                "(build with --no-batch if the model has none)"
            )
