"""What is known before a model is exported, which may take minutes: samples and ranges that do not fit its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from enginehouse.contract.errors import BuildError
from enginehouse.contract.tensors import Signature, TensorSpec
from enginehouse_build.inputs.given import Given
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.inputs.samples import checked
from enginehouse_build.reference.onnx import inputs_of

if TYPE_CHECKING:
    from enginehouse_build.inputs.source import TorchModel


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The inputs that a model will have, and the names of their free dimensions; `way` says how to free another."""

    specs: Sequence[TensorSpec]
    names: Sequence[str]
    way: str


def of_module(model: TorchModel, recipe: Recipe, given: Given) -> None:
    """Raises BuildError for ranges and rows that do not fit the inputs of a factory's module."""
    axes = model.source.axes
    specs = []
    for name, tensor in model.inputs.items():
        free = {*axes.get(name, {}), *((0,) if recipe.batched else ())}
        shape = tuple(None if dim in free else int(size) for dim, size in enumerate(tensor.shape))
        specs.append(TensorSpec(name, tensor.detach().cpu().numpy().dtype, shape))
    names = list(dict.fromkeys(axis for dims in axes.values() for axis in dims.values()))
    first = specs[0]
    way = f"name it in the factory with ModelSource(axes={{{first.name!r}: {{{len(first.shape) - 1}: 'NAME'}}}})"
    _check(_Inputs(specs, names, way), recipe, given, model.source.preprocess)


def of_file(path: Path, recipe: Recipe, given: Given) -> None:
    """The same for an ONNX file. What is wrong with the file itself is left to its adoption, which knows more."""
    try:
        proto = onnx.load(path, load_external_data=False)
        specs = [_free(spec, recipe.batched) for spec in inputs_of(proto)]
    except Exception:
        # protobuf raises classes of its own.
        return
    weights = {tensor.name for tensor in proto.graph.initializer}
    names = []
    for value in proto.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim if value.name not in weights else ()):
            if not dim.HasField("dim_value") or dim.dim_value < 0:
                names.append(dim.dim_param or f"{value.name}_{axis}")
    _check(_Inputs(specs, list(dict.fromkeys(names)), "free it in the ONNX file"), recipe, given, None)


def _free(spec: TensorSpec, batched: bool) -> TensorSpec:
    shape = [None if dim is None or dim < 0 else dim for dim in spec.shape]
    if batched and shape:
        shape[0] = None
    return TensorSpec(spec.name, spec.dtype, tuple(shape))


def _check(inputs: _Inputs, recipe: Recipe, given: Given, preprocess: str | None) -> None:
    if recipe.preprocess is not None or preprocess is not None:
        # Pixels have other shapes than the model's input, which are known once it is there.
        return
    for name in recipe.axes:
        if name not in inputs.names:
            have = ", ".join(inputs.names) or "none"
            raise BuildError(
                f"--axis {name}: the model has no free dimension of that name; it has {have}; {inputs.way}"
            )
    signature = Signature(tuple(inputs.specs), (), recipe.batched)
    for rows, where in ((given.samples, given.samples_from), (given.calibration, given.calibration_from)):
        if rows is not None:
            checked(rows, signature, where)
