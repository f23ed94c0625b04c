"""Padding: rows of several lengths in one engine call, made equally long, and their outputs cut back.

1. Only what the build has proven is padded (`contract.signature_record.Padding`): nothing here decides that.
2. A request is as long as its padded inputs are. One that the proof does not cover, because its mask has other values,
   marks nothing in some row or is of a kind that was not proven, because some input has larger or smaller values than
   were, or because it is too long, has no *edge* and shares calls with requests of its very shape only.
3. Requests of one edge share a call as those of one shape do. One of another edge joins them if the padded call is
   predicted to take less time than the two calls would.
4. How many rows make a good call was measured for rows of the usual length. Of shorter ones a call may have more: as
   many as have no more positions together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, get_args

import numpy as np

from enginehouse.contract.latency import LatencyTable
from enginehouse.contract.manifest import Artifact, EngineKind, Manifest
from enginehouse.contract.signature_record import MaskKind, PaddedInput, Padding
from enginehouse.contract.tensors import Tensors

#: Where times are not known a call costs as much as so many more positions, and each row what it is long.
CALL = 32

#: Of these it does not matter which one a mask is of.
_ALL_MASKS: tuple[MaskKind, ...] = get_args(MaskKind)

#: Milliseconds, or what goes with them, of a call with so many rows of such a length.
Cost = Callable[[int, int], float]


class Place(NamedTuple):
    """With whom a request may share a call: those of the same `shape`, padded to the longest `edge` of them.

    Without an edge (0) nothing is padded, and the shape is the whole of it.
    """

    shape: Hashable
    edge: int = 0


class Padder:
    """Pads as `padding` says; `cost` predicts the time of a call. Used from several threads.

    A call never has more than `max_rows` rows; rows of the length `usual` have as many as its callers say.
    """

    def __init__(self, padding: Padding, cost: Cost | None = None, max_rows: int = 1, usual: int = 1) -> None:
        self.padding = padding
        #: Whether callers say for rows of any length how many a call may have.
        self.is_limited = False
        self._max_rows = max_rows
        self._usual = usual
        self._dims = {each.name: each.dim for each in padding.inputs}
        self._first = padding.inputs[0]
        self._cost = cost or _by_positions
        self._known: dict[tuple[int, int], float] = {}
        self._masks = frozenset(padding.masks)

    @classmethod
    def of(
        cls, manifest: Manifest, artifact: Artifact, kind: EngineKind, table: LatencyTable | None = None
    ) -> Padder | None:
        """That of an artifact on an engine of this kind; None where nothing is proven, or nothing is shared."""
        padding = artifact.padding.get(kind)
        if padding is None or padding.within is None or not manifest.signature.batched:
            return None
        place = padding.inputs[0].name, padding.inputs[0].dim
        axis = next((axis for axis in manifest.axes if place in axis.dims), None)
        # Times that did not settle may have two rows cost less than one, and the shortest padded to the longest.
        is_known = table is not None and table.sizes and table.verdict == "VALID" and axis is manifest.axes[0]
        cost = table.predict_ms if table and is_known else None
        return cls(padding, cost, manifest.max_batch, axis.opt if axis else 1)

    def most_rows(self, rows: int, length: int = 1) -> int:
        """How many rows of such a length a call may have, if `rows` of the usual length are as many as are good."""
        if self.is_limited or length >= self._usual:
            return rows
        return max(rows, min(self._max_rows, rows * self._usual // length))

    def place(self, request: Tensors) -> Place:
        """Where a request, which has passed the door, belongs."""
        edges = self.padding.edges
        at = bisect_left(edges, self.length(request))
        if at == len(edges) or not self.covers(request):
            return Place(_shape(request, {}))
        return Place(_shape(request, self._dims), edges[at])

    def covers(self, request: Tensors) -> bool:
        """Whether a request has only masks and values with which padding was proven to change nothing."""
        within = self.padding.within
        if within is None or not all(_is_within(request[name], *ends) for name, ends in within.items()):
            return False
        return all(self._is_told(each, request[each.name]) for each in self.padding.inputs if each.tells)

    def _is_told(self, padded: PaddedInput, array: np.ndarray) -> bool:
        """Whether each row marks something, with a mask of a kind that was proven."""
        if padded.mark is None:
            counts = array != padded.value
        else:
            counts = array == padded.mark
            if not (counts | (array == padded.value)).all():
                return False
        if not counts.reshape(len(counts), -1).any(axis=1).all():
            return False
        return len(self._masks) == len(_ALL_MASKS) or self._masks.issuperset(_kinds(padded, counts))

    def kinds(self, request: Tensors) -> set[MaskKind]:
        """Of which kinds the masks in the rows of `request` are."""
        found: set[MaskKind] = set()
        for each in self.padding.inputs:
            if each.tells:
                array = request[each.name]
                found |= _kinds(each, array != each.value if each.mark is None else array == each.mark)
        return found

    def length(self, request: Tensors) -> int:
        """How long the rows of a request are."""
        return int(request[self._first.name].shape[self._first.dim])

    def joined(self, requests: Sequence[Tensors], edge: int = 0) -> Tensors:
        """Requests of one shape, joined along dim 0 and made as long as the longest of their edges, or as `edge`.

        Without an `edge` those of one length are left as long as they are, and a single one is not copied.
        """
        lengths = [self.length(request) for request in requests]
        longest = max(lengths)
        if not edge:
            if min(lengths) == longest:
                if len(requests) == 1:
                    return requests[0]
                edge = longest
            else:
                edge = self.padding.edges[bisect_left(self.padding.edges, longest)]
        values = {each.name: each.value for each in self.padding.inputs}
        return {
            name: self._filled(name, [request[name] for request in requests], edge, values[name])
            if name in values
            else np.concatenate([request[name] for request in requests])
            for name in requests[0]
        }

    def _filled(self, name: str, arrays: Sequence[np.ndarray], edge: int, value: int | float) -> np.ndarray:
        dim, first = self._dims[name], arrays[0]
        shape = list(first.shape)
        shape[0], shape[dim] = sum(len(array) for array in arrays), edge
        filled = np.full(shape, value, first.dtype)
        at = 0
        for array in arrays:
            where = [slice(None)] * first.ndim
            where[0], where[dim] = slice(at, at + len(array)), slice(array.shape[dim])
            filled[tuple(where)] = array
            at += len(array)
        return filled

    def cut(self, outputs: Tensors, length: int) -> dict[str, np.ndarray]:
        """Outputs of rows that were `length` long before they were padded."""
        found = dict(outputs)
        for name, dim in self.padding.outputs:
            array = found[name]
            if array.shape[dim] != length:
                found[name] = np.ascontiguousarray(array[(slice(None),) * dim + (slice(length),)])
        return found

    def companions(self, first: tuple[int, int], others: Sequence[tuple[int, int]], most: int) -> list[int]:
        """Places among `others` of those that go with `first`; all are (rows, edge), in the order of their turn.

        Those of its own edge first, in order and as many as fit (`most_rows`; `most` of the usual length do). Then,
        one by one, whichever of the nearest shorter and the nearest longer ones saves more time, until none does.
        """
        rows, edge = first
        waiting = Counter({edge: rows})
        for count, own in others:
            waiting[own] += count
        order = sorted(range(len(others)), key=lambda at: (abs(others[at][1] - edge), at))
        equal = [at for at in order if others[at][1] == edge]
        below = [at for at in order if others[at][1] < edge]
        above = [at for at in order if others[at][1] > edge]
        chosen: list[int] = []
        for at in equal:
            # None of its like overtakes one that is too large to fit.
            if rows + others[at][0] > self.most_rows(most, edge):
                return chosen
            chosen.append(at)
            rows += others[at][0]
        while below or above:
            best, gain = None, 0.0
            for side in (below, above):
                if not side:
                    continue
                count, own = others[side[0]]
                # Apart it would be computed among its like.
                alike = min(self.most_rows(most, own), waiting[own])
                apart = self._ms(max(alike, count), own) / max(alike, count) * count
                saved = self._ms(rows, edge) + apart - self._ms(rows + count, max(edge, own))
                if rows + count <= self.most_rows(most, max(edge, own)) and saved > gain:
                    best, gain = side, saved
            if best is None:
                break
            at = best.pop(0)
            chosen.append(at)
            rows, edge = rows + others[at][0], max(edge, others[at][1])
        return chosen

    def _ms(self, rows: int, length: int) -> float:
        known = self._known.get((rows, length))
        if known is None:
            known = self._known[rows, length] = self._cost(rows, length)
        return known


def _by_positions(rows: int, length: int) -> float:
    return float(CALL + rows * length)


def _shape(request: Tensors, dims: dict[str, int]) -> Hashable:
    """What has to be equal to share a call: the shape of a row in each input, without the padded dimensions."""
    found = []
    for name, array in sorted(request.items()):
        shape = array.shape[1:]
        if (dim := dims.get(name)) is not None:
            shape = (*shape[: dim - 1], -1, *shape[dim:])
        found.append((name, shape, array.dtype.kind))
    return tuple(found)


def _is_within(array: np.ndarray, low: float, high: float) -> bool:
    """Whether all is from `low` to `high`; NaN is not."""
    if not array.size:
        return False
    if array.dtype.kind not in "iub" and array.dtype.itemsize == 2:
        # Reducing 16-bit floats as such takes many times as long.
        array = array.astype(np.float32)
    lowest, highest = np.minimum.reduce(array, axis=None), np.maximum.reduce(array, axis=None)
    return bool(lowest >= low and highest <= high)


def _kinds(padded: PaddedInput, counts: np.ndarray) -> set[MaskKind]:
    """Of which kinds rows are, of which those positions count that `counts` says."""
    others = tuple(axis for axis in range(1, counts.ndim) if axis != padded.dim)
    places = np.asarray(counts.any(axis=others)) if others else counts
    # Where one counts and the one before it does not.
    rises = places[:, 1:] > places[:, :-1]
    found: set[MaskKind] = set()
    if not rises.any():
        found.add("start")
    else:
        begins = rises.any(axis=1)
        ends = (places[:, :-1] > places[:, 1:]).any(axis=1)
        if not begins.all():
            found.add("start")
        if (begins & ~ends).any():
            found.add("end")
        if (begins & ends).any():
            found.add("holes")
    if others and not (counts == np.expand_dims(places, others)).all():
        # Not one answer for a position: nowhere is that called contiguous.
        found.add("holes")
    return found
