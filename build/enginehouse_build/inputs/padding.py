"""Which inputs may be made longer, so that requests of several lengths share a call: what is worth proving.

Those that share a free dimension with a mask, which is an input of two values whose name says so; or those that the
recipe names. What is a mask's padding, 0 or 1, is for the proof to find out: the likelier one comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from enginehouse.contract.errors import BuildError
from enginehouse.contract.manifest import Axis
from enginehouse.contract.signature_record import PaddedInput, Padding, parts_of
from enginehouse.contract.tensors import Signature, Tensors, TensorSpec
from enginehouse_build.inputs.extents import independent

#: In a name: this input says which positions count.
_MASK = "mask"
#: Nothing is padded beyond this extent.
_LONGEST = 1024
#: Every power of two has so many edges up to the next one, none nearer than this to the one before.
_STEPS, _LEAST_STEP = 16, 4


def paddings(
    signature: Signature, axes: Sequence[Axis], samples: Tensors, asked: Mapping[str, int | float] | None
) -> tuple[Padding, ...]:
    """What may be proven, the likelier first; `asked` are values by input, {} for none, None for what is found.

    `signature` says within which range each dimension is let in, where one was declared.

    Raises BuildError for an input that is asked for and has no free dimension, or not the one of the others.
    """
    if asked is not None and not asked:
        return ()
    if asked is not None:
        _check(asked, signature, axes)
    sums = {part for axis in axes for part in parts_of(axis.name, {axis.name for axis in axes})}
    for axis in independent(axes):
        names = [name for name, _ in axis.dims]
        wanted = asked is None or asked.keys() <= set(names)
        # Each of them once, and no other dimension that follows from this one.
        if not wanted or axis.name in sums or len(set(names)) < len(names) or any(dim == 0 for _, dim in axis.dims):
            continue
        low, high = extents(axis, signature)
        if low < high and (found := _of(axis, signature, samples, asked, edges(low, high))):
            return found
    if asked:
        raise BuildError(
            f"--pad {', '.join(asked)}: nothing can be padded there: one extent only is let in, another dimension "
            "follows from it, it holds text, or a mask has more than two values; leave it out"
        )
    return ()


def extents(axis: Axis, signature: Signature) -> tuple[int, int]:
    """The shortest and the longest rows that are worth padding."""
    ranges = {free.name: free.range for free in signature.free if free.range}
    low, high = ranges.get(axis.name, (1, _LONGEST))
    return max(low, 1), min(high, max(_LONGEST, axis.opt))


def edges(low: int, high: int) -> tuple[int, ...]:
    """The lengths that rows are padded to: multiples of 4, of 8 from 128 on, of 16 from 256 on, and the largest."""
    found = []
    edge = 0
    while edge < high:
        edge += max(_LEAST_STEP, (1 << edge.bit_length() >> 1) // _STEPS)
        if edge > low:
            found.append(min(edge, high))
    return tuple(found)


def _of(
    axis: Axis,
    signature: Signature,
    samples: Tensors,
    asked: Mapping[str, int | float] | None,
    lengths: tuple[int, ...],
) -> tuple[Padding, ...]:
    specs = {spec.name: spec for spec in signature.inputs}
    names = [name for name, _ in axis.dims]
    if any(specs[name].dtype.hasobject for name in names):
        return ()
    masks = [name for name in names if _MASK in name.lower()]
    if not masks and asked is None:
        return ()
    pairs = {name: _pairs(samples[name], None if asked is None else asked.get(name)) for name in masks}
    ways = min(map(len, pairs.values()), default=1)
    tells = set(masks or list(asked or ())[:1])
    found = []
    for way in range(ways):
        inputs = []
        for name, dim in axis.dims:
            value, mark = pairs[name][way] if name in pairs else ((asked or {}).get(name, _value(specs[name])), None)
            inputs.append(PaddedInput(name=name, dim=dim, value=value, tells=name in tells, mark=mark))
        found.append(Padding(inputs=tuple(inputs), edges=lengths))
    return tuple(found)


def _pairs(array: np.ndarray, value: int | float | None) -> list[tuple[int | float, int | float]]:
    """What may be a mask's padding, and what it has elsewhere; nothing where the samples have more than two values."""
    values = np.unique(array).astype(np.int64 if array.dtype.kind in "iub" else np.float64).tolist()
    if set(values) <= {0, 1}:
        values = [type(values[0])(each) for each in (0, 1)] if values else []
    if value is not None:
        others = [each for each in values if each != value]
        return [(value, others[0])] if len(others) == 1 else []
    return [(values[0], values[1]), (values[1], values[0])] if len(values) == 2 else []


def _value(spec: TensorSpec) -> int | float:
    """0, or the least number that its table has."""
    if spec.domain is not None and not spec.domain.low <= 0 < spec.domain.high:
        return spec.domain.low
    return 0.0 if spec.dtype.kind == "f" else 0


def _check(asked: Mapping[str, int | float], signature: Signature, axes: Sequence[Axis]) -> None:
    free = {name: axis.name for axis in axes for name, _ in axis.dims}
    have = ", ".join(free) or "none"
    if not signature.batched:
        raise BuildError("--pad: without a batch no two requests share a call; leave it out")
    for name, value in asked.items():
        if name not in free:
            raise BuildError(f"--pad {name}: the model has no such input with a free dimension; it has {have}")
        spec = next(spec for spec in signature.inputs if spec.name == name)
        if spec.domain is not None and not spec.domain.low <= value < spec.domain.high:
            raise BuildError(f"--pad {name}={value:g}: the model looks it up in a table that takes {spec.domain}")
        if spec.dtype.kind in "iub" and value != int(value):
            raise BuildError(f"--pad {name}={value:g}: it holds whole numbers")
    if len({free[name] for name in asked}) > 1:
        raise BuildError(f"--pad: {', '.join(asked)} have no free dimension in common")
