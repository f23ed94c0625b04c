"""The free dimensions of a model: their names, their ranges, and which of them follow from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import ValidationError

from enginehouse.contract.errors import BuildError
from enginehouse.contract.manifest import Axis
from enginehouse.contract.signature_record import parts_of
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse_build.inputs.extents import independent, near, resized
from enginehouse_build.inputs.recipe import AxisRange
from enginehouse_build.inputs.samples import take
from enginehouse_build.reference.onnx import Run


def ranges_of(declared: Mapping[str, tuple[int, int, int]], options: Mapping[str, AxisRange]) -> dict[str, AxisRange]:
    """The ranges that a factory has `declared`, and those of the `options`, which go before them. Raises BuildError."""
    ranges: dict[str, AxisRange] = {}
    for name, extents in declared.items():
        try:
            low, usual, high = extents
            ranges[name] = AxisRange(min=low, opt=usual, max=high)
        except ValueError as error:
            # pydantic's errors are of this class too, and begin with a line of their own.
            fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise BuildError(
                f"ModelSource(ranges={{{name!r}: {extents!r}}}): {fault.removeprefix('Value error, ')}; "
                "give (min, opt, max), three ascending whole numbers"
            ) from None
    return ranges | dict(options)


def axes_of(
    signature: Signature,
    names: Mapping[tuple[str, int], str],
    ranges: Mapping[str, AxisRange],
    real: Mapping[str, np.ndarray] | None,
) -> tuple[Axis, ...]:
    """Every free dimension but the batch that has a range: declared, the sum of others, or its extent in the samples.

    `names` are those of the file or the factory, by input and dimension; the declared ones come first. Raises
    BuildError for a declared name that the model does not have, and for samples that are empty along a dimension.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for spec in signature.inputs:
        for dim, extent in enumerate(spec.shape):
            if extent is None and not (signature.batched and dim == 0):
                found.setdefault(names.get((spec.name, dim), f"{spec.name}.{dim}"), []).append((spec.name, dim))
    if unknown := sorted(ranges.keys() - found.keys()):
        have = ", ".join(found) or "none"
        raise BuildError(f"--axis {unknown[0]}: the model has no free dimension of that name; it has {have}")
    sums = {name: parts for name in found if (parts := parts_of(name, found))}
    axes: dict[str, Axis] = {}
    # The parts before their sums.
    for name in sorted(found, key=lambda name: name in sums):
        extents = _total(name, sums[name], axes, ranges) if name in sums else None
        if axis := _axis(name, found[name], extents or ranges.get(name), real):
            axes[name] = axis
    order = [*(name for name in ranges if name in axes), *(name for name in found if name in axes)]
    return tuple(axes[name] for name in dict.fromkeys(order))


def _axis(
    name: str, dims: Sequence[tuple[str, int]], extents: AxisRange | None, real: Mapping[str, np.ndarray] | None
) -> Axis | None:
    extent = None if real is None else check_not_empty(real, name, dims)
    if extents is not None:
        return Axis(name=name, min=extents.min, opt=extents.opt, max=extents.max, dims=tuple(dims))
    return None if extent is None else Axis(name=name, min=extent, opt=extent, max=extent, dims=tuple(dims))


def _total(
    name: str, parts: Sequence[str], axes: Mapping[str, Axis], declared: Mapping[str, AxisRange]
) -> AxisRange | None:
    """The range of an extent that is a sum, where one of its parts has a range; None where none has.

    Raises BuildError for another range that was `declared` for it.
    """
    if not any(part in declared for part in parts) or any(part not in axes for part in parts if not part.isdecimal()):
        return None

    def total(end: Literal["min", "opt", "max"]) -> int:
        return sum(int(part) if part.isdecimal() else int(getattr(axes[part], end)) for part in parts)

    found = AxisRange(min=total("min"), opt=total("opt"), max=total("max"))
    if name in declared and declared[name] != found:
        raise BuildError(
            f"--axis {name}: its extent follows from {', '.join(parts)}, so that it is "
            f"{found.min}:{found.opt}:{found.max}; leave it out"
        )
    return found


def check_not_empty(samples: Mapping[str, np.ndarray], name: str, dims: Sequence[tuple[str, int]]) -> int | None:
    """The extent of the dimension `name`, which is at `dims`, in the samples; None where they do not have it.

    Raises BuildError where it is 0.
    """
    extent = _extent(samples, dims)
    if extent == 0:
        raise BuildError(
            f"the samples have no values along {name!r} (dimension {dims[0][1]} of input {dims[0][0]!r}): with an "
            "extent of 0 nothing that flows through it is compared; give samples of a later call, whose past is not "
            f"empty, and say with --axis {name}=0:OPT:MAX that it may be"
        )
    return extent


def _extent(samples: Mapping[str, np.ndarray], dims: Sequence[tuple[str, int]]) -> int | None:
    name, dim = dims[0]
    array = samples.get(name)
    return None if array is None or array.ndim <= dim else int(array.shape[dim])


def with_free_outputs(
    signature: Signature, run: Run, rows: Tensors, axes: Sequence[Axis], answers: Sequence[Tensors]
) -> Signature:
    """`signature` with those dimensions of outputs free that differ among `answers`, or near the samples' extents.

    An exporter may write down the extent of its example, where what is made of a free dimension is as long as that.
    """
    few = take(rows, 0, 1) if signature.batched else rows
    seen = list(answers)
    for axis in independent(axes):
        for size in near(axis.opt) if axis.min == axis.max else ():
            # What nobody declared the model need not take.
            with suppress(Exception):
                seen.append(run(resized(few, axis, size, axes)))
    outputs = []
    for spec in signature.outputs:
        shapes = [answer[spec.name].shape for answer in seen if answer[spec.name].ndim == len(spec.shape)]
        shape = tuple(
            extent if (signature.batched and not dim) or len({shape[dim] for shape in shapes}) < 2 else None
            for dim, extent in enumerate(spec.shape)
        )
        outputs.append(replace(spec, shape=shape))
    return replace(signature, outputs=tuple(outputs))
