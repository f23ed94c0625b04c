"""Parity: how far the answers of an engine are from the fp32 reference's, and how far they may be.

The build checks every artifact that runs on its machine; an engine made for other hardware is checked where it is first
loaded, on the requests and answers that its bundle carries along.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from enginehouse.contract.errors import ParityFailed
from enginehouse.contract.manifest import Parity, Precision
from enginehouse.contract.tensors import Tensors

_TINY = 1e-30
#: Scores are equal that differ by so much of the largest of their row: a few roundings of fp32.
_TIE = 1e-6
#: Kinds of dtypes that are right or wrong and nothing between: text, whole numbers, truth values.
WHOLE = "OSUiub"
#: What is said of an output that is not finite anywhere, of which no distance can be given.
NOTHING_FINITE = "no finite value to compare"


@dataclass(frozen=True, slots=True)
class Limits:
    """What passes; see `manifest.Parity` for the figures. `top1_agreement` counts from 20 rows on.

    `of_class` is the share of each class in an output of classes that has to be found, and of what is called by its
    name that has to be it (see `contract.slices`); in fp32 the build compares each value, up to what rounding decides.
    """

    relative_l2: float
    worst_row: float
    cosine: float
    top1_agreement: float
    differing: float
    of_class: float = 0.0


#: By precision. Measured on the digits CNN: relative L2 of fp16 5e-4, bf16 6e-3, int8 1e-2. Whole numbers that differ
#: are mostly indices of nearly equal scores.
LIMITS: Mapping[Precision, Limits] = {
    "fp32": Limits(1e-4, 1e-3, 0.9999, 0.99, 1e-3),
    "fp16": Limits(5e-3, 5e-2, 0.999, 0.98, 0.02, 0.75),
    "bf16": Limits(2e-2, 0.1, 0.995, 0.95, 0.05, 0.75),
    "int8": Limits(5e-2, 0.3, 0.95, 0.9, 0.2, 0.5),
}
#: With fewer rows than this one flipped answer says nothing about a rate.
ROWS_FOR_TOP1 = 20
#: A row may be off by so many times what all may be together, where a user has set that limit.
WORST_ROW = 6


def limits_of(precision: Precision, relative_l2: float | None = None) -> Limits:
    """The gate of a precision; a wider relative L2 of the user's own widens the other figures with it.

    What passes with one limit passes with every wider one.
    """
    limits = LIMITS[precision]
    if relative_l2 is None:
        return limits
    if relative_l2 <= limits.relative_l2:
        return replace(limits, relative_l2=relative_l2)
    worst = max(limits.worst_row, WORST_ROW * relative_l2)
    of_class = min(limits.of_class, max(1 - WORST_ROW * relative_l2, 0))
    return replace(
        limits, relative_l2=relative_l2, worst_row=worst, cosine=min(limits.cosine, 1 - worst**2), of_class=of_class
    )


@dataclass(frozen=True, slots=True)
class Figures:
    """How far one answer is from the reference; worst case over its outputs, `output` being the worst one.

    See `manifest.Parity` for the meaning of each figure. `top1` counts rows that agree and rows compared,
    where an output has classes along its last axis.
    """

    output: str
    relative_l2: float = 0.0
    worst_row: float = 0.0
    cosine: float = 1.0
    top1: tuple[int, int] | None = None
    differing: float = 0.0


@dataclass(slots=True)
class Comparison:
    """Collects the figures of many requests; `parity` sums them up as the worst of each."""

    figures: list[Figures] = field(default_factory=list)
    rows: set[int] = field(default_factory=set)

    def add(self, got: Tensors, want: Tensors, rows: int) -> None:
        """Compare one answer. Raises ParityFailed where no distance can be given; see `compare`."""
        self.figures.append(compare(got, want))
        self.rows.add(rows)

    def parity(self, engine: str, limit: float) -> Parity:
        """The record for the manifest."""
        worst = max(self.figures, key=lambda figures: figures.relative_l2)
        counts = [figures.top1 for figures in self.figures if figures.top1 is not None]
        agreeing, compared = sum(count[0] for count in counts), sum(count[1] for count in counts)
        return Parity(
            engine=engine,
            rows=tuple(sorted(self.rows)),
            output=worst.output,
            relative_l2=worst.relative_l2,
            worst_row=max(figures.worst_row for figures in self.figures),
            cosine=min(figures.cosine for figures in self.figures),
            top1_agreement=agreeing / compared if compared else None,
            top1_rows=compared,
            differing=max(figures.differing for figures in self.figures),
            limit=limit,
        )


def compare_all(
    engine: str, infer: Callable[[Tensors], Tensors], pairs: Iterable[tuple[Tensors, Tensors]], limit: float
) -> Parity:
    """Run `infer` on every request of `pairs` (request, the reference's answer) and return the worst figures.

    Raises what `infer` raises, and ParityFailed when answers have other shapes or are not finite where the reference
    is. Whether the figures pass is for `gate` to say.
    """
    comparison = Comparison()
    for request, answer in pairs:
        first = next(iter(request.values()))
        comparison.add(infer(request), answer, first.shape[0] if first.ndim else 1)
    return comparison.parity(engine, limit)


def gate(artifact: str, limits: Limits, parity: Parity) -> None:
    """Raises ParityFailed naming every figure past its limit, and the options of the build that widen them."""
    faults: list[str] = []
    options: list[str] = []
    needed = 0.0
    if parity.relative_l2 > limits.relative_l2:
        faults.append(
            f"relative L2 {parity.relative_l2:.2e} of output {parity.output!r}, limit {limits.relative_l2:.0e}"
        )
        needed = parity.relative_l2
    if parity.worst_row > limits.worst_row:
        faults.append(f"worst row {parity.worst_row:.2e}, limit {limits.worst_row:.0e}")
        needed = max(needed, parity.worst_row / WORST_ROW)
    if parity.cosine < limits.cosine:
        faults.append(f"cosine {parity.cosine:.6f}, limit {limits.cosine:g}")
        needed = max(needed, (1 - parity.cosine) ** 0.5 / WORST_ROW)
    if needed:
        options.append(limit_option(artifact, needed))
    loosened = len(faults)
    top1 = parity.top1_agreement
    if top1 is not None and parity.top1_rows >= ROWS_FOR_TOP1 and top1 < limits.top1_agreement:
        faults.append(f"top-1 agreement {top1:.1%}, limit {limits.top1_agreement:.0%}")
    if parity.differing > limits.differing:
        faults.append(f"{parity.differing:.1%} of the whole numbers differ, limit {limits.differing:.1%}")
    metric = parity.metric
    if metric is not None and metric.drop > metric.max_drop + 1e-12:
        faults.append(
            f"{metric.name} {metric.value:.4f} instead of {metric.reference:.4f} on {metric.rows} rows, "
            f"a drop of {metric.drop:.4f} with {metric.max_drop:g} allowed"
        )
        loosened += 1
        options.append(f"--max-drop {_rounded_up(metric.drop):g}")
    if faults:
        # Where something is wrong that no option lets pass, naming one would promise too much.
        helps = loosened == len(faults)
        way_out = f"; if that is good enough for you, build with {' '.join(options)}" if helps else ""
        raise ParityFailed(
            f"{artifact} on {parity.engine} is too far from the fp32 reference: {'; '.join(faults)}{way_out}"
        )


def limit_option(artifact: str, needed: float) -> str:
    """The option of the build with which a relative L2 of `needed` passes the gate of this artifact's precision."""
    return f"--limit {artifact.rpartition('-')[2]}={_rounded_up(needed):g}"


def _rounded_up(value: float) -> float:
    """`value` or a little more, in two digits."""
    if not 0 < value < math.inf:
        return value
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / step * (1 - 1e-9)) * step


def compare(got: Tensors, want: Tensors) -> Figures:
    """Figures of `got` against `want`, both by output name with dim 0 as rows.

    NaN equals NaN and an infinity itself. Raises ParityFailed for missing outputs, other shapes, and values that are
    not finite on one side only, because no distance says anything then.
    """
    results = [_compare_output(name, got, array) for name, array in want.items()]
    counts = [figures.top1 for figures in results if figures.top1 is not None]
    worst = max(results, key=lambda figures: figures.relative_l2)
    return Figures(
        output=worst.output,
        relative_l2=worst.relative_l2,
        worst_row=max(figures.worst_row for figures in results),
        cosine=min(figures.cosine for figures in results),
        top1=min(counts, key=lambda count: count[0] / count[1]) if counts else None,
        differing=max(figures.differing for figures in results),
    )


def first_difference(
    got: Tensors, want: Tensors, limit: float, per_row: float, undecided: Mapping[str, float] | None = None
) -> str | None:
    """In words, the first output and row in which `got` is another answer than `want`; None when there is none.

    The comparison of proofs, and of gates that ask whether two answers are the same and not whether one is good enough:
    every row of every output counts, whole numbers and text exactly, and what is not finite has to be so in the same
    places. Floats may differ by `limit` (relative L2) in an output and by `per_row` in any row of it. `undecided` is
    the share of whole numbers, by output, that rounding alone decides: as many may differ.
    """
    for name, array in want.items():
        if fault := _difference(name, got, array, limit, per_row, (undecided or {}).get(name, 0.0)):
            return f"output {name!r} {fault}"
    return None


def _difference(
    name: str, got: Tensors, want: np.ndarray, limit: float, per_row: float, undecided: float
) -> str | None:
    answer = got.get(name)
    if answer is None:
        return f"is missing; there are {', '.join(got) or 'none'}"
    if answer.shape != want.shape or answer.dtype.kind != want.dtype.kind:
        there, wanted = (f"{list(array.shape)} ({array.dtype})" for array in (answer, want))
        return f"has shape {there} instead of {wanted}"
    if not want.size:
        return None
    rows = len(want) if want.ndim else 1
    one, other = answer.reshape(rows, -1), want.reshape(rows, -1)
    if want.dtype.kind in WHOLE:
        wrong = np.asarray(one != other, dtype=bool)
        return _first(wrong, one, other, "") if wrong.mean() > undecided else None
    one, other = one.astype(np.float64), other.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    special = ~(np.isfinite(one) & np.isfinite(other))
    if (wrong := special & ~same).any():
        return _first(wrong, one, other, ", and is not finite on one side only")
    one, other = (np.where(special, 0, array) for array in (one, other))
    errors, lengths = np.linalg.norm(one - other, axis=1), np.linalg.norm(other, axis=1)
    norm = float(np.linalg.norm(lengths))
    # A row near zero is measured on the others: cancellation leaves nothing of it but rounding.
    distances = errors / np.maximum(np.maximum(lengths, 1e-2 * norm / rows**0.5), _TINY)
    total = float(np.linalg.norm(errors)) / max(norm, _TINY)
    row = int(np.argmax(distances))
    if total <= limit and distances[row] <= per_row:
        return None
    return (
        f"differs by {total:.2e} (relative L2, allowed {limit:.0e}), most in row {row}: by {distances[row]:.2e} "
        f"(allowed {per_row:.0e})"
    )


def _first(wrong: np.ndarray, answer: np.ndarray, reference: np.ndarray, more: str) -> str:
    row, at = (int(index) for index in np.argwhere(wrong)[0])
    rows = int(wrong.any(axis=1).sum())
    return (
        f"differs in {rows} of {len(wrong)} rows and {wrong.mean():.1%} of its values, first in row {row}: "
        f"{answer[row, at]!s} instead of {reference[row, at]!s} at place {at}{more}"
    )


def _compare_output(name: str, got: Tensors, want: np.ndarray) -> Figures:
    if name not in got:
        raise ParityFailed(f"output {name!r} is missing; there are {', '.join(got) or 'none'}")
    if got[name].shape != want.shape:
        raise ParityFailed(f"output {name!r} has shape {list(got[name].shape)}, the reference {list(want.shape)}")
    if want.size == 0:
        return Figures(name)
    if want.dtype.kind in WHOLE:
        return _whole_values(name, got[name], want)
    answer, reference = got[name].astype(np.float64), want.astype(np.float64)
    special = ~np.isfinite(reference) | ~np.isfinite(answer)
    if not np.array_equal(answer[special], reference[special], equal_nan=True):
        where = np.argwhere(special & ~((answer == reference) | (np.isnan(answer) & np.isnan(reference))))
        at = tuple(int(index) for index in where[0])
        raise ParityFailed(
            f"output {name!r}: {len(where)} of {answer.size} values are not finite on one side only, first at "
            f"{list(at)}: {answer[at]} instead of {reference[at]}"
        )
    if special.size and special.all():
        raise ParityFailed(f"output {name!r}: {NOTHING_FINITE} in {special.size}; are the samples right?")
    answer, reference = np.where(special, 0.0, answer), np.where(special, 0.0, reference)
    rows = want.shape[0] if want.ndim else 1
    return _distance(name, answer.reshape(rows, -1), reference.reshape(rows, -1), _top1(answer, reference))


def _distance(name: str, answer: np.ndarray, reference: np.ndarray, top1: tuple[int, int] | None) -> Figures:
    norm = float(np.linalg.norm(reference))
    error = np.linalg.norm(answer - reference, axis=1)
    lengths = np.linalg.norm(reference, axis=1)
    # A row of (nearly) zeros has no scale of its own: it is measured on that of an average row.
    scale = np.where(lengths > 1e-6 * norm, lengths, norm / max(len(lengths), 1) ** 0.5)
    dots = np.sum(answer * reference, axis=1)
    cosines = np.divide(
        dots,
        np.linalg.norm(answer, axis=1) * lengths,
        out=np.where(error <= _TINY, 1.0, 0.0),
        where=(lengths > _TINY) & (np.linalg.norm(answer, axis=1) > _TINY),
    )
    return Figures(
        output=name,
        relative_l2=float(np.linalg.norm(error) / max(norm, _TINY)),
        worst_row=float(np.max(error / np.maximum(scale, _TINY), initial=0.0)),
        cosine=float(np.clip(np.min(cosines, initial=1.0), -1.0, 1.0)),
        top1=top1,
    )


def _whole_values(name: str, answer: np.ndarray, reference: np.ndarray) -> Figures:
    """Text and whole numbers are right or wrong: no distances, but the share of values that differ."""
    return Figures(name, differing=float(np.mean(np.asarray(answer != reference, dtype=bool))))


def _top1(answer: np.ndarray, reference: np.ndarray) -> tuple[int, int] | None:
    if reference.ndim != 2 or reference.shape[-1] < 2 or reference.size == 0:
        return None
    # Of scores that are equal up to rounding any may be on top.
    chosen = np.take_along_axis(reference, answer.argmax(axis=-1, keepdims=True), axis=-1)[:, 0]
    agree = reference.max(axis=-1) - chosen <= _TIE * np.abs(reference).max(axis=-1)
    return int(agree.sum()), int(agree.size)
