"""Batches as full as calls may be: each row in them is answered as it is alone, whatever fills the rest.

A router of experts with a fixed capacity, a table with a place for each row, a branch for large batches: all of these
are right in small batches, and a source that is asked for the same full batch says the same as its artifact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.parity import LIMITS, WHOLE, first_difference
from enginehouse.contract.tensors import Tensors
from enginehouse_build.inputs.extents import between
from enginehouse_build.inputs.samples import take
from enginehouse_build.reference.company import (
    WHY,
    Ask,
    Member,
    answer_of,
    has_rows,
    of_samples,
    prove_group,
    repeated,
)
from enginehouse_build.reference.onnx import reason

#: Rows of a call unless a recipe says otherwise.
MOST_ROWS = 32
#: After so many seconds nothing more is asked but one full batch of copies and one of all kinds.
_SECONDS = 4.0
#: Samples that fill a batch, different ones.
_SAMPLES = 64
#: About what rounding makes of the values inside a deep network, relative to them.
_ROUNDING = 1e-5
#: Rows that are few for a kernel.
_FEW = 4
#: What rounding may make of an answer, and how many times as many whole numbers as it was seen to change.
_BY_ROUNDING, _EITHER_WAY = (LIMITS["fp32"].relative_l2, 1e-3, 1e-2, 1e-1), 4


def prove_full(
    run: Ask,
    rows: Sequence[Tensors],
    alone: Sequence[Tensors],
    original: Ask,
    samples: Tensors,
    made: Sequence[Member],
    most: int,
) -> None:
    """Ask `run` for batches of up to `most` rows: copies of one row, and all kinds of `rows`, `samples` and `made`.

    Each has to be answered as `original` answers it alone: `alone` is that of `rows`. Raises ExportFailed with the
    number of rows, and up to how many it is right.
    """
    if most < 2:
        return
    began, longest = time.monotonic(), 0.0
    for at, (size, prove) in enumerate(_crowds(run, of_samples(rows, alone), original, samples, made, most, began)):
        started = time.monotonic()
        if at > 1 and started - began + longest > _SECONDS:
            return
        try:
            prove(size)
        except ExportFailed as error:
            right = right_up_to(prove, size)
            hint = f"; up to {right} rows at once are right here: --max-batch {right} helps too" if right > 1 else ""
            raise ExportFailed(f"{error}{hint}") from error
        longest = max(longest, time.monotonic() - started)


def moved(row: Tensors, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """`row` with its floats moved by no more than rounding."""
    return {
        name: (array * (1 + _ROUNDING * generator.standard_normal(array.shape))).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in row.items()
    }


def _crowds(
    run: Ask,
    real: Sequence[Member],
    original: Ask,
    samples: Tensors,
    made: Sequence[Member],
    most: int,
    began: float,
) -> Iterator[tuple[int, Callable[[int], None]]]:
    """Sizes and what to ask for there, the most telling ones first."""

    def copies(member: Member) -> Callable[[int], None]:
        return lambda size: prove_copies(run, original, member, size)

    def mixed(own: Sequence[Member], others: Sequence[Member], start: int = 0) -> Callable[[int], None]:
        def prove(size: int) -> None:
            count = size - size // 2 if others else size
            prove_group(run, _filled(own, count, start), _filled(others, size - count, start))

        return prove

    yield most, copies(real[0])
    yield most, mixed(real, made)
    plain = list(real)
    for at in range(min(most, _SAMPLES, *map(len, samples.values()))):
        if time.monotonic() - began > _SECONDS / 4:
            break
        row: Tensors = take(samples, at, 1)
        if (answer := answer_of(original, [row])) is not None:
            plain.append((f"sample {at}", row, answer))
    yield most, mixed(plain, ())
    yield most - 1, mixed(plain, made, 1)
    distinct = {tuple(map(_key, row.values())): (what, row, answer) for what, row, answer in (*made, *real[1:])}
    for member in distinct.values():
        yield most, copies(member)
    for what, row, answer in made:
        # Where all or most are of one kind, the few others are what shows it.
        for at, one in enumerate(real):
            yield 2 if at else most, mixed_with(run, one, (what, row, answer))
    for at, size in enumerate(between(2, most, most)):
        yield size, mixed(plain, made, at)
        yield size, copies(plain[at % len(plain)])


def mixed_with(run: Ask, one: Member, kind: Member) -> Callable[[int], None]:
    """Proves `one` row among others of a `kind`."""
    return lambda size: prove_group(run, [one], [kind] * (size - 1))


def _filled(members: Sequence[Member], count: int, start: int) -> list[Member]:
    return [members[(start + at) % len(members)] for at in range(count)]


def _key(array: np.ndarray) -> object:
    return tuple(array.ravel()) if array.dtype.hasobject else array.tobytes()


def prove_copies(run: Ask, original: Ask, member: Member, size: int, why: str = WHY) -> None:
    """Ask `run` for `size` times the row of `member`. Raises ExportFailed for another answer, with `why`."""
    what, row, answer = member
    try:
        got = run(repeated(row, size))
    except Exception as error:
        if answer_of(run, [row, row]) is None:
            # The model takes no two of it, and no larger batch says more.
            return
        raise ExportFailed(
            f"{size} rows that the model answers alone fail together, all of them {what}: {reason(error)}; {why}"
        ) from error
    has_rows(got, size)
    limit, want = LIMITS["fp32"].relative_l2, repeated(answer, size)
    if first_difference(got, want, limit, limit) is None:
        return
    close = _rounded(run, original, row, size)
    for name, array in want.items():
        if fault := _beyond_rounding(name, got, array, [each[name] for each in close if name in each], size):
            raise ExportFailed(
                f"a row that shares its batch is answered otherwise than alone: {what}, {size} times in a batch: "
                f"{fault}; {why}"
            )


def _rounded(run: Ask, original: Ask, row: Tensors, size: int) -> list[Tensors]:
    """What rounding makes of the answer to `row`: of its digits moved, and by kernels for few rows, but not `size`."""
    answers = [answer_of(original, [moved(row, np.random.default_rng(seed))]) for seed in (0, 1)]
    answers += [answer_of(run, [row] * count) for count in ((2, 3) if size > _FEW else (_FEW + 1, _FEW + 2))]
    return [{name: array[:1] for name, array in answer.items()} for answer in answers if answer is not None]


def _beyond_rounding(name: str, got: Tensors, want: np.ndarray, close: Sequence[np.ndarray], count: int) -> str | None:
    """How the output `name` is another one than `want`, by more than the answers of `_rounded` are, `close`."""
    own = {name: want}
    if want.dtype.kind in WHOLE:
        seen = max((float(np.mean(other != want[:1])) for other in close if other.shape == want[:1].shape), default=0.0)
        return first_difference(got, own, 0, 0, {name: min(_EITHER_WAY * seen, 1)})
    for limit in _BY_ROUNDING:
        if all(first_difference({name: other}, {name: want[:1]}, limit, limit) is None for other in close):
            return first_difference(got, own, limit, limit)
    return None


def right_up_to(prove: Callable[[int], None], size: int) -> int:
    """The largest size, as far as one holds for all below it, where `prove` finds no fault."""
    right, wrong = 1, size
    while wrong - right > 1:
        middle = (right + wrong) // 2
        try:
            prove(middle)
        except ExportFailed:
            wrong = middle
        else:
            right = middle
    return right
