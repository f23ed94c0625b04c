"""How many multiplications each operator of a model takes, which says where its time goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import onnx

from enginehouse.contract.tensors import Tensors
from enginehouse_build.convert.ranges import inside
from enginehouse_build.graph.graph import constants, element_types

#: Operators whose multiplications are counted.
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul", "RNN")
_RECURRENT = ("GRU", "LSTM", "RNN")


def macs(model: Path, request: Tensors) -> Mapping[str, int]:
    """Multiply-accumulates that `request` takes, by name of the nodes outside subgraphs of the ONNX file `model`.

    Raises ExportFailed when the model does not load.
    """
    proto = onnx.shape_inference.infer_shapes(onnx.load(model))
    graph = proto.graph
    types = element_types(graph)
    sizes = {name: tuple(tensor.dims) for name, tensor in constants(graph).items()}
    sizes |= {name: array.shape for name, array in request.items()}
    products = [node for node in graph.node if node.op_type in PRODUCTS]
    wanted = {name for node in products for name in (*node.input[:3], node.output[0]) if name in types}
    sizes |= {name: array.shape for name, array in inside(proto, wanted - sizes.keys())(request).items()}
    return {node.name: _macs(node, sizes) for node in products}


def _macs(node: onnx.NodeProto, sizes: Mapping[str, tuple[int, ...]]) -> int:
    first, second = (sizes.get(name, (0,)) for name in node.input[:2])
    made = math.prod(sizes.get(next(filter(None, node.output), ""), (0,)))
    if node.op_type in _RECURRENT:
        return math.prod(first[:2]) * (math.prod(second) + math.prod(sizes.get(node.input[2], (0,))))
    if node.op_type == "Conv":
        return made * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return made * first[0 if transposed else -1]
