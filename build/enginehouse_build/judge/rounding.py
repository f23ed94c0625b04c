"""What rounding decides: a difference that moving the reference's own numbers by rounding makes as well is no fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from enginehouse.contract.errors import ParityFailed
from enginehouse.contract.parity import LIMITS, WHOLE, Limits, first_difference
from enginehouse.contract.tensors import Tensors
from enginehouse_build.reference.conditioning import shaken

#: About what rounding makes of the values inside a deep network, relative to them.
_BY = 1e-5
_SEEDS = (0, 1)
#: How many times as many whole numbers as were seen to change may do so: rounding falls either way.
_EITHER_WAY = 4
#: In a short answer a single number is more than the share that may differ.
_FEW = 2


class Rounding:
    """The reference in the ONNX file `model`, its weights and inputs moved by what rounding may make of them.

    Such models are made when they are first asked: few artifacts differ in anything.
    """

    def __init__(self, model: Path, threads: int) -> None:
        self._model = model
        self._threads = threads

    @cached_property
    def _runs(self) -> Sequence[Callable[[Tensors], Tensors]]:
        return [shaken(self._model, self._threads, _BY, seed) for seed in _SEEDS]

    def answers(self, request: Tensors) -> list[Tensors]:
        """What the moved references answer, one for each seed; none where they refuse what the reference takes."""
        try:
            return [run(request) for run in self._runs]
        except Exception:
            # A constant that decides of shapes was moved too far; ONNX Runtime raises classes of its own.
            return []

    def difference(self, got: Tensors, want: Tensors, request: Tensors, limits: Limits) -> str | None:
        """In words, where `got` is another answer to `request` than `want`; None where rounding explains it.

        An output that rounding moves past `limits` proves nothing. Whole numbers have to be equal up to the share of
        them that rounding decides; where `limits` allow that some differ, one of them may in any case.
        """
        if first_difference(got, want, limits.relative_l2, limits.worst_row) is None:
            return None
        moved = self.answers(request)
        for name, array in want.items():
            own = {name: array}
            share = self._share(array, [answer[name] for answer in moved], limits)
            there = {name: got[name]} if name in got else {}
            fault = first_difference(there, own, limits.relative_l2, limits.worst_row, {name: share})
            if fault is None:
                continue
            steady = array.dtype.kind in WHOLE or all(
                first_difference(answer, own, limits.relative_l2, limits.worst_row) is None for answer in moved
            )
            if steady:
                return fault
        return None

    @staticmethod
    def _share(want: np.ndarray, moved: Sequence[np.ndarray], limits: Limits) -> float:
        if want.dtype.kind not in WHOLE or not want.size:
            return 0.0
        if limits.differing > LIMITS["fp32"].differing:
            return max(limits.differing, 1 / want.size)
        seen = max((float(np.mean(other != want)) for other in moved if other.shape == want.shape), default=0.0)
        return min(_EITHER_WAY * seen, max(limits.differing, _FEW / want.size))


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
    decided = {name: [0] * len(_SEEDS) for name in first}
    for _, request, want in kept if first else ():
        for at, moved in enumerate(rounding.answers(request)):
            for name in first:
                if moved[name].shape == want[name].shape:
                    decided[name][at] += int(np.sum(np.asarray(moved[name] != want[name], dtype=bool)))
    faults = [
        f"{first[name]}; of {total[name]} in all {wrong[name]} are other ones, rounding decides {max(decided[name])}"
        for name in first
        if wrong[name] > _EITHER_WAY * max(decided[name])
    ]
    if faults:
        raise ParityFailed(f"{artifact} answers other whole numbers or text than the reference: {'; '.join(faults)}")


def whole(answer: Tensors) -> dict[str, np.ndarray]:
    """The outputs that are right or wrong and nothing between: whole numbers, text, truth values."""
    return {name: array for name, array in answer.items() if array.dtype.kind in WHOLE}
