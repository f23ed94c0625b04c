"""What rows are answered as they are, and whether they are answered so when they are padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from enginehouse.contract.parity import WHOLE, Limits, first_difference
from enginehouse.contract.tensors import Tensors
from enginehouse.engines.padding import Padder
from enginehouse_build.reference.company import joined
from enginehouse_build.reference.conditioning import Rounding

Run = Callable[[Tensors], Tensors]

#: A row: its length, which of its kind it is, and itself.
Member = tuple[int, int, Tensors]


class Harmful(Exception):
    """Padding changes an answer; says which."""


@dataclass(slots=True)
class Asked:
    """One that answers, `run`, and what it has answered to rows as they are."""

    run: Run
    limits: Limits
    rounding: Rounding
    answers: dict[tuple[int, int], Tensors] = field(default_factory=dict)

    def has(self, member: Member) -> bool:
        return member[:2] in self.answers

    def answer(self, members: Sequence[Member], max_rows: int) -> None:
        """Ask for `members` as they are, those of one length together; what is refused proves nothing."""
        by_length: dict[int, list[Member]] = {}
        for member in members:
            if not self.has(member):
                by_length.setdefault(member[0], []).append(member)
        for alike in by_length.values():
            for start in range(0, len(alike), max_rows):
                part = alike[start : start + max_rows]
                try:
                    got = self.run(joined([row for _, _, row in part]))
                except Exception:
                    # ONNX Runtime raises classes of its own.
                    continue
                for at, member in enumerate(part):
                    self.answers[member[:2]] = {name: array[at : at + 1] for name, array in got.items()}

    def followers(self) -> tuple[tuple[str, int], ...]:
        """Dimensions of outputs that are as long as the row; raises Harmful for one that follows otherwise."""
        shapes: dict[int, Tensors] = {}
        for (length, _), answer in self.answers.items():
            shapes.setdefault(length, answer)
        if len(shapes) < 2:
            raise Harmful("only one length is answered")
        found = []
        first = next(iter(shapes.values()))
        for name, array in first.items():
            if any(answer[name].ndim != array.ndim for answer in shapes.values()):
                raise Harmful(f"output {name!r} has other dimensions at other lengths")
            for dim in range(1, array.ndim):
                extents = {length: answer[name].shape[dim] for length, answer in shapes.items()}
                if len(set(extents.values())) == 1:
                    continue
                if any(length != extent for length, extent in extents.items()):
                    raise Harmful(f"dimension {dim} of output {name!r} is not as long as the row")
                found.append((name, dim))
        return tuple(found)

    def compare(
        self,
        request: Tensors,
        group: Sequence[Tensors],
        want: Sequence[Tensors],
        padder: Padder,
        edge: int,
        singly: bool = False,
        forgives: bool = False,
    ) -> dict[int, str]:
        """Ask for `group`, padded to `edge` in `request`; which of them are answered otherwise than as they `want`.

        Rows of one length are compared together, or `singly`, where beside loud ones nobody would notice what becomes
        of faint ones. With `forgives` what rounding decides is no difference. Raises Harmful where all are refused.
        """
        try:
            got = self.run(request)
        except Exception as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Harmful(f"rows that are padded to {edge} are refused: {said}") from None
        for name, dim in padder.padding.outputs:
            if got[name].shape[dim] != edge:
                raise Harmful(f"dimension {dim} of output {name!r} is not as long as the row")
        by_length: dict[int, list[int]] = {}
        for at, row in enumerate(group):
            by_length.setdefault(padder.length(row), []).append(at)
        found: dict[int, str] = {}
        for length, places in by_length.items():

            def different(places: list[int], length: int = length) -> str | None:
                own = padder.cut({name: array[places] for name, array in got.items()}, length)
                right, rows = joined([want[at] for at in places]), joined([group[at] for at in places])
                return self._difference(own, right, rows, forgives)

            fault = None if singly else different(places)
            if singly or fault:
                alone = {at: other for at in places if (other := different([at]))}
                found |= {
                    at: f"a row of {length}, padded to {edge}, is answered otherwise than alone: {text}"
                    for at, text in (alone or (dict.fromkeys(places, fault) if fault else {})).items()
                }
        return found

    def _difference(self, got: Tensors, want: Tensors, request: Tensors, forgives: bool) -> str | None:
        limits = self.limits
        floats = {name: array for name, array in want.items() if array.dtype.kind not in WHOLE}
        if fault := first_difference(got, floats, limits.relative_l2, limits.worst_row):
            return self.rounding.difference(got, floats, request, limits) if forgives else fault
        # Of nearly equal scores rounding decides.
        return self.rounding.difference(got, {n: a for n, a in want.items() if n not in floats}, request, limits)
