"""The largest and least of 64-bit whole numbers, written so that ONNX Runtime finds them.

Its ReduceMax and ReduceMin of INT64 are wrong beyond 32 bits (1.31.1, x86): of 5 or more numbers below 2^33, or of 16
timestamps in milliseconds, the answer may be one that is not the largest. ArgMax and ArgMin are right, and the number
is taken from where they say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import onnx
from onnx import TensorProto, helper, numpy_helper

from enginehouse_build.graph.graph import constants, element_types, graphs

T = TypeVar("T")

#: Names of the nodes and tensors that stand for such a reduction begin so.
PREFIX = "extreme/"
_PLACE_OF = {"ReduceMax": "ArgMax", "ReduceMin": "ArgMin"}
#: Where axes became an input of Squeeze.
_AXES_INPUT = 13


def exact_extremes(proto: onnx.ModelProto) -> int:
    """Rewrite ReduceMax and ReduceMin of INT64 in the graphs of `proto` in place; how many there were.

    What is reduced over axes that are not known in the file, or all axes of a tensor whose rank is not, stays.
    """
    if not any(node.op_type in _PLACE_OF for graph in graphs(proto) for node in graph.node):
        return 0
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except Exception:
        # Then only what inputs and constants are is known.
        inferred = proto
    opset = next((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), _AXES_INPUT)
    own, twins = ([graph for graph in graphs(each) if isinstance(graph, onnx.GraphProto)] for each in (proto, inferred))
    # Names of the graphs around are visible, and no graph has a name of these for something else.
    types, ranks = _merged(map(element_types, twins)), _merged(map(_ranks, twins))
    known = _merged(map(constants, own))
    count = 0
    # Inner ones first: nodes are copied into their new list.
    for graph, twin in reversed(list(zip(own, twins, strict=True))):
        here = types | element_types(twin), ranks | _ranks(twin), known | constants(graph)
        found: list[onnx.NodeProto] = []
        for node in graph.node:
            axes = _axes(node, *here)
            found += _written_out(node, axes, f"{PREFIX}{count}_", opset) if axes else [node]
            count += bool(axes)
        del graph.node[:]
        graph.node.extend(found)
    return count


def _merged(each: Iterable[Mapping[str, T]]) -> dict[str, T]:
    return {name: value for found in each for name, value in found.items()}


def _axes(
    node: onnx.NodeProto, types: Mapping[str, int], ranks: Mapping[str, int], known: Mapping[str, onnx.TensorProto]
) -> Sequence[int]:
    """Over which axes a node reduces that has to be rewritten; none for all others."""
    if node.op_type not in _PLACE_OF or node.domain not in ("", "ai.onnx"):
        return ()
    if TensorProto.INT64 not in (types.get(node.input[0]), types.get(node.output[0])):
        return ()
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in known:
            return ()
        axes = [int(axis) for axis in numpy_helper.to_array(known[node.input[1]]).ravel()]
    else:
        axes = list(attributes["axes"].ints) if "axes" in attributes else []
    if not axes and not ("noop_with_empty_axes" in attributes and attributes["noop_with_empty_axes"].i):
        axes = list(range(ranks.get(node.input[0], 0)))
    return axes


def _written_out(node: onnx.NodeProto, axes: Sequence[int], prefix: str, opset: int) -> list[onnx.NodeProto]:
    made: list[onnx.NodeProto] = []

    def add(op: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = f"{prefix}{len(made)}_{op}"
        made.append(helper.make_node(op, inputs, [output or name], name=name, **attributes))
        return output or name

    keeps = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
    value = node.input[0]
    for at, axis in enumerate(axes):
        place = add(_PLACE_OF[node.op_type], value, axis=axis, keepdims=1)
        is_last = keeps and at == len(axes) - 1
        value = add("GatherElements", value, place, output=node.output[0] if is_last else "", axis=axis)
    if keeps:
        return made
    if opset < _AXES_INPUT:
        add("Squeeze", value, output=node.output[0], axes=list(axes))
    else:
        which = add("Constant", value=helper.make_tensor("axes", TensorProto.INT64, [len(axes)], list(axes)))
        add("Squeeze", value, which, output=node.output[0])
    return made


def _ranks(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.input, *graph.value_info, *graph.output)
    found = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for value in values:
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            found[value.name] = len(kind.shape.dim)
    return found
