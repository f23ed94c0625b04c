"""Nodes in front of an input or behind outputs of an ONNX graph, as if the model had always had them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from enginehouse.contract.errors import ConfigError
from enginehouse_build.graph.graph import subgraphs

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


class Nodes:
    """New nodes and constants in the order of execution; every name in it begins with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node that reads `inputs` and return its first output, named by number unless `outputs` are given."""
        name = f"{self.prefix}{len(self.nodes)}_{op}"
        written = list(outputs) or [f"{name}_output"]
        self.nodes.append(helper.make_node(op, list(inputs), written, name=name, **attributes))
        return written[0]

    def constant(self, array: np.ndarray) -> str:
        """Add a constant and return its name."""
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def float_output(self, value: onnx.ValueInfoProto) -> str:
        """The tensor of a model's output that is replaced (see `put_behind`), as float32."""
        inner = f"{self.prefix}{value.name}"
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            return inner
        return self.add("Cast", inner, to=onnx.TensorProto.FLOAT)


def put_before(model: onnx.ModelProto, nodes: Nodes, value: onnx.ValueInfoProto) -> onnx.ModelProto:
    """A copy of `model` whose input of `value`'s name is `value`, and which reads the last of `nodes` in its place."""
    composed = _copy(model, nodes)
    graph = composed.graph
    inner = nodes.prefix + value.name
    for known in graph.input:
        if known.name == value.name:
            graph.value_info.append(known)
            known.CopyFrom(value)
    rename(graph, value.name, inner)
    for known in graph.value_info:
        known.name = inner if known.name == value.name else known.name
    nodes.nodes[-1].output[0] = inner
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes.nodes, *old])
    return composed


def put_behind(
    model: onnx.ModelProto, nodes: Nodes, replaced: Sequence[str], values: Sequence[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    """A copy of `model` with the outputs `values` where those called `replaced` were.

    `nodes` read a replaced output as `nodes.prefix` + its name and write the new ones.
    """
    composed = _copy(model, nodes)
    graph = composed.graph
    kept = [value for value in graph.output if value.name not in replaced]
    for value in graph.output:
        if value.name in replaced:
            graph.value_info.append(value)
    for name in replaced:
        rename(graph, name, nodes.prefix + name)
    for known in graph.value_info:
        known.name = nodes.prefix + known.name if known.name in replaced else known.name
    first = min(index for index, value in enumerate(model.graph.output) if value.name in replaced)
    del graph.output[:]
    graph.output.extend([*kept[:first], *values, *kept[first:]])
    graph.node.extend(nodes.nodes)
    return composed


def requested(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """The inputs a request carries, by name: without the weights that older files list as inputs too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {value.name: value for value in model.graph.input if value.name not in weights}


def shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Dimensions of a tensor, None where one is free; empty where nothing is known."""
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def described(value: onnx.ValueInfoProto) -> str:
    """A tensor as error messages show it: `logits: FLOAT[*,1000]`."""
    dims = ",".join("*" if dim is None else str(dim) for dim in shape(value))
    return f"{value.name}: {onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)}[{dims}]"


def demand_opset(model: onnx.ModelProto, least: int, what: str) -> None:
    """Raises ConfigError when the model is written in an opset older than `least`, which `what` needs."""
    have = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    if have < least:
        raise ConfigError(
            f"{what} needs a model of opset {least} or newer, this one has {have}; export it again, or convert "
            f"the file with onnx.version_converter.convert_version(model, {least})"
        )


def _copy(model: onnx.ModelProto, nodes: Nodes) -> onnx.ModelProto:
    composed = onnx.ModelProto()
    composed.CopyFrom(model)
    # Before 4, a constant had to be listed among the inputs.
    composed.ir_version = max(composed.ir_version, 4)
    composed.graph.initializer.extend(nodes.constants)
    return composed


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Every use of tensor `old` in nodes and constants; branches and loop bodies see the names around them."""
    for tensor in graph.initializer:
        tensor.name = new if tensor.name == old else tensor.name
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = new if name == old else name
        for inner in subgraphs(node):
            rename(inner, old, new)
            for value in inner.output:
                value.name = new if value.name == old else value.name
