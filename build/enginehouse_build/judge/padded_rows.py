"""Rows of any length, made of samples and of all that requests may hold, with masks of every kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from enginehouse.contract.manifest import Axis
from enginehouse.contract.signature_record import PaddedInput
from enginehouse.contract.tensors import Domain, Signature, Tensors
from enginehouse_build.inputs.extents import resized
from enginehouse_build.inputs.samples import take
from enginehouse_build.judge.padded_answers import Member

#: Rows of each length: so many kinds of masks there are.
KINDS = 8
SEED = 0


class Rows:
    """Rows of any length, made of samples and of all that requests may hold."""

    def __init__(
        self, signature: Signature, axes: Sequence[Axis], samples: Tensors, axis: Axis, padded: Sequence[PaddedInput]
    ) -> None:
        self._axes = axes
        self._axis = axis
        self._samples = samples
        self._padded = padded
        self._domains = {spec.name: spec.domain for spec in signature.inputs if spec.domain is not None}
        self._count = min(len(array) for array in samples.values())
        self._known: dict[int, list[dict[str, np.ndarray]]] = {}

    def of(self, length: int) -> list[dict[str, np.ndarray]]:
        """One of each kind, always the same ones; each has something that counts."""
        if length not in self._known:
            generator = np.random.default_rng((SEED, length))
            self._known[length] = [self._row(length, kind, generator) for kind in range(KINDS)]
        return self._known[length]

    def _row(self, length: int, kind: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        at = (length * KINDS + kind) % self._count
        row = dict(resized(take(self._samples, at, 1), self._axis, length, self._axes))
        for each in self._padded:
            array = row[each.name]
            if each.tells and each.mark is not None:
                row[each.name] = _mask(kind, each, array, generator)
            elif kind % 2:
                row[each.name] = self._any(each.name, array, generator)
            elif not kind and (others := self._samples[each.name] != each.value).any():
                # Nowhere in it is what it is padded with.
                other = generator.choice(self._samples[each.name][others], array.shape)
                row[each.name] = np.where(array == each.value, other, array)
            if each.tells and each.mark is None and (row[each.name] == each.value).all():
                # Nothing that counts: such a row is never padded.
                values = self._samples[each.name]
                row[each.name] = np.full_like(array, values[values != each.value].flat[0])
        return row

    def _any(self, name: str, array: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        domain: Domain | None = self._domains.get(name)
        if domain is not None:
            return generator.integers(domain.low, domain.high, array.shape).astype(array.dtype)
        return generator.choice(self._samples[name].ravel(), array.shape)


def _mask(kind: int, each: PaddedInput, own: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """All that count; as in the samples; some, the first, the last, or one alone."""
    assert each.mark is not None
    length = own.shape[each.dim]
    where = np.arange(length)
    part, alone = (int(number) for number in generator.integers((1, 0), (max(length, 2), length)))
    some = generator.random(length) < 0.5
    mask = own.copy()
    if kind != 1:
        counts: np.ndarray = np.stack([where >= 0, some, where < part, where >= length - part, where == alone])[
            min(max(kind - 1, 0), 4)
        ]
        shape = [1] * own.ndim
        shape[each.dim] = length
        mask[...] = np.where(counts.reshape(shape), each.mark, each.value)
    if not (mask == each.mark).any():
        mask[(0,) * mask.ndim] = each.mark
    return mask


def members(rows: Rows, low: int, before: int, edge: int, few: bool) -> list[Member]:
    """What is padded to `edge`, the last one `before` being another: of the shortest length every kind."""
    counts = [(low, 2 * KINDS), (low + (edge - low) // 3, 3), (edge // 2, 4), (before, 1), (edge - 1, 2), (edge, 1)]
    if few:
        counts = [(low, 2), (edge // 2, 2), (edge - 1, 1)]
    most = {length: max(count for other, count in counts if other == length) for length, _ in counts}
    found: list[Member] = []
    for length, count in most.items():
        if low <= length <= edge:
            # The last kinds are the ones with one position that counts, which tell most.
            kinds = [KINDS - 1 - at if at < count // 2 else (edge // 4 + at) % KINDS for at in range(count)]
            found += [(length, kind, rows.of(length)[kind]) for kind in dict.fromkeys(kinds)]
    return found
