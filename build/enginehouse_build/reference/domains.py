"""Which values an input may hold because the graph looks them up in a table.

Engines differ beyond a table's ends: ONNX Runtime refuses, OpenVINO answers zeros, TensorRT reads whatever is there. So
the range is part of the signature, and checked before any engine is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx

from enginehouse.contract.tensors import Domain, Signature, Tensors, TensorSpec

_LOOKUPS = ("Gather", "GatherElements", "GatherND")
#: What hands on every element of its first input, and nothing else.
_PATH = ("Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose")
#: Indices are of these types. Any other cast on the way (to a float, a byte, a bool) may make a legal index of a value
#: that is none.
_INDICES = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
_WHOLE_NUMBERS = (
    *(onnx.TensorProto.INT8, onnx.TensorProto.INT16, *_INDICES),
    *(onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64),
)


def domains_of(proto: onnx.ModelProto) -> dict[str, Domain]:
    """For each input of whole numbers that indexes constant tables: the values that are in all of them.

    Followed are Gather, GatherElements and GatherND of the main graph that an output depends on, whose indices are the
    input itself but for its shape and a cast to int32 or int64. Of GatherND, whose indices are several numbers each,
    the longest of the dimensions they index counts: a value beyond it is in no table, whichever number it is. So is one
    beyond 32 bits where the graph casts to int32, although ONNX Runtime would look up what the cast leaves of it.
    """
    graph = proto.graph
    tables = _tables(graph)
    # Tensor -> the graph input whose elements it has, all of them and no others.
    origins = {
        value.name: value.name
        for value in graph.input
        if value.name not in tables and value.type.tensor_type.elem_type in _WHOLE_NUMBERS
    }
    found: dict[str, Domain] = {}
    used = _used(graph)
    # The format has nodes come after what they read.
    for node in graph.node:
        if not used & set(node.output) or node.domain not in ("", "ai.onnx"):
            continue
        if _hands_on(node) and node.input[0] in origins:
            origins[node.output[0]] = origins[node.input[0]]
        elif node.op_type in _LOOKUPS and node.input[0] in tables and node.input[1] in origins:
            extent = _extent(node, tables[node.input[0]])
            name = origins[node.input[1]]
            # A table without rows takes no value at all: such a model cannot be asked anything.
            if extent > 0 and (name not in found or found[name].high > extent):
                found[name] = Domain(-extent, extent)
    return found


def without_refused(signature: Signature, source: Callable[[Tensors], object], samples: Tensors) -> Signature:
    """`signature` without the negative numbers of domains that the `source` refuses.

    ONNX counts them from the end of a table, and so does indexing in torch; an embedding of torch raises.
    """

    def narrowed(spec: TensorSpec) -> TensorSpec:
        if spec.domain is None or spec.domain.low >= 0 or spec.dtype.kind != "i" or not samples[spec.name].size:
            return spec
        request = {name: array[:1] if signature.batched else array for name, array in samples.items()}
        if _refuses(source, request, spec.name, 0) or not _refuses(source, request, spec.name, -1):
            return spec
        return replace(spec, domain=Domain(0, spec.domain.high))

    return replace(signature, inputs=tuple(narrowed(spec) for spec in signature.inputs))


def _refuses(source: Callable[[Tensors], object], request: Tensors, name: str, value: int) -> bool:
    """Whether `source` raises for the `request` with `value` as the first number of its input `name`."""
    changed = np.array(request[name])
    changed.flat[0] = value
    try:
        source({**request, name: changed})
    except Exception:
        # A module may raise anything.
        return True
    return False


def _hands_on(node: onnx.NodeProto) -> bool:
    if node.op_type == "Cast":
        return _attribute(node, "to", 0) in _INDICES
    return node.op_type in _PATH


def _extent(node: onnx.NodeProto, shape: tuple[int, ...]) -> int:
    """The length of the table, or of its longest dimension where several are indexed."""
    if node.op_type == "GatherND":
        return max(shape[_attribute(node, "batch_dims", 0) :], default=0)
    return shape[_attribute(node, "axis", 0)] if shape else 0


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _tables(graph: onnx.GraphProto) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the constants: initializers, Constant nodes, and the copies that exporters make of shared weights."""
    tables = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    tables[node.output[0]] = tuple(attribute.t.dims)
        elif node.op_type == "Identity" and node.input[0] in tables:
            tables[node.output[0]] = tables[node.input[0]]
    return tables


def _used(graph: onnx.GraphProto) -> set[str]:
    """Tensors that an output depends on. Engines drop the rest, with whatever it would have refused."""
    used = {output.name for output in graph.output}
    for node in reversed(graph.node):
        if used & set(node.output):
            used |= set(_reads([node]))
    return used


def _reads(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _reads(graph.node)
                yield from (output.name for output in graph.output)
