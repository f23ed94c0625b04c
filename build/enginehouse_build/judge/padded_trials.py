"""Rows with chosen values are asked for alone, and padded beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from enginehouse.contract.bounds import InputBounds, Values
from enginehouse.contract.parity import WHOLE
from enginehouse.contract.signature_record import MaskKind
from enginehouse.contract.tensors import Tensors
from enginehouse.engines.padding import Padder
from enginehouse_build.judge.padded_answers import Asked, Harmful
from enginehouse_build.judge.padded_rows import Rows
from enginehouse_build.reference.company import joined

#: Kinds of rows (see `padded_rows`) in turn: all positions count, the first ones, one, the last ones, some.
_TURNS = (0, 3, 5, 4, 2)
IN_TURN = len(_TURNS)
#: Rows of these lengths are padded to the first edge from that one on.
_LENGTHS, EDGE = (5, 3), 16
#: Rows of a call.
_ROWS = 16


@dataclass
class Trials:
    """`asked` are the reference and the engine, right within `bounds`; rows are made of `rows`, no shorter than `low`.

    Masks of the `excluded` kinds are not tried; `masks` are those that were, `ends` between what values are kept.
    """

    asked: Sequence[Asked]
    rows: Rows
    padder: Padder
    bounds: InputBounds
    low: int
    max_rows: int
    excluded: set[MaskKind]
    masks: set[MaskKind] = field(default_factory=set)
    ends: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        edges = self.padder.padding.edges
        self.edge = next((edge for edge in edges if edge >= EDGE), edges[-1])
        self.lengths = [min(max(length, self.low), self.edge) for length in _LENGTHS]
        # A model that has no number for ordinary rows may have none for others.
        answers = [array for answer in self.asked[0].answers.values() for array in answer.values()]
        self._is_finite = all(_is_finite(array) for array in answers)

    def row(self, at: int, changed: Mapping[str, Callable[[np.ndarray], np.ndarray]]) -> dict[str, np.ndarray]:
        """The row in turn `at`, in which some inputs are `changed`."""
        length = self.lengths[at // IN_TURN % len(self.lengths)]
        row = dict(self.rows.of(length)[_TURNS[at % IN_TURN]])
        if self.padder.kinds(row) & self.excluded:
            row = dict(self.rows.of(length)[0])
        for name, (low, high) in self.ends.items():
            if name not in changed:
                row[name] = within(row[name], low, high)
        return row | {name: change(row[name]) for name, change in changed.items()}

    def failing(self, rows: Sequence[Tensors], forgives: bool, edge: int = 0) -> dict[int, str]:
        """Which of `rows` are answered otherwise when they are padded to `edge`, and how.

        What cannot be asked for, and what has no number for an answer where others have, counts as such, unless it
        `forgives`; then what rounding decides is no difference either. Masks of the rows that are not are noted.
        """
        edge = edge or self.edge
        found: dict[int, str] = {}
        size = min(_ROWS, self.max_rows)
        for start in range(0, len(rows), size):
            found |= self._failing(rows, list(range(start, min(start + size, len(rows)))), forgives, edge)
        for at, row in enumerate(rows):
            if at not in found:
                self.masks |= self.padder.kinds(row)
        return found

    def _failing(self, rows: Sequence[Tensors], places: list[int], forgives: bool, edge: int) -> dict[int, str]:
        found: dict[int, str] = {}
        unasked: dict[int, str] = {}
        answers: list[dict[int, Tensors]] = []
        for at in places:
            if fault := Values(rows[at]).beyond(self.bounds):
                unasked[at] = fault
        for who in self.asked:
            known = self._alone(who, rows, [at for at in places if at not in unasked])
            unasked |= {at: "it is refused" for at in places if at not in known and at not in unasked}
            answers.append(known)
        if not forgives:
            found |= unasked
            if self._is_finite:
                for at, answer in answers[0].items():
                    if not all(map(_is_finite, answer.values())):
                        found[at] = "no number is answered"
        left = [at for at in places if at not in unasked and at not in found]
        for who, known in zip(self.asked, answers, strict=True):
            found |= self._padded(who, rows, left, known, forgives, edge)
        return found

    def _alone(self, who: Asked, rows: Sequence[Tensors], places: Sequence[int]) -> dict[int, Tensors]:
        by_length: dict[int, list[int]] = {}
        for at in places:
            by_length.setdefault(self.padder.length(rows[at]), []).append(at)
        found: dict[int, Tensors] = {}
        for alike in by_length.values():
            for some in (alike, *([at] for at in alike)):
                if len(some) == 1 and some[0] in found:
                    continue
                try:
                    got = who.run(joined([rows[at] for at in some]))
                except Exception:
                    # One of them may be what is refused.
                    continue
                found |= {
                    at: {name: array[place : place + 1] for name, array in got.items()} for place, at in enumerate(some)
                }
                if len(some) == len(alike):
                    break
        return found

    def _padded(
        self,
        who: Asked,
        rows: Sequence[Tensors],
        places: list[int],
        known: Mapping[int, Tensors],
        forgives: bool,
        edge: int,
    ) -> dict[int, str]:
        if not places:
            return {}
        group, want = [rows[at] for at in places], [known[at] for at in places]
        try:
            faults = who.compare(self.padder.joined(group, edge), group, want, self.padder, edge, True, forgives)
        except Harmful as fault:
            if len(places) == 1:
                return {places[0]: str(fault)}
            return {k: v for at in places for k, v in self._padded(who, rows, [at], known, forgives, edge).items()}
        return {places[at]: said for at, said in faults.items()}


def within(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """`array` with what is beyond the ends moved to them, and NaN to the lower one."""
    if array.dtype.kind in "iu":
        return np.asarray(np.clip(array, array.dtype.type(low), array.dtype.type(high)))
    wide = array.astype(np.float64)
    return np.asarray(np.clip(np.where(np.isnan(wide), low, wide), low, high)).astype(array.dtype)


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind in WHOLE or bool(np.isfinite(array.astype(np.float64)).all())
