"""Making probes: requests with NaN, infinities, blanks and other numbers, and what the reference answers to them.

In a batch such values are tried in one row beside another as well, which has to be answered as it is alone: a softmax
that subtracts the largest score of the whole batch is right until a stranger sends an infinity. A model whose rows
depend on each other for what `proof` has tried is refused; one whose rows do so only beyond, for NaN, infinities and
floats far larger than those of the samples, keeps its batch, and its artifacts are bound to values that are harmless.

What they are for, and how an artifact is judged by them: `enginehouse.contract.probes`. They are about values of which
samples are no evidence: ids of neighbours, measurements that are missing, sums beyond 32 bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import onnx

from enginehouse.contract.bounds import InputBound, Region
from enginehouse.contract.parity import LIMITS, first_difference
from enginehouse.contract.probes import Probe
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse_build.graph.graph import graphs
from enginehouse_build.graph.sizes import sizing
from enginehouse_build.inputs.floats import THIRD, dotted, far, largest_of, names_of, untried, wrapping
from enginehouse_build.inputs.scales import Scaled, faint, loud
from enginehouse_build.inputs.unanswered import Unanswered
from enginehouse_build.reference import blank

#: Exponents of the magnitudes that are tried. Of whole numbers: from where 16-bit floats take neighbours for one
#: (2^8 and 2^11), over products that leave 32 bits (2^15), to where fp32 does so (2^24) and 32 bits end.
WHOLE = (4, 8, 11, 15, 20, 24, 28, 30, 31, 32, 62)
#: In one input alone also what is smaller than samples, or of a sign that they never have: an unsigned type has no -1.
ALONE = tuple(sorted({1, 2, 6, 13, *WHOLE}))
#: From here on both signs in one row: a difference is twice as large.
_BOTH_SIGNS = 1 << 8
#: How long the reference may be asked what is likely to be answered rightly, by kind of probe: slow models have less.
_SECONDS = 8.0
#: Beyond this fp32 takes neighbours for one, which samples may not have: that they passed proves nothing there.
TOLD_APART = 2**24
#: How far company is from the samples, in the largest of their values.
FAR = 64
#: Magnitudes of a stranger's floats, up to the end of fp32.
STRANGE = (8, 11, 15, 24, 31, 62, 100, 127)
SEED = 0
#: Rows of a probe, and the bytes of a row from which on it has but one.
_ROWS, _LARGE_ROW = 4, 1 << 16
#: Masks are below this; types of so many bytes are tried to their ends.
_OF_MASKS, _SMALL = 2, 2


def make(
    run: Callable[[Tensors], Tensors], proto: onnx.ModelProto, samples: Tensors, signature: Signature, max_rows: int = 2
) -> list[Probe]:
    """The probes of a model: of its `samples` a few rows with other values. `run` is the reference, `proto` its graph.

    There is company for a row where `max_rows` of a call are two or more.

    Inputs that index a table are left as they are, since their domain is checked at the door.
    """
    base = _few_rows(samples) if signature.batched else samples
    whole = tuple(
        spec.name
        for spec in signature.inputs
        if spec.dtype.kind in "iu" and spec.domain is None and base[spec.name].size
    )
    wide = tuple(name for name in whole if base[name].dtype.itemsize >= 4)
    node = sizing(proto) if wide else ""
    # Numbers of few bits do not make large sizes.
    ids = tuple(name for name in whole if name not in wide) if node else whole
    turns = any(inner.op_type in ("Loop", "Scan") for graph in graphs(proto) for inner in graph.node)
    probes = [answered(run, each) for each in _not_finite(base)]
    probes += _in_time(run, _scaled(loud(samples, names_of(base), signature.batched)))[0]
    # Before much larger ones, which bind to what the samples have.
    probes += _in_time(run, untried(base, samples, wrapping(proto), turns))[0]
    probes += [answered(run, each) for each in far(base, samples)]
    if signature.batched and max_rows > 1:
        probes += _strangers(run, samples)
    if node:
        probes.append(Probe(wide, TOLD_APART, f"{node} may make a size of it", None, None))
    tried, are_all = _in_time(run, (each for name in ids for each in _alone(base, samples, name)))
    probes += tried
    if len(ids) > 1 or not are_all:
        probes += [answered(run, each) for each in _neighbours(base, samples, ids)]
    if turns:
        # A zero might keep it turning.
        return probes
    some = _few_rows(samples, blank.ROWS) if signature.batched else samples
    blanks = (Unanswered(*each) for each in blank.requests(some, signature, wide if node else ()))
    fainter = _scaled(faint(samples, blank.ways(some, signature), signature.batched))
    return [*probes, *_in_time(run, blanks)[0], *_in_time(run, fainter)[0]]


def _scaled(requests: Iterable[Scaled]) -> Iterator[Unanswered]:
    return (Unanswered(*each, scaled=True) for each in requests)


def of_whole(base: Tensors, samples: Tensors, names: Sequence[str]) -> Iterator[Unanswered]:
    """`base` with whole numbers of all sizes in each of the inputs `names`, and in all of them; smaller ones first."""
    for name in names:
        yield from _alone(base, samples, name)
    if len(names) > 1:
        yield from _neighbours(base, samples, tuple(names))


def answered(run: Callable[[Tensors], Tensors] | None, asked: Unanswered) -> Probe:
    """The probe with what `run` answers; None asks nobody yet."""
    answer = _tried(run, asked.request) if run is not None else None
    return Probe(*asked[:4], answer, inside=asked.inside, scaled=asked.scaled, every=asked.every)


def _in_time(run: Callable[[Tensors], Tensors], asked: Iterable[Unanswered]) -> tuple[list[Probe], bool]:
    """As many as there is time for, and whether these are all.

    Without those that are no evidence: what the reference refuses amid the samples' values, or times a number.
    """
    found: list[Probe] = []
    began = time.monotonic()
    for each in asked:
        if time.monotonic() - began > _SECONDS:
            return found, False
        probe = answered(run, each)
        if probe.answer is not None or not (probe.inside or probe.scaled):
            found.append(probe)
    return found, True


def _not_finite(base: Tensors) -> Iterator[Unanswered]:
    for name in names_of(base):
        for value, called in ((np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "-infinity")):
            # In every third element, and in one of each row: two infinities in a sum are no number.
            for step in (THIRD, base[name][0:1].size + 1 if base[name].ndim else 1):
                changed = {**base, name: dotted(base[name], np.array(value), step)}
                yield Unanswered((name,), "finite", called, changed)


def _strangers(run: Callable[[Tensors], Tensors], samples: Tensors) -> Iterator[Probe]:
    """A row of a stranger before one of the samples, in each float input by itself.

    Large numbers are tried where even the reference answers the row otherwise than alone, be it for an infinity: in
    other precisions they are infinite sooner. Nothing is asked beside a row that it refuses.
    """
    stranger, own = (
        {name: array.take([row], axis=0, mode="wrap") for name, array in samples.items()} for row in (0, 1)
    )
    alone = _tried(run, own)
    if alone is None:
        return
    for name in names_of(stranger):
        array = stranger[name]
        special, large = [], []
        for value, called in ((np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "-infinity")):
            row = {**stranger, name: dotted(array, np.array(value))}
            special.append(_beside(run, row, own, alone, (name,), "finite", called))
        seen = samples[name].astype(np.float64)
        largest = float(np.abs(seen[np.isfinite(seen)]).max(initial=0.0)) or 1.0
        # Company of so many times the largest is part of the proof.
        within = 2 ** max(math.frexp(FAR * largest)[1] - 1, 0)
        for exponent in STRANGE:
            if 2**exponent <= within or exponent > math.log2(largest_of(array.dtype)):
                continue
            # Of either sign, and not nothing on average.
            signs = np.where(np.arange(array.size) % THIRD, 1.0, -1.0).reshape(array.shape)
            row = {**stranger, name: (2.0**exponent * signs).astype(array.dtype)}
            large.append(_beside(run, row, own, alone, (name,), within, f"magnitudes of 2^{exponent}"))
            within = 2**exponent
        yield from filter(None, special)
        if any(_spreads(run, probe) for probe in (*special, *large) if probe is not None):
            yield from filter(None, large)


def _beside(
    run: Callable[[Tensors], Tensors],
    stranger: Tensors,
    own: Tensors,
    alone: Tensors,
    names: tuple[str, ...],
    within: InputBound,
    values: str,
) -> Probe | None:
    """A probe of the row `own` behind that of a `stranger`; None where that is refused or answered without a row."""
    other = _tried(run, stranger)
    if other is None or any(array.shape != alone[name].shape or not array.ndim for name, array in other.items()):
        return None
    request, answer = (
        {name: np.concatenate([first[name], second[name]]) for name in first}
        for first, second in ((stranger, own), (other, alone))
    )
    return Probe(names, within, values, request, answer, beside=1)


def _spreads(run: Callable[[Tensors], Tensors], probe: Probe) -> bool:
    assert probe.request is not None and probe.answer is not None
    limit = LIMITS["fp32"].worst_row
    got, copies = (
        _tried(run, request) for request in (probe.request, {n: a[[1, 1]] for n, a in probe.request.items()})
    )
    if got is None or copies is None:
        return False
    own, alone, copy = ({name: array[1:] for name, array in each.items()} for each in (got, probe.answer, copies))
    return all(first_difference(own, want, limit, limit) is not None for want in (alone, copy))


def _tried(run: Callable[[Tensors], Tensors], request: Tensors) -> Tensors | None:
    try:
        return run(request)
    except Exception:
        # ONNX Runtime raises classes of its own.
        return None


def _alone(base: Tensors, samples: Tensors, name: str) -> Iterator[Unanswered]:
    """Whole numbers in one input, close to one another and ever larger, of either sign, from 1 on."""
    generator = np.random.default_rng(SEED)
    array, info = base[name], np.iinfo(base[name].dtype)
    low, high = int(samples[name].min()), int(samples[name].max())
    known = _known(samples, [name])
    top = int(info.max) + 1
    ends = sorted({min(end, top) for end in (known, *(1 << exponent for exponent in ALONE))})
    within = 1
    for end in ends:
        for sign in (1, -1) if info.min else (1,):
            # Nearer to 0 than all samples are, where these are of one sign.
            if sign > 0:
                inside, nearer = end <= min(high + 1, TOLD_APART), end <= low
                bound = Region(at_least=low) if nearer else Region(less_than=within) if info.min else within
            else:
                inside, nearer = end <= min(1 - low, TOLD_APART), end <= -high
                bound = Region(less_than=high + 1) if nearer else Region(at_least=1 - within)
            changed = {**base, name: _near(array, end, (sign,), generator)}
            said = f"neighbours below {'-' if sign < 0 else ''}{_shown(end)}"
            yield Unanswered((name,), bound, said, changed, inside or nearer)
        if info.min and end >= max(_BOTH_SIGNS, known):
            changed = {**base, name: _near(array, end, (1, -1), generator)}
            yield Unanswered((name,), within, f"neighbours below +-{_shown(end)}", changed)
        within = end


def _neighbours(base: Tensors, samples: Tensors, names: tuple[str, ...]) -> Iterator[Unanswered]:
    """Whole numbers in all inputs that take them, close to one another and ever larger, of either sign.

    But for masks, of which samples have 0 and 1 only, beside other inputs. The gate has compared the samples' own.
    """
    generator = np.random.default_rng(SEED)
    names = tuple(name for name in names if _known(samples, [name]) > _OF_MASKS) or names
    within = known = _known(samples, names)
    for exponent in WHOLE if names else ():
        if 2**exponent <= known:
            continue
        for signs, called in (((1,), ""), ((-1,), "-"), ((1, -1), "+-")):
            # Of several types each goes as far as it can.
            changed = {
                name: _near(base[name], min(2**exponent, int(np.iinfo(base[name].dtype).max) + 1), signs, generator)
                for name in names
            }
            yield Unanswered(names, within, f"neighbours below {called}2^{exponent}", {**base, **changed})
        if all(2**exponent > np.iinfo(base[name].dtype).max for name in names):
            return
        within = 2**exponent


def _near(array: np.ndarray, end: int, signs: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    sign = generator.choice((1,) if array.dtype.kind == "u" else signs, array.shape)
    near: np.ndarray = sign * np.maximum(end - generator.integers(1, 5, array.shape), 1)
    if array.dtype.itemsize <= _SMALL and end > np.iinfo(array.dtype).max:
        # The least number of a type has no counterpart.
        near = near - (sign < 0)
    return near.astype(array.dtype)


def _known(samples: Tensors, names: Iterable[str]) -> int:
    """What all whole numbers of the samples in these inputs are below, in magnitude, as far as that proves anything."""
    return min(max((_largest_whole(samples[name]) for name in names), default=0) + 1, TOLD_APART)


def _shown(end: int) -> str:
    return f"2^{end.bit_length() - 1}" if end & (end - 1) == 0 else str(end)


def _largest_whole(array: np.ndarray) -> int:
    return max(int(array.max(initial=0)), -int(array.min(initial=0)))


def _few_rows(request: Tensors, least: int = 1) -> Tensors:
    rows = _ROWS if sum(array[:1].nbytes for array in request.values()) < _LARGE_ROW else least
    return {name: array[:rows] for name, array in request.items()}
