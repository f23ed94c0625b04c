"""What rounding decides: a difference that moving the reference's own numbers by rounding makes as well is no fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from enginehouse.contract.errors import ParityFailed
from enginehouse.contract.parity import WHOLE, Limits, first_difference
from enginehouse.contract.probes import IsRounding
from enginehouse.contract.tensors import Tensors
from enginehouse_build.reference.conditioning import EITHER_WAY, SEEDS, Rounding


def exact(
    artifact: str, answers: Iterable[Tensors], pairs: Iterable[tuple[Tensors, Tensors]], rounding: Rounding
) -> None:
    """Raises ParityFailed where text or whole numbers differ that rounding does not decide, naming output and row.

    `answers` are the artifact's to the requests of `pairs` (request, the reference's answer); counted over all of them,
    because what rounding decides is rare.
    """
    wrong: dict[str, int] = {}
    total: dict[str, int] = {}
    first: dict[str, str] = {}
    kept = [(got, request, whole(want)) for got, (request, want) in zip(answers, pairs, strict=True)]
    for got, _, want in kept:
        for name, array in want.items():
            total[name] = total.get(name, 0) + array.size
            wrong[name] = wrong.get(name, 0) + int(np.sum(np.asarray(got[name] != array, dtype=bool)))
            if name not in first and (fault := first_difference({name: got[name]}, {name: array}, 0, 0)):
                first[name] = fault
    decided = {name: [0] * len(SEEDS) for name in first}
    for _, request, want in kept if first else ():
        for at, moved in enumerate(rounding.answers(request)):
            for name in first:
                if moved[name].shape == want[name].shape:
                    decided[name][at] += int(np.sum(np.asarray(moved[name] != want[name], dtype=bool)))
    faults = [
        f"{first[name]}; of {total[name]} in all {wrong[name]} are other ones, rounding decides {max(decided[name])}"
        for name in first
        if wrong[name] > EITHER_WAY * max(decided[name])
    ]
    if faults:
        raise ParityFailed(f"{artifact} answers other whole numbers or text than the reference: {'; '.join(faults)}")


def by_rounding(rounding: Rounding, right: Callable[[Tensors], Tensors], limits: Limits) -> IsRounding:
    """Whether an answer is off by no more than `rounding` moves the reference's own, which are those of `right`.

    Never where it is torch that answers otherwise than the reference, nor where rounding leaves finite what is not.
    """

    limits = replace(limits, relative_l2=limits.worst_row)

    def explains(request: Tensors, got: Tensors, want: Tensors) -> bool:
        if first_difference(right(request), want, limits.worst_row, limits.worst_row) is not None:
            return False
        moved = rounding.answers(request)
        for name, array in _floats(want).items():
            if name in got and got[name].shape == array.shape:
                odd = np.isfinite(got[name]) != np.isfinite(array)
                if any(odd[np.isfinite(other[name]) == np.isfinite(array)].any() for other in moved):
                    return False
        return rounding.difference(got, want, request, limits) is None

    return explains


def _floats(answer: Tensors) -> dict[str, np.ndarray]:
    return {name: array for name, array in answer.items() if array.dtype.kind not in WHOLE}


def whole(answer: Tensors) -> dict[str, np.ndarray]:
    """The outputs that are right or wrong and nothing between: whole numbers, text, truth values."""
    return {name: array for name, array in answer.items() if array.dtype.kind in WHOLE}
