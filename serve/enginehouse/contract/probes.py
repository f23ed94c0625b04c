"""Probes: inputs that samples rarely have and engines silently answer otherwise, and the reference's answers to them.

The build makes them and tries them on every artifact. The bundle carries them, so that an engine of other hardware is
tried where it is first loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import orjson

from enginehouse.contract import tensor_file
from enginehouse.contract.bounds import InputBound, Region, Values, narrower
from enginehouse.contract.errors import BundleError, EnginehouseError
from enginehouse.contract.manifest import Artifact, EngineKind
from enginehouse.contract.parity import first_difference, limits_of
from enginehouse.contract.tensors import Tensors

#: Engines of the reference's own library, which refuse what it refuses and compute whole numbers as such.
_REFERENCE = "onnxruntime-"
#: Whether what an engine answers to a request differs from the answer wanted by no more than rounding explains.
IsRounding: TypeAlias = Callable[[Tensors, Tensors, Tensors], bool]
#: Blank rows and numbers of few bits are nowhere near the samples: what is less exact than fp32 may be off by so many
#: times what a row may be.
_UNLIKE_SAMPLES = 2.0


@dataclass(frozen=True, slots=True)
class Probe:
    """One request, which has `values` in the inputs `names`, and the reference's answer; None where it refuses that.

    An engine that answers otherwise is right for these inputs `within` only. A `request` that is None cannot be made,
    for the reason in `values`: then no engine but the reference's own is known to be right beyond `within`. In a probe
    about company the first `beside` rows are the company that has the values, and the answers of the rows after them,
    which are the reference's to each of these alone, are what is compared. `inside`: the samples have smaller and
    larger values than these, and the gate has judged those. `scaled`: samples times one number, which a model may well
    answer to no digit of its own: a difference that rounding explains is none. `every`: int8 is asked as well.
    """

    names: tuple[str, ...]
    within: InputBound
    values: str
    request: Tensors | None
    answer: Tensors | None
    beside: int = 0
    inside: bool = False
    scaled: bool = False
    every: bool = False

    def fault(
        self,
        kind: EngineKind,
        infer: Callable[[Tensors], Tensors],
        artifact: Artifact,
        is_rounding: IsRounding | None = None,
    ) -> str | None:
        """In words, how `infer` differs from the reference; None if it does not, or by what `is_rounding` explains."""
        if self.request is None:
            return None if kind.startswith(_REFERENCE) else f"nothing larger was tried: {self.values}"
        asked = f"with {self.values} in {' and '.join(map(repr, self.names))}"
        asked += " of another row of the batch" if self.beside else ""
        if self.answer is None and not kind.startswith(_REFERENCE):
            # Not asked: OpenVINO answers zeros for an id beyond its table, and other operators write there.
            return f"{asked} the reference refuses the request"
        try:
            got = infer(self.request)
        except EnginehouseError as error:
            return f"{asked} it refuses what the reference answers ({error})" if self.answer is not None else None
        if self.answer is None:
            return f"{asked} it answers what the reference refuses"
        limits = limits_of(artifact.precision, artifact.limit)
        share = dict.fromkeys(self.answer, 0.0 if artifact.precision == "fp32" else limits.differing)
        off = limits.worst_row * (_UNLIKE_SAMPLES if artifact.precision != "fp32" and self._is_unlike else 1)
        got, want = (_from_row(answer, self.beside) for answer in (got, self.answer))
        difference = first_difference(got, want, off, off, share)
        if difference and self.beside:
            # What precision and rounding make of these rows is there without the company too.
            try:
                among_own = _from_row(infer(_without_company(self.request, self.beside)), self.beside)
            except EnginehouseError as error:
                return f"{asked} it answers, and refuses the same without that ({error})"
            difference = first_difference(got, among_own, off, off, share)
        if difference and self.scaled and is_rounding is not None and is_rounding(self.request, got, want):
            return None
        return f"{asked} its {difference}" if difference else None

    def is_asked(self, artifact: Artifact) -> bool:
        """Whether it tells anything of `artifact`: int8 cannot tell apart what is beyond what it was calibrated with.

        Nor can it tell from 0 what is small beside that.
        """
        return artifact.precision != "int8" or self.every or not (self._is_about_range or self.inside)

    def tells(self, bounds: dict[str, InputBound]) -> bool:
        """Whether a fault would narrow `bounds`, and is not that of values which they keep out already."""
        if self.request is not None and (self._is_blank or self._is_faint or len(self.names) == 1):
            # Several inputs that are large together may be wrong where each by itself is right further on.
            looked_at = bounds if self._is_blank else {name: bounds[name] for name in self.names if name in bounds}
            if Values(self.request).beyond(looked_at):
                return False
        return narrower(bounds, dict.fromkeys(self.names, self.within)) != bounds

    @property
    def about(self) -> str:
        """What kind of bound `within` is: of the faults that led to one the last is told."""
        if self._is_blank or not isinstance(self.within, Region):
            return "blank" if self._is_blank else ""
        return ",".join(self.within.plain_parts())

    @property
    def is_sided(self) -> bool:
        """Whether it bounds floats on one side."""
        has_side = isinstance(self.within, Region) and (self.within.at_least, self.within.less_than) != (None, None)
        request = self.request
        return has_side and request is not None and all(request[name].dtype.kind not in "iu" for name in self.names)

    @property
    def _is_blank(self) -> bool:
        return isinstance(self.within, Region) and bool(self.within.not_zero or self.within.not_constant)

    @property
    def _is_faint(self) -> bool:
        return isinstance(self.within, Region) and bool(self.within.not_faint)

    @property
    def _is_unlike(self) -> bool:
        return self._is_blank or all(map(self._is_narrow, self.names))

    @property
    def _is_about_range(self) -> bool:
        """Whether it is about how large measurements may be: floats and numbers of few bits, but not about their sign.

        Of floats the sign counts as well: int8 is calibrated with the samples'. Wider whole numbers are ids.
        """
        if self.request is None or self.beside or self._is_blank or self.within == "finite":
            return False
        if any(self.request[name].dtype.kind not in "iu" for name in self.names):
            return True
        return self.within != Region(at_least=0) and any(map(self._is_narrow, self.names))

    def _is_narrow(self, name: str) -> bool:
        assert self.request is not None
        dtype = self.request[name].dtype
        return dtype.kind in "iu" and dtype.itemsize <= 2


def found(
    kind: EngineKind,
    infer: Callable[[Tensors], Tensors],
    artifact: Artifact,
    probes: Iterable[Probe],
    is_rounding: IsRounding | None = None,
) -> tuple[dict[str, InputBound], tuple[str, ...]]:
    """The bounds of `artifact` on the engine of `infer`, and the faults that led to them, in words."""
    bounds: dict[str, InputBound] = {}
    faults: dict[tuple[tuple[str, ...], str], str] = {}
    for probe in probes:
        if not probe.is_asked(artifact) or not probe.tells(bounds):
            continue
        if fault := probe.fault(kind, infer, artifact, is_rounding):
            bounds = narrower(bounds, dict.fromkeys(probe.names, probe.within))
            faults[probe.names, probe.about] = fault
    return bounds, tuple(dict.fromkeys(faults.values()))


def write(path: Path, probes: Sequence[Probe]) -> None:
    """Write `probes` to `path`, each as three mappings: what it is about, its request, and the answer."""
    tensors: list[Tensors] = []
    for probe in probes:
        about = {
            "names": np.array([name.encode() for name in probe.names], dtype=object),
            # Powers of two and what is below them: exact.
            "within": np.array(probe.within if isinstance(probe.within, int) else 0, np.float64),
            **_region(probe.within),
            "is_inside": np.array(probe.inside),
            "is_scaled": np.array(probe.scaled),
            "is_every": np.array(probe.every),
            "values": np.array([probe.values.encode()], dtype=object),
            "is_made": np.array(probe.request is not None),
            "is_answered": np.array(probe.answer is not None),
            **({"beside": np.array(probe.beside)} if probe.beside else {}),
        }
        tensors += [about, probe.request or {}, probe.answer or {}]
    tensor_file.write(path, tensors)


def read(path: Path) -> list[Probe]:
    """What `write` wrote. Raises BundleError."""
    tensors = tensor_file.read(path)
    try:
        return [
            Probe(
                names=tuple(name.decode() for name in about["names"]),
                within=_within(about),
                values=about["values"][0].decode(),
                request=request if about["is_made"] else None,
                answer=answer if about["is_answered"] else None,
                beside=int(about["beside"]) if "beside" in about else 0,
                inside=bool(about.get("is_inside", False)),
                scaled=bool(about.get("is_scaled", False)),
                every=bool(about.get("is_every", False)),
            )
            for about, request, answer in zip(tensors[::3], tensors[1::3], tensors[2::3], strict=True)
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise BundleError(f"{path} holds no probes: {type(error).__name__}: {error}") from None


def _region(within: InputBound) -> Tensors:
    """Beside the number of a plain bound what only a region says, as JSON."""
    if not isinstance(within, Region):
        return {}
    return {"region": np.array([orjson.dumps(within.plain_parts())], dtype=object)}


def _within(about: Tensors) -> InputBound:
    if "region" not in about:
        return int(about["within"]) or "finite"
    parts = orjson.loads(about["region"][0])
    for name in ("not_zero", "not_constant"):
        parts[name] = tuple(map(tuple, parts.get(name, ())))
    parts["not_faint"] = tuple((tuple(axes), exponent) for axes, exponent in parts.get("not_faint", ()))
    return Region(**parts)


def kept(probes: Sequence[Probe], most_bytes: int) -> list[Probe]:
    """Of `probes` those that a bundle carries along: in order, the whole of them at most so many bytes."""
    chosen, total = [], 0
    for probe in probes:
        size = sum(array.nbytes for part in (probe.request, probe.answer) if part for array in part.values())
        if total + size <= most_bytes:
            chosen.append(probe)
            total += size
    return chosen


def _from_row(answer: Tensors, row: int) -> Tensors:
    return {name: array[row:] for name, array in answer.items()} if row else answer


def _without_company(request: Tensors, rows: int) -> Tensors:
    """`request` with the row after them in the place of the first `rows`."""
    places = [*[rows] * rows, *range(rows, len(next(iter(request.values()))))]
    return {name: np.take(array, places, axis=0) for name, array in request.items()}
