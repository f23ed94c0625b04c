"""What every pass over an ONNX graph needs: its nodes wherever they are, unique names, constants, element types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx

#: Names of the nodes that enginehouse itself puts before and behind a model begin so.
PREPROCESS = "preprocess/"
POSTPROCESS = "postprocess/"


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The branches or the body of an If, Loop or Scan node; empty for all others."""
    found = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found + [graph for attribute in node.attribute for graph in attribute.graphs]


def graphs(proto: onnx.ModelProto) -> Iterator[Any]:
    """The model's graph, those inside its nodes, and the bodies of its functions, outer ones first."""
    found: list[Any] = [proto.graph, *proto.functions]
    while found:
        graph = found.pop(0)
        yield graph
        found += [inner for node in graph.node for inner in subgraphs(node)]


def name_nodes(proto: onnx.ModelProto) -> None:
    """Give every node a name of its own: names are optional in ONNX, but tools take them for keys."""
    taken = {node.name for graph in graphs(proto) for node in graph.node}
    seen: set[str] = set()
    for graph in graphs(proto):
        for node in graph.node:
            if not node.name or node.name in seen:
                base = node.name or f"{node.op_type}_{node.output[0]}"
                number = 0
                while (name := f"{base}_{number}" if number else base) in taken:
                    number += 1
                node.name = name
                taken.add(name)
            seen.add(node.name)


def constants(graph: onnx.GraphProto | onnx.FunctionProto) -> dict[str, onnx.TensorProto]:
    """Tensors of `graph` whose value is in the file, by name; weights that old models list as inputs count."""
    found = {tensor.name: tensor for tensor in getattr(graph, "initializer", ())}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.HasField("t"):
                found[node.output[0]] = attribute.t
    return found


def element_types(graph: onnx.GraphProto) -> dict[str, int]:
    """TensorProto.DataType of each tensor that is typed; run `onnx.shape_inference.infer_shapes` first."""
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.HasField("tensor_type"):
            found[value.name] = value.type.tensor_type.elem_type
    return found


def captured(node: onnx.NodeProto) -> set[str]:
    """Names that the subgraphs of `node` use; those that are not their own come from the graph around it."""
    return {name for graph in _inside(node) for inner in graph.node for name in inner.input} | {
        value.name for graph in _inside(node) for value in graph.output
    }


def tally(op_types: Iterable[str]) -> str:
    """`Conv 20, Gemm 1`: how often each op type occurs, in alphabetical order."""
    counts: dict[str, int] = {}
    for op_type in op_types:
        counts[op_type] = counts.get(op_type, 0) + 1
    return ", ".join(f"{op_type} {count}" for op_type, count in sorted(counts.items()))


def used_domains(proto: onnx.ModelProto) -> Mapping[str, int]:
    """Version of each operator domain that a node or function of the model really uses."""
    used = {node.domain for graph in graphs(proto) for node in graph.node} | {""}
    return {opset.domain: opset.version for opset in proto.opset_import if opset.domain in used}


def _inside(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for graph in subgraphs(node):
        yield graph
        for inner in graph.node:
            yield from _inside(inner)
