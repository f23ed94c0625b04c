"""Shapes of an ONNX graph: inferred, read by name, and written back with a name for every free dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import onnx

from enginehouse.contract.errors import ExportFailed
from enginehouse_build.reference.onnx import reason

#: A dimension: its size, its symbol, or None where nothing is known.
Dim: TypeAlias = int | str | None
Shapes: TypeAlias = Mapping[str, tuple[Dim, ...]]


def infer(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` with the shape of every tensor that inference can tell.

    Outputs are inferred anew, because writers record shapes that no longer hold; what inference cannot tell stays as
    recorded. Raises ExportFailed when types or shapes contradict each other.
    """
    recorded = {output.name: dims(output) for output in proto.graph.output}
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for output in bare.graph.output:
        if is_tensor(output):
            output.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(bare)
    except Exception as error:
        raise ExportFailed(f"types or shapes do not fit together: {reason(error)}") from error
    for output in inferred.graph.output:
        if is_tensor(output):
            _merge(output, recorded[output.name])
    return inferred


def is_tensor(value: onnx.ValueInfoProto) -> bool:
    """Whether `value` is a tensor, not a sequence, map or optional."""
    return bool(value.type.HasField("tensor_type"))


def set_rank(value: onnx.ValueInfoProto, rank: int) -> None:
    """Give `value` that many dimensions of unknown size."""
    shape = value.type.tensor_type.shape
    shape.Clear()
    # Without a dimension it is a scalar, which is not the same as no shape at all.
    shape.SetInParent()
    for _ in range(rank):
        shape.dim.add()


def dims(value: onnx.ValueInfoProto) -> tuple[Dim, ...] | None:
    """The dimensions of a tensor; None when it has no known rank or is no tensor."""
    if not is_tensor(value) or not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)
        for dim in value.type.tensor_type.shape.dim
    )


def shapes_of(inferred: onnx.ModelProto) -> Shapes:
    """Every known shape in the main graph, by tensor name."""
    graph = inferred.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    found = {value.name: shape for value in values if (shape := dims(value)) is not None}
    return found | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def name_free_dims(graph: onnx.GraphProto) -> None:
    """Give every free input dimension a symbol; a negative size is an old way to write a free one."""
    for value in graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value >= 0:
                continue
            if not dim.dim_param:
                dim.dim_param = f"{value.name}_{axis}"


def _merge(output: onnx.ValueInfoProto, recorded: tuple[Dim, ...] | None) -> None:
    found = dims(output)
    if found is None and recorded is None:
        return
    if found is None or recorded is None or len(found) != len(recorded):
        merged = recorded if found is None else found
    else:
        merged = tuple(old if new is None or _made_up(new) else new for new, old in zip(found, recorded, strict=True))
    set_rank(output, len(merged or ()))
    for dim, size in zip(output.type.tensor_type.shape.dim, merged or (), strict=True):
        if isinstance(size, int):
            dim.dim_value = size
        elif size:
            dim.dim_param = size


def _made_up(dim: Dim) -> bool:
    """Whether inference invented this symbol for want of knowledge."""
    return isinstance(dim, str) and dim.startswith("unk__")
