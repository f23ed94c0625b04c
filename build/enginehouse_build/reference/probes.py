"""Making probes: requests with NaN, infinities, blanks and other numbers, and what the reference answers to them.

What they are for, and how an artifact is judged by them: `enginehouse.contract.probes`. They are about values of which
samples are no evidence: ids of neighbours, measurements that are missing, sums beyond 32 bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import onnx

from enginehouse.contract.bounds import InputBound, Region
from enginehouse.contract.probes import Probe
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse_build.graph.graph import element_types, graphs, subgraphs
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
#: Of floats: the ends of fp16, of fp32's whole numbers, of 32 and of 64 bits, and far beyond; 2^200 is beyond fp32.
FLOAT = (15, 24, 31, 62, 100, 200)
#: Beyond this fp32 takes neighbours for one, which samples may not have: that they passed proves nothing there.
TOLD_APART = 2**24
SEED = 0
#: Special values in every third element, and in one of each row: two infinities in a sum are no number.
_THIRD = 3
#: Rows of a probe, and the bytes of a row from which on it has but one.
_ROWS, _LARGE_ROW = 4, 1 << 16
#: Masks are below this; types of so many bytes are tried to their ends.
_OF_MASKS, _SMALL = 2, 2

_WHOLE_TYPES = frozenset(
    {onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64}
)
#: What may happen to a large whole number without a shape, and so memory, growing with it.
_HARMLESS = frozenset(
    {"Abs", "Add", "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"}
    | {
        "Cast",
        "Clip",
        "Compress",
        "Concat",
        "CumSum",
        "Div",
        "Einsum",
        "Equal",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
    }
    | {
        "Greater",
        "GreaterOrEqual",
        "Identity",
        "Less",
        "LessOrEqual",
        "MatMul",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "NonZero",
    }
    | {"Not", "Or", "Pow", "ScatterElements", "ScatterND", "Shape", "Sign", "Size", "Sub", "Sum", "Transpose", "Where"}
    | {"Unique", "Xor"}
)
#: The same if it is the first input; the others say of what shape the result is.
_HARMLESS_FIRST = frozenset(
    {
        "Expand",
        "OneHot",
        "Pad",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "Reshape",
        "Slice",
        "Split",
    }
    | {"Squeeze", "Tile", "TopK", "Unsqueeze"}
)


def make(
    run: Callable[[Tensors], Tensors], proto: onnx.ModelProto, samples: Tensors, signature: Signature
) -> list[Probe]:
    """The probes of a model: of its `samples` a few rows with other values. `run` is the reference, `proto` its graph.

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
    probes = [_answered(run, each) for each in (*_not_finite(base), *_far(base, samples))]
    if node:
        probes.append(Probe(wide, TOLD_APART, f"{node} may make a size of it", None, None))
    alone = (each for name in ids for each in _alone(base, samples, name))
    tried, are_all = _in_time(run, alone)
    probes += tried
    if len(ids) > 1 or not are_all:
        probes += [_answered(run, each) for each in _neighbours(base, samples, ids)]
    if any(inner.op_type in ("Loop", "Scan") for graph in graphs(proto) for inner in graph.node):
        # A zero might keep it turning.
        return probes
    some = _few_rows(samples, blank.ROWS) if signature.batched else samples
    blanks = (_Unanswered(*each) for each in blank.requests(some, signature, wide if node else ()))
    return [*probes, *_in_time(run, blanks)[0]]


class _Unanswered(NamedTuple):
    """A probe whose answer is not known yet; see `Probe`."""

    names: tuple[str, ...]
    within: InputBound
    values: str
    request: Tensors
    inside: bool = False


def _answered(run: Callable[[Tensors], Tensors], asked: _Unanswered) -> Probe:
    try:
        answer: Tensors | None = run(asked.request)
    except Exception:
        # ONNX Runtime raises classes of its own, say for an id beyond its table.
        answer = None
    return Probe(asked.names, asked.within, asked.values, asked.request, answer, asked.inside)


def _in_time(run: Callable[[Tensors], Tensors], asked: Iterable[_Unanswered]) -> tuple[list[Probe], bool]:
    """As many as there is time for, and whether these are all.

    Without those that are no evidence: what the reference refuses amid the samples' values.
    """
    found: list[Probe] = []
    began = time.monotonic()
    for each in asked:
        if time.monotonic() - began > _SECONDS:
            return found, False
        probe = _answered(run, each)
        if probe.answer is not None or not probe.inside:
            found.append(probe)
    return found, True


def _not_finite(base: Tensors) -> Iterator[_Unanswered]:
    for name in _floats(base):
        for value, called in ((np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "-infinity")):
            for step in (_THIRD, base[name][0:1].size + 1 if base[name].ndim else 1):
                changed = {**base, name: _dotted(base[name], np.array(value), step)}
                yield _Unanswered((name,), "finite", called, changed)


def _far(base: Tensors, samples: Tensors) -> Iterator[_Unanswered]:
    """Floats beyond those of the samples, which the gate has compared: in each input by itself, ever larger."""
    generator = np.random.default_rng(SEED)
    for name in _floats(base):
        array = base[name]
        seen = samples[name].astype(np.float64).ravel()
        within = _power_above(float(np.abs(seen[np.isfinite(seen)]).max(initial=0.0)))
        top = math.log2(_largest_of(array.dtype))
        for exponent in FLOAT:
            if within >= 2**exponent or exponent > top:
                continue
            values = 2.0**exponent * generator.uniform(0.5, 1, array.shape) * generator.choice((-1, 1), array.shape)
            changed = {**base, name: _dotted(array, values, _THIRD)}
            yield _Unanswered((name,), within, f"magnitudes of 2^{exponent}", changed)
            within = 2**exponent


def _alone(base: Tensors, samples: Tensors, name: str) -> Iterator[_Unanswered]:
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
            yield _Unanswered((name,), bound, said, changed, inside or nearer)
        if info.min and end >= max(_BOTH_SIGNS, known):
            changed = {**base, name: _near(array, end, (1, -1), generator)}
            yield _Unanswered((name,), within, f"neighbours below +-{_shown(end)}", changed)
        within = end


def _neighbours(base: Tensors, samples: Tensors, names: tuple[str, ...]) -> Iterator[_Unanswered]:
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
            yield _Unanswered(names, within, f"neighbours below {called}2^{exponent}", {**base, **changed})
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


def _floats(base: Tensors) -> list[str]:
    return [name for name, array in base.items() if array.size and array.dtype.kind in "fV"]


def _dotted(array: np.ndarray, values: np.ndarray, step: int) -> np.ndarray:
    """`array` with each `step`-th element from `values`, in the order of memory."""
    changed = array.copy()
    changed.reshape(-1)[::step] = np.broadcast_to(values, array.shape).reshape(-1)[::step].astype(array.dtype)
    return changed


def _largest_of(dtype: np.dtype) -> float:
    # ml_dtypes' bfloat16 has the range of fp32.
    return float(np.finfo(dtype if dtype.kind == "f" else np.float32).max)


def _power_above(value: float) -> int:
    """The least power of two that is larger, at least 1."""
    return 1 << max(0, math.frexp(value)[1])


def _few_rows(request: Tensors, least: int = 1) -> Tensors:
    rows = _ROWS if sum(array[:1].nbytes for array in request.values()) < _LARGE_ROW else least
    return {name: array[:rows] for name, array in request.items()}


def sizing(proto: onnx.ModelProto) -> str:
    """The first node that may make a size of a whole number among the inputs, as `Range 'r'`; "" when none does.

    2^30 of anything would be too much.
    """
    types = element_types(onnx.shape_inference.infer_shapes(proto).graph)
    large = {value.name for value in proto.graph.input if types.get(value.name) in _WHOLE_TYPES}
    for node in proto.graph.node if large else ():
        reached = [at for at, name in enumerate(node.input) if name in large]
        is_harmless = node.op_type in _HARMLESS or (node.op_type in _HARMLESS_FIRST and reached == [0])
        if subgraphs(node) or (reached and not is_harmless):
            return f"{node.op_type} {(node.name or node.output[0])!r}"
        if reached:
            large |= {name for name in node.output if types.get(name, onnx.TensorProto.INT64) in _WHOLE_TYPES}
    return ""
