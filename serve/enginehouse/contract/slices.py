"""What one figure over a whole output hides: parts with a scale of their own, rare classes, outputs that show nothing.

Boxes in pixels beside scores in one tensor: an artifact that loses every score is 3e-3 away from the reference, because
the boxes are what has a length. So each slice along each axis is measured against itself as well. And where 2 % of all
pixels are lane marks, an artifact that finds none of them is right in 98 %: so each class is counted by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from enginehouse.contract.errors import ParityFailed
from enginehouse.contract.manifest import Parity
from enginehouse.contract.parity import WHOLE, WORST_ROW, Limits, compare_all, limit_option
from enginehouse.contract.tensors import Tensors

#: A slice of fewer values may be near zero by chance.
_ENOUGH = 16
#: A slice that is smaller than this, beside the others or as it is, has no scale of its own and takes theirs: what
#: should be zero, and what fp16 can hardly tell from zero (its steps are 6e-8).
_NOTHING = 1e-6
#: A slice may be off by so many times what a row may be: it is the worst of many, and often of small numbers (the
#: probability of a class that no sample belongs to).
BESIDE_ROW = 2.0
#: Of fewer values of a class one flipped answer says nothing about a rate.
_ENOUGH_OF_CLASS = 20
#: More different whole numbers than this are no classes, and so is what lies further apart.
_CLASSES, _APART = 256, 1 << 16
#: A limit that was named for a share may be off that by rounding.
_ROUNDED = 1e-9


@dataclass(slots=True)
class _Along:
    """Sums over everything but one axis: |a - r|^2 and |r|^2 of each slice, and how many values each has."""

    error: np.ndarray
    size: np.ndarray
    values: int = 0


@dataclass(slots=True)
class _Class:
    """How often the reference answers a whole number, the artifact does, and both do at the same place."""

    there: int = 0
    called: int = 0
    found: int = 0

    @property
    def share(self) -> float:
        """The lesser of what is found of all that is there, and of what is there beside all that is called so."""
        return min(self.found / self.there, self.there / max(self.called, 1))


@dataclass(slots=True)
class Slices:
    """Collects requests; `gate` judges the worst slice and class, `unproven` names the outputs that showed nothing.

    `batched`: dim 0 are the rows, which `parity` judges itself.
    """

    batched: bool = True
    _along: dict[tuple[str, int], _Along] = field(default_factory=dict)
    #: The one value that all of an output have, as long as there is none other.
    _constant: dict[str, set[object]] = field(default_factory=dict)
    _values: dict[str, int] = field(default_factory=dict)
    #: Of an output by value; None once it has too many for classes.
    _classes: dict[str, dict[int, _Class] | None] = field(default_factory=dict)

    def add(self, got: Tensors, want: Tensors) -> None:
        """One answer beside the reference's. What has other shapes is left to `parity.compare`, which refuses it."""
        for name, reference in want.items():
            self._note(name, reference)
            if name not in got or got[name].shape != reference.shape:
                continue
            if reference.dtype.kind not in WHOLE:
                self._measure(name, got[name].astype(np.float64), reference.astype(np.float64))
            elif reference.dtype.kind in "iub" and reference.size:
                self._count(name, got[name], reference)

    def gate(self, artifact: str, engine: str, limits: Limits) -> None:
        """Raises ParityFailed when a slice is lost, naming the worst of each axis, or a class, naming the worst."""
        limit = BESIDE_ROW * limits.worst_row
        faults, needed = [], 0.0
        for (name, axis), off in self._distances():
            worst = int(off.argmax())
            if off[worst] > limit:
                beyond = int((off > limit).sum())
                needed = max(needed, float(off[worst]) / (BESIDE_ROW * WORST_ROW))
                faults.append(
                    f"output {name!r} at index {worst} of axis {axis} is off by {off[worst]:.2g} of its own size, "
                    f"limit {limit:g}, as {'is' if beyond == 1 else 'are'} {beyond} of its {len(off)} slices"
                )
        for name, value, counts in self._rarest():
            if counts.share < limits.of_class - _ROUNDED:
                needed = max(needed, (1 - counts.share) / WORST_ROW)
                faults.append(
                    f"output {name!r}: of the {counts.there} values that are {value} it finds {counts.found}, and "
                    f"{counts.called} are {value} by it; limit {limits.of_class:.0%} of each value that is there "
                    f"{_ENOUGH_OF_CLASS} times or more"
                )
        if faults:
            raise ParityFailed(
                f"{artifact} on {engine} loses parts of its answer: {'; '.join(faults)}; if that is good enough for "
                f"you, build with {limit_option(artifact, needed)}"
            )

    def worst(self) -> float:
        """How far the worst slice is off, in its own size; 0 where there is none to judge."""
        return max((float(off.max()) for _, off in self._distances()), default=0.0)

    def least_found(self) -> float:
        """Of the class that suffers most the share that is right; 1 where there are no classes."""
        return min((counts.share for _, _, counts in self._rarest()), default=1.0)

    def unproven(self) -> tuple[str, ...]:
        """Outputs that were empty in every answer of the reference, or one and the same value all over."""
        return tuple(
            name
            for name, values in self._values.items()
            if not values or (known := self._constant[name]) == {0} or (len(known) == 1 and values > 1)
        )

    def _distances(self) -> Iterator[tuple[tuple[str, int], np.ndarray]]:
        """Output and axis, and how far each slice is off, in its own size."""
        for key, along in self._along.items():
            if along.values >= _ENOUGH:
                own = along.size
                scale = np.where(own > _NOTHING**2 * max(own.mean(), along.values), own, own.mean())
                yield key, np.sqrt(np.divide(along.error, scale, out=np.zeros_like(scale), where=scale > 0))

    def _rarest(self) -> Iterator[tuple[str, int, _Class]]:
        """Of each output with classes the one that suffers most."""
        for name, classes in self._classes.items():
            judged = [each for each in (classes or {}).items() if each[1].there >= _ENOUGH_OF_CLASS]
            if judged:
                yield name, *min(judged, key=lambda each: each[1].share)

    def _count(self, name: str, answer: np.ndarray, reference: np.ndarray) -> None:
        known = self._classes.setdefault(name, {})
        low = min([int(reference.min()), *(known or ())])
        high = max([int(reference.max()), *(known or ())])
        if known is None or high - low > _APART or high >= 1 << 62:
            self._classes[name] = None
            return
        called = answer[(answer >= low) & (answer <= high)]
        counts = [
            np.bincount(values.astype(np.int64).ravel() - low, minlength=high - low + 1)
            for values in (reference, called, reference[answer == reference])
        ]
        for place in np.flatnonzero(counts[0] | counts[1]).tolist():
            of_class = known.setdefault(low + place, _Class())
            of_class.there += int(counts[0][place])
            of_class.called += int(counts[1][place])
            of_class.found += int(counts[2][place])
        if sum(of_class.there > 0 for of_class in known.values()) > _CLASSES:
            self._classes[name] = None

    def _note(self, name: str, reference: np.ndarray) -> None:
        known = self._constant.setdefault(name, set())
        self._values[name] = self._values.get(name, 0) + reference.size
        if reference.size and len(known) < 2:
            first = reference.reshape(-1)[0]
            known.add(first.item() if isinstance(first, np.generic) and first == first else str(first))
            if not np.all((reference == first) | ((reference != reference) & (first != first))):
                # Any second value will do.
                known |= {object()}

    def _measure(self, name: str, answer: np.ndarray, reference: np.ndarray) -> None:
        special = ~(np.isfinite(answer) & np.isfinite(reference))
        error = np.square(np.where(special, 0.0, answer - reference))
        size = np.square(np.where(special, 0.0, reference))
        for axis in range(1 if self.batched else 0, reference.ndim):
            extent = reference.shape[axis]
            others = tuple(other for other in range(reference.ndim) if other != axis)
            along = self._along.get((name, axis))
            if along is None:
                along = self._along[name, axis] = _Along(np.zeros(extent), np.zeros(extent))
            # A free axis has other slices in each request: the first extent is followed.
            if extent == len(along.error) and extent > 1:
                along.error += error.sum(axis=others)
                along.size += size.sum(axis=others)
                along.values += reference.size // extent


def compare_slices(
    engine: str,
    infer: Callable[[Tensors], Tensors],
    pairs: Iterable[tuple[Tensors, Tensors]],
    limit: float,
    *,
    batched: bool,
) -> tuple[Parity, Slices]:
    """`parity.compare_all`, and what it says of the slices. Raises as that does."""
    slices = Slices(batched)
    wanted: Tensors = {}

    def told() -> Iterator[tuple[Tensors, Tensors]]:
        nonlocal wanted
        for request, answer in pairs:
            wanted = answer
            yield request, answer

    def seen(request: Tensors) -> Tensors:
        answer = infer(request)
        slices.add(answer, wanted)
        return answer

    return compare_all(engine, seen, told(), limit), slices
