"""Proofs that a model's batch is free and its rows are independent: each row alone, and in several companies.

A proof compares every row of every output by `parity.first_difference`. That a model answers row 0 alike proves
nothing: a causal model whose time axis was taken for the batch does so too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from enginehouse.contract.errors import BuildError, ExportFailed
from enginehouse.contract.manifest import Axis
from enginehouse.contract.parity import LIMITS, NOTHING_FINITE, first_difference
from enginehouse.contract.tensors import Tensors
from enginehouse_build.inputs.extents import independent, near, resized, sizes
from enginehouse_build.inputs.last_words import asking
from enginehouse_build.inputs.samples import take
from enginehouse_build.reference.company import WHY, Ask, has_rows, joined, prove_strangers
from enginehouse_build.reference.crowds import MOST_ROWS, moved, prove_full
from enginehouse_build.reference.onnx import CAUSES, PROOF_ROWS, reason
from enginehouse_build.reference.probes import FAR
from enginehouse_build.reference.strangers import UNKNOWN, Door

#: Rows that are asked in each company of made-up ones.
_IN_COMPANY = 3
#: How many times as many values as were seen to change may be undecided.
_EITHER_WAY = 4


def prove_dynamic(
    run: Ask,
    reference: Ask,
    samples: Tensors,
    axes: Sequence[Axis] = (),
    declared: Mapping[str, object] | None = None,
    door: Door = UNKNOWN,
    max_rows: int = MOST_ROWS,
) -> None:
    """Run the model on 1, 2 and 5 rows and compare with the reference, then each row alone with itself in company.

    The company are other samples, rows far from them, and whatever else the `door` lets in; rows of that kind are asked
    for as well (`prove_strangers`), and all of them in batches of up to `max_rows` (`prove_full`).

    The same at several extents of each of `axes`; what fails to run there is refused for the `declared` ones, whose
    range was promised, and says nothing for others. Raises ExportFailed when the batch is not free after all, or a
    row's answer depends on its neighbours, with the output and the row.
    """
    rows = picked(samples)
    alone: list[Tensors] = []
    for count in PROOF_ROWS:
        batch = joined(rows[:count])
        try:
            got = run(batch)
        except Exception as error:
            raise ExportFailed(
                f"the model does not run with {count} rows of the samples: {reason(error)}; either they are not what "
                f"it takes, or its batch is not dynamic; usual causes of that: {CAUSES}"
            ) from error
        has_rows(got, count)
        _like_reference(got, batch, reference, f"with {count} rows the exported model")
        alone = alone or [got, *(run(row) for row in rows[1:])]
    _alike(got, alone, rows, run, "beside other samples")
    prove_company(run, rows, alone, run, samples, door, max_rows)
    for axis in independent(axes):
        _prove_extents(run, reference, rows[:2], axis, axes, axis.name in (declared or {}))


def prove_company(
    run: Ask,
    rows: Sequence[Tensors],
    alone: Sequence[Tensors],
    original: Ask,
    samples: Tensors,
    door: Door = UNKNOWN,
    max_rows: int = MOST_ROWS,
) -> None:
    """Ask `run` for `rows` in another order, between made-up rows, and compare with what they are answered `alone`.

    Then for the made-up rows as well, and for as many as `max_rows` at once. Raises ExportFailed naming company,
    output and row. Company that `original` itself does not take proves nothing.
    """
    order = list(reversed(range(len(rows))))
    far: list[tuple[str, Tensors]] = []
    for at, (what, front, back) in enumerate(companies(rows[0], samples)):
        called = what.partition(" of ")[2]
        far += [(called, row) for row in ((front,) if front is back else (front, back))]
        chosen = [order[(at + step) % len(order)] for step in range(min(_IN_COMPANY, len(order)))]
        batch = joined([front, *(rows[row] for row in chosen), back])
        try:
            got = run(batch)
        except Exception as error:
            if not (_takes(original, front) and _takes(original, back)):
                continue
            raise ExportFailed(
                f"rows that the model answers alone fail together, {what}: {reason(error)}; {WHY}"
            ) from error
        has_rows(got, len(chosen) + 2)
        within = {name: array[1:-1] for name, array in got.items()}
        _alike(within, [alone[row] for row in chosen], [rows[row] for row in chosen], original, what)
    made = prove_strangers(run, rows[:2], alone[:2], original, samples, door, far)
    prove_full(run, rows, alone, original, samples, made, max_rows)


def prove_rewritten(
    run: Ask, original: Ask, requests: Sequence[Tensors], answers: Sequence[Tensors], beyond: Sequence[Tensors]
) -> None:
    """Compare `run`, a graph made from that of `original`, with what `original` answers to all samples: `answers`.

    Also on requests `beyond` these, where `original` takes them and has finite answers: others it was not made for.
    Raises ExportFailed naming output and row.
    """
    for request, want in zip(requests, answers, strict=True):
        _like_reference(run(request), request, original, "on samples the rewritten model", want)
    for request in beyond:
        try:
            want = original(request)
        except Exception:
            # ONNX Runtime raises classes of its own.
            continue
        if all(np.isfinite(array).all() for array in want.values() if array.dtype.kind == "f"):
            what = "on values far from the samples the rewritten model"
            _like_reference(run(request), request, original, what, want)


def company_requests(samples: Tensors) -> Iterator[Tensors]:
    """The rows of `companies`, each asked for by itself."""
    for _, front, back in companies(take(samples, 0, 1), samples):
        yield front
        yield back


def asked(run: Ask, request: Tensors) -> Tensors:
    """What `run` answers. Raises BuildError with the shapes that it refuses."""
    try:
        with asking("the reference", request):
            return run(request)
    except Exception as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in request.items())
        raise BuildError(
            f"the reference does not answer a request of the shapes {shapes}: {reason(error)}; give samples that it "
            "takes with --samples FILE.npz, and ranges within what it takes with --axis NAME=MIN:OPT:MAX"
        ) from error


def undecided(reference: Ask, rows: Sequence[Tensors], answers: Sequence[Tensors]) -> dict[str, float]:
    """By output, the share of whole numbers that moving the inputs by no more than rounding changes.

    In a class map of a million pixels some scores are equal to rounding, and no two computations agree on these. Never
    more than the gate of fp32 allows.
    """
    want = joined(answers)
    shares: dict[str, float] = {}
    for seed in (0, 1):
        generator = np.random.default_rng(seed)
        near_by = joined([reference(moved(row, generator)) for row in rows])
        for name, array in want.items():
            if array.dtype.kind in "iub" and array.size and near_by[name].shape == array.shape:
                share = float(np.mean(near_by[name] != array))
                # What rounding decides falls either way: another computation may differ where none of these did.
                share = min(_EITHER_WAY * share, LIMITS["fp32"].differing)
                shares[name] = max(share, shares.get(name, 0.0))
    return shares


def _alike(got: Tensors, alone: Sequence[Tensors], rows: Sequence[Tensors], original: Ask, what: str) -> None:
    limit, want = LIMITS["fp32"].relative_l2, joined(alone)
    if first_difference(got, want, limit, limit) is None:
        return
    fault = first_difference(got, want, limit, limit, undecided(original, rows, alone))
    if fault is not None:
        raise ExportFailed(f"a row that shares its batch is answered otherwise than alone: {what}, {fault}; {WHY}")


def _like_reference(got: Tensors, batch: Tensors, reference: Ask, what: str, wanted: Tensors | None = None) -> None:
    """`wanted` is what the reference answers, where that is known."""
    want, limits = reference(batch) if wanted is None else wanted, LIMITS["fp32"]
    if first_difference(got, want, limits.relative_l2, limits.worst_row) is not None:
        by_rounding = undecided(reference, [batch], [want])
        fault = first_difference(got, want, limits.relative_l2, limits.worst_row, by_rounding)
        if fault is not None:
            raise ExportFailed(
                f"{what} answers otherwise than what it was made from, to the very same request: {fault}"
            )
    for name, array in got.items():
        if array.dtype.kind == "f" and array.size and not np.isfinite(array).any():
            raise ExportFailed(f"{what}: output {name!r} has {NOTHING_FINITE} in {array.size}; are the samples right?")


def _prove_extents(
    run: Ask, reference: Ask, rows: Sequence[Tensors], axis: Axis, axes: Sequence[Axis], declared: bool
) -> None:
    for size in sizes(axis) if declared else near(axis.opt):
        what = f"at {axis.name} = {size}"
        sized = [resized(row, axis, size, axes) for row in rows]
        try:
            with asking("the model", sized[0], axis.name):
                alone = [run(row) for row in sized]
        except Exception as error:
            if declared:
                raise ExportFailed(
                    f"the model does not run {what}, which its range allows: {reason(error)}; narrow the range, or, "
                    "where the extent of another dimension follows from this one (a mask as long as past and new "
                    "tokens together), call that one 'past + new' in the file, or give neither a range: then both stay "
                    "as they are in the samples"
                ) from error
            continue
        batch = joined(sized)
        try:
            got = run(batch)
        except Exception as error:
            raise ExportFailed(f"{what} the model takes one row and not {len(rows)}: {reason(error)}") from error
        has_rows(got, len(rows))
        _alike(got, alone, sized, run, what)
        _like_reference(got, batch, reference, f"{what} the exported model")


def _takes(run: Ask, row: Tensors) -> bool:
    try:
        run(row)
    except Exception:
        return False
    return True


def picked(samples: Tensors) -> list[Tensors]:
    """The five rows that proofs ask for: the first two, the largest, the smallest, the last, then what there is."""
    count = min(len(array) for array in samples.values())
    size = np.zeros(count)
    for array in samples.values():
        if array.dtype.kind == "f":
            size += np.nan_to_num(np.abs(array[:count].astype(np.float64))).reshape(count, -1).sum(axis=1)
    wanted = [0, 1 % count, int(size.argmax()), int(size.argmin()), count - 1, *range(count)]
    chosen = list(dict.fromkeys(wanted))
    return [take(samples, chosen[at % len(chosen)], 1) for at in range(max(PROOF_ROWS))]


def companies(row: Tensors, samples: Tensors) -> Iterator[tuple[str, Tensors, Tensors]]:
    """What the company is, and the rows of it before and after those that are asked for; shaped as `row`."""
    for what, side in (("beside rows of large values", 1), ("beside rows of large negative values", -1)):
        far = {name: _far(array, samples[name], side) for name, array in row.items()}
        yield what, far, far
    strangers = []
    for seed in (0, 1):
        generator = np.random.default_rng(seed)
        strangers.append({name: generator.choice(samples[name].ravel(), array.shape) for name, array in row.items()})
    nothing = {name: _scaled(array, 0) for name, array in strangers[1].items()}
    yield "beside rows made of the samples' values", _loud(strangers[0]), nothing


def _far(array: np.ndarray, among: np.ndarray, side: int) -> np.ndarray:
    if not among.size:
        return array
    if among.dtype.kind != "f":
        values = among.ravel()
        extreme = (
            (max if side > 0 else min)(values) if among.dtype.hasobject else values.max() if side > 0 else values.min()
        )
        return np.full(array.shape, extreme, dtype=among.dtype)
    largest = float(np.abs(among[np.isfinite(among)]).max(initial=0)) or 1.0
    return _scaled(np.abs(np.nan_to_num(array.astype(np.float64))) + largest, side * FAR).astype(among.dtype)


def _loud(row: Tensors) -> dict[str, np.ndarray]:
    return {name: _scaled(array, FAR / 8) for name, array in row.items()}


def _scaled(array: np.ndarray, factor: float) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    most = float(np.finfo(array.dtype).max) / 4
    scaled: np.ndarray = np.clip(np.nan_to_num(array.astype(np.float64)) * factor, -most, most).astype(array.dtype)
    return scaled
