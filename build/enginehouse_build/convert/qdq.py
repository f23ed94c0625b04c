"""What is put right in a graph that ONNX Runtime's quantizer has written."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from enginehouse_build.graph.graph import captured, constants, used_domains

_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
_BINARY = ("Add", "Div", "Mul", "Sub")


def spare_others(graph: onnx.GraphProto, chosen: Collection[str]) -> None:
    """Give nodes that compute in fp32 what other such nodes made as it was, not as it was rounded for a layer.

    The quantizer hands the rounded tensor to all its users: the residual stream of a transformer would be rounded at
    each step. What an int8 node made has to stay rounded, or the node could not run in int8.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.name in chosen or node.op_type in _ROUNDING:
            continue
        for at, name in enumerate(node.input):
            original = _rounded_from(name, made_by)
            if original and (original not in made_by or made_by[original].name not in chosen):
                node.input[at] = original


def free_residuals(graph: onnx.GraphProto, convolutions: Collection[str]) -> None:
    """Let one convolution reach each residual Add unquantized, so that TensorRT fuses the Add into it.

    See "Q/DQ placement recommendations" in NVIDIA's "Working with quantized types".
    """
    made_by = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for at, name in enumerate(node.input if node.op_type == "Add" else ()):
            original = _rounded_from(name, made_by)
            if original in made_by and made_by[original].op_type in convolutions:
                node.input[at] = original
                break


def widen_constants(proto: onnx.ModelProto, prefix: str) -> None:
    """Repeat constants per channel along the width, in the nodes of NCHW images whose names begin with `prefix`.

    ONNX Runtime moves the change of layout behind these nodes, because int8 convolutions want channels last, and then
    is 10 times slower at constants of 3 numbers than at rows of them (ResNet-18, 8 images: 4.4 of 26 ms).
    """
    weights = constants(proto.graph)
    widths = {
        value.name: value.type.tensor_type.shape.dim[3].dim_value
        for value in onnx.shape_inference.infer_shapes(proto).graph.value_info
        if len(value.type.tensor_type.shape.dim) == 4
    }
    for node in proto.graph.node:
        width = widths.get(node.output[0], 0)
        for at, name in enumerate(node.input if node.name.startswith(prefix) and node.op_type in _BINARY else ()):
            values = numpy_helper.to_array(weights[name]) if name in weights else np.empty(0)
            if width > 1 and values.ndim == 4 and values.shape[2:] == (1, 1) and values.size > 1:
                wide = np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:3], width)))
                node.input[at] = f"{name}/wide"
                proto.graph.initializer.append(numpy_helper.from_array(wide, node.input[at]))


def unshare_weights(graph: onnx.GraphProto) -> None:
    """Give each layer rounded weights of its own.

    Without VNNI ONNX Runtime (1.31) makes them uint8 under a name that is taken the second time, and loads nothing.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    used: set[str] = set()
    for node in list(graph.node):
        for at, name in enumerate(node.input):
            rounded = made_by.get(name)
            if rounded is None or rounded.input[0] not in weights:
                continue
            if name in used:
                own, suffix = onnx.NodeProto(), f"/of/{node.name}/{at}"
                own.CopyFrom(rounded)
                own.name, own.output[0] = rounded.name + suffix, name + suffix
                for place, constant in enumerate(rounded.input):
                    graph.initializer.add().CopyFrom(weights[constant])
                    graph.initializer[-1].name = own.input[place] = constant + suffix
                # Before the first user of the original, and so before all.
                graph.node.insert(list(graph.node).index(rounded), own)
                node.input[at] = own.output[0]
            used.add(name)


def drop_unused(proto: onnx.ModelProto) -> None:
    """Drop what nothing uses any more (Q/DQ pairs, constants, imported operator domains) and the quantizer's notes."""
    graph = proto.graph
    used = {value.name for value in graph.output}
    for node in reversed(list(graph.node)):
        if node.op_type in _ROUNDING and node.output[0] not in used:
            graph.node.remove(node)
        else:
            used |= set(node.input) | captured(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    domains = used_domains(proto)
    del proto.opset_import[:], proto.metadata_props[:]
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in domains.items())


def _rounded_from(name: str, made_by: Mapping[str, onnx.NodeProto]) -> str:
    """The tensor that was quantized and dequantized again to make tensor `name`, or ""."""
    dequantize = made_by.get(name)
    quantize = made_by.get(dequantize.input[0]) if dequantize and dequantize.op_type == "DequantizeLinear" else None
    return quantize.input[0] if quantize and quantize.op_type == "QuantizeLinear" else ""
