"""What is known before a model is exported, which may take minutes: samples and ranges that do not fit its inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from enginehouse.contract.errors import BuildError
from enginehouse.contract.tensors import FreeDim, Signature, TensorSpec
from enginehouse_build.inputs.given import Given
from enginehouse_build.inputs.recipe import AxisRange, Recipe
from enginehouse_build.inputs.samples import checked
from enginehouse_build.reference.axes import check_not_empty, ranges_of
from enginehouse_build.reference.onnx import inputs_of

if TYPE_CHECKING:
    from enginehouse_build.inputs.source import TorchModel


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The inputs that a model will have, and where its named free dimensions are; `way` says how to free another.

    `batch` is what the first dimensions may be called, where they are rows.
    """

    specs: Sequence[TensorSpec]
    batched: bool
    free: Mapping[str, Sequence[tuple[str, int]]]
    ranges: Mapping[str, AxisRange]
    way: str
    batch: Collection[str] = ("batch",)


def of_module(model: TorchModel, recipe: Recipe, given: Given) -> None:
    """Raises BuildError for ranges and rows that do not fit the inputs of a factory's module."""
    source = model.source
    ranges = ranges_of(source.ranges, recipe.axes)
    if recipe.preprocess or source.preprocess:
        # Pixels have other shapes than the model's input, which are known once it is there.
        return
    specs, free = [], dict[str, list[tuple[str, int]]]()
    for name, tensor in model.inputs.items():
        names = source.axes.get(name, {})
        any_size = {*names, *((0,) if recipe.batched else ())}
        shape = tuple(None if dim in any_size else int(size) for dim, size in enumerate(tensor.shape))
        specs.append(TensorSpec(name, tensor.detach().cpu().numpy().dtype, shape))
        for dim, axis in names.items():
            if not 0 <= dim < tensor.dim() or (recipe.batched and dim == 0):
                taken = "is the batch" if dim == 0 and tensor.dim() else "is none"
                raise BuildError(
                    f"ModelSource(axes=...) calls dimension {dim} of input {name!r} {axis!r}, which {taken}; name free "
                    f"dimensions other than the batch among 0 to {tensor.dim() - 1}"
                )
            free.setdefault(axis, []).append((name, dim))
    way = f"name it in the factory with ModelSource(axes={{{specs[0].name!r}: {{{len(specs[0].shape) - 1}: 'NAME'}}}})"
    _check(_Inputs(specs, recipe.batched, free, ranges, way), given)


def of_file(path: Path, recipe: Recipe, given: Given) -> None:
    """The same for an ONNX file. What is wrong with the file itself is left to its adoption, which knows more."""
    if recipe.preprocess:
        return
    try:
        proto = onnx.load(path, load_external_data=False)
        found = inputs_of(proto)
    except Exception:
        # protobuf raises classes of its own.
        return
    symbols = {
        (value.name, dim): size.dim_param or f"{value.name}_{dim}"
        for value in proto.graph.input
        for dim, size in enumerate(value.type.tensor_type.shape.dim)
    }
    batched = recipe.batched and all(spec.shape[:1] == (None,) for spec in found)
    rows_of = {symbols[spec.name, 0] for spec in found if spec.shape} if batched else set()
    specs, free = [], dict[str, list[tuple[str, int]]]()
    for spec in found:
        shape = [None if size is None or size < 0 else size for size in spec.shape]
        for dim, size in enumerate(shape):
            if size is None and not (batched and dim == 0):
                free.setdefault(symbols[spec.name, dim], []).append((spec.name, dim))
        # A batch of one may be made dynamic, or be kept.
        rows = [None] if recipe.batched else shape[:1]
        specs.append(TensorSpec(spec.name, spec.dtype, (*(rows if shape else ()), *shape[1:])))
    _check(_Inputs(specs, batched, free, recipe.axes, "free it in the ONNX file", rows_of), given)


def _check(inputs: _Inputs, given: Given) -> None:
    for name in inputs.ranges:
        if name not in inputs.free:
            if inputs.batched and name in inputs.batch:
                raise BuildError(
                    f"--axis {name}: that dimension is the batch, whose range is 1 to --max-batch ROWS; give that"
                )
            have = ", ".join(inputs.free) or "none"
            raise BuildError(
                f"--axis {name}: the model has no free dimension of that name; it has {have}; {inputs.way}"
            )
    free = []
    for name, dims in inputs.free.items():
        if given.samples is not None:
            check_not_empty(given.samples, name, dims)
        extents = inputs.ranges.get(name)
        free.append(FreeDim(name, tuple(dims), (extents.min, extents.max) if extents else None))
    batched = inputs.batched and all(spec.shape for spec in inputs.specs)
    signature = Signature(tuple(inputs.specs), (), batched, tuple(free))
    for rows, where in ((given.samples, given.samples_from), (given.calibration, given.calibration_from)):
        if rows is not None:
            checked(rows, signature, where)
