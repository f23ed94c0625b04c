"""What requests bring and samples leave out: other company, other extents, other ids, larger numbers.

Nobody has recorded answers to that; the reference file in ONNX Runtime gives them. What it refuses says nothing, and
what the artifact refuses is not silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from enginehouse.contract.errors import EnginehouseError, ParityFailed
from enginehouse.contract.manifest import Artifact, Manifest
from enginehouse.contract.parity import Limits
from enginehouse.contract.tensors import Signature, Tensors, TensorSpec
from enginehouse_build.inputs.samples import resized, take
from enginehouse_build.judge.probes import takes_large_numbers
from enginehouse_build.judge.rounding import Rounding
from enginehouse_build.reference.proof import companies, joined, near, picked

Run = Callable[[Tensors], Tensors]

SEED = 0
#: Rows that are asked between made-up ones.
_IN_COMPANY = 3
#: Requests that ids are spread over: tables may have more rows than fit.
_REQUESTS_OF_IDS = 4
#: How much larger than the samples floats may be in requests that nobody would call absurd.
_LOUDER = 8.0
#: Whole numbers beyond this are for `probes` to look at.
_LARGEST_WHOLE = 24


@dataclass(frozen=True, slots=True)
class Beyond:
    """Asks an artifact's `infer` what samples leave out, and `right`, the reference in the ONNX file `model`, the same.

    `check` raises ParityFailed saying what was asked, which output and row differed, and what to do about it.
    """

    artifact: Artifact
    manifest: Manifest
    infer: Run
    right: Run
    model: Path
    samples: Tensors
    limits: Limits
    rounding: Rounding

    def check(self) -> None:
        """Look at all that there is; only fp32 promises to answer values that samples and calibration never had."""
        if self._signature.batched and self.manifest.max_batch > 1:
            self._company()
        for what, request, remedy in self._extents():
            self._same(what, request, remedy)
        if self.artifact.precision != "int8":
            for what, request in self._ids():
                self._same(what, request)
        if self.artifact.precision == "fp32":
            for what, request in self._large():
                self._same(what, request)

    def _same(self, what: str, request: Tensors, remedy: str = "") -> None:
        try:
            want = self.right(request)
        except Exception:
            # ONNX Runtime raises classes of its own.
            return
        try:
            got = self.infer(request)
        except EnginehouseError:
            return
        self._equal(what, got, want, request, remedy)

    def _equal(self, what: str, got: Tensors, want: Tensors, request: Tensors, remedy: str) -> None:
        fault = self.rounding.difference(got, want, request, self.limits)
        if fault is not None:
            raise ParityFailed(f"{self.artifact.name} answers otherwise than the reference {what}: {fault}{remedy}")

    def _company(self) -> None:
        """Each row alone, then with others around it: the artifact against itself, whatever its precision."""
        rows = picked(self.samples)
        alone = [self.infer(row) for row in rows]
        most = self.manifest.max_batch
        groups: list[tuple[str, list[Tensors], list[int]]] = []
        for start in range(0, len(rows), most):
            order = list(reversed(range(len(rows))))[start : start + most]
            groups.append(("beside other samples", [], order))
        for at, (what, front, back) in enumerate(companies(rows[0], self.samples)):
            count = min(_IN_COMPANY, max(most - 2, 1))
            chosen = [(len(rows) - 1 - at - step) % len(rows) for step in range(count)]
            groups.append((what, [front] if most == 2 else [front, back], chosen))
        for what, strangers, chosen in groups:
            own = [rows[row] for row in chosen]
            batch = joined([*strangers[:1], *own, *strangers[1:]])
            try:
                got = self.infer(batch)
            except EnginehouseError:
                continue
            before = len(strangers[:1])
            within = {name: array[before : before + len(chosen)] for name, array in got.items()}
            fault = self.rounding.difference(within, joined([alone[row] for row in chosen]), joined(own), self.limits)
            if fault is not None:
                raise ParityFailed(
                    f"{self.artifact.name} answers a row that shares its batch otherwise than alone: {what}, {fault}; "
                    "requests of strangers share a batch"
                )

    def _extents(self) -> Iterator[tuple[str, Tensors, str]]:
        """Extents beside those of the samples, odd ones among them, as far as requests may have them."""
        ranges = {free.name: free.range for free in self._signature.free if free.range}
        few = self._rows(2)
        for axis in self.manifest.axes:
            low, high = ranges.get(axis.name, (1, 2 * axis.opt + 1))
            remedy = "" if axis.name in ranges else f"; --axis {axis.name}=MIN:OPT:MAX limits requests to what is right"
            for size in sorted({*near(axis.opt), low + 1, high - 1}):
                if low <= size <= high:
                    yield f"at {axis.name} = {size}", resized(few, axis, size), remedy

    @property
    def _signature(self) -> Signature:
        return self.manifest.request_signature()

    def _rows(self, most: int) -> Tensors:
        if not self._signature.batched:
            return self.samples
        return take(self.samples, 0, min(most, self.manifest.max_batch))

    def _ids(self) -> Iterator[tuple[str, Tensors]]:
        """Ids of the whole table, the first and last ones in any case; also those that count from its end."""
        request = self._rows(self.manifest.max_batch)
        specs = [spec for spec in self._signature.inputs if spec.domain is not None]
        generator = np.random.default_rng(SEED)
        for low in (True, False) if specs else ():
            orders = {spec.name: _order(spec, generator, from_end=low) for spec in specs}
            for part in range(_REQUESTS_OF_IDS):
                ids = {name: _slice_of(order, request[name], part) for name, order in orders.items()}
                what = f"for ids all over the table of {', '.join(repr(name) for name in ids)}"
                yield what, {**request, **ids}

    def _large(self) -> Iterator[tuple[str, Tensors]]:
        request = self._rows(self.manifest.max_batch)
        floats = {name: array for name, array in request.items() if array.dtype.kind == "f"}
        for sign in (1, -1) if floats else ():
            louder = {name: (array * array.dtype.type(sign * _LOUDER)) for name, array in floats.items()}
            yield f"for samples {sign * _LOUDER:g} times as large", {**request, **louder}
        generator = np.random.default_rng(SEED)
        whole = {
            spec.name: _spread(spec, request[spec.name], generator)
            for spec in self._signature.inputs
            if spec.dtype.kind in "iu" and spec.domain is None
        }
        if whole and takes_large_numbers(onnx.load(self.model, load_external_data=False)):
            yield "for whole numbers of all sizes below 2^24", {**request, **whole}


def _order(spec: TensorSpec, generator: np.random.Generator, *, from_end: bool) -> np.ndarray:
    assert spec.domain is not None
    low, high = (spec.domain.low, 0) if from_end else (0, spec.domain.high)
    ends = [low, high - 1]
    return np.concatenate([ends, generator.permutation(np.arange(low + 1, max(high - 1, low + 1)))])


def _slice_of(order: np.ndarray, like: np.ndarray, part: int) -> np.ndarray:
    at = (part * like.size + np.arange(like.size)) % len(order)
    return np.asarray(order[at].reshape(like.shape).astype(like.dtype))


def _spread(spec: TensorSpec, like: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    bits = min(_LARGEST_WHOLE, np.iinfo(spec.dtype).bits - (spec.dtype.kind == "i"))
    values = np.floor(2 ** generator.uniform(0, bits, like.shape)).astype(np.int64)
    return np.minimum(values, np.iinfo(spec.dtype).max).astype(like.dtype)
