"""Refuses quantized ONNX models that TensorRT would read as something else than they are.

TensorRT's int8 is symmetric. Given uint8 activations with zero point 0 it takes the numbers for int8 with the same
scale and so clips half of the range, without a word (digits: accuracy 0.997 -> 0.722).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx.inliner
from onnx import TensorProto, numpy_helper

from enginehouse.contract.errors import ConversionFailed
from enginehouse_build.graph.graph import constants, element_types, graphs

_UNSIGNED = frozenset({TensorProto.UINT2, TensorProto.UINT4, TensorProto.UINT8, TensorProto.UINT16})
#: Arithmetic on quantized numbers with zero points of its own, in ONNX and in ONNX Runtime's domain.
_INTEGER_OPS = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
    | {"QAttention", "QGemm"}
)


def check_for_tensorrt(path: Path) -> None:
    """Raise ConversionFailed, naming node, operator and tensor, if the ONNX file at `path` is not symmetric int8.

    Zero points must be constant zeros of a signed type, on every QuantizeLinear and DequantizeLinear wherever it is.
    """
    # Inlined and inferred, every quantized tensor has its type written beside it, also where it is only implied.
    proto = onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(onnx.load(path)))
    types: dict[str, int] = {}
    known: dict[str, onnx.TensorProto] = {}
    for graph in graphs(proto):
        # Branches see the tensors of the graphs around them.
        types |= element_types(graph)
        known |= constants(graph)
        for node in graph.node:
            fault = _fault(node, types, known)
            if fault:
                raise ConversionFailed(
                    f"TensorRT would misread node {node.name or node.output[0]!r} ({node.op_type}): {fault}; "
                    "it knows symmetric int8 only: quantize the fp32 model with signed types and zero points of 0"
                )


def _fault(node: onnx.NodeProto, types: Mapping[str, int], known: Mapping[str, onnx.TensorProto]) -> str:
    if node.op_type in _INTEGER_OPS or node.op_type.startswith("QLinear"):
        return "it computes on quantized numbers itself"
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return ""
    numbers = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
    data_type = types.get(numbers, TensorProto.UNDEFINED)
    if data_type in _UNSIGNED:
        return f"tensor {numbers!r} is {TensorProto.DataType.Name(data_type).lower()}"
    zero_point = node.input[2] if len(node.input) > 2 else ""
    if not zero_point:
        return ""
    if zero_point not in known:
        return f"the zero point {zero_point!r} of tensor {numbers!r} is computed"
    return _fault_of_values(numbers, known[zero_point])


def _fault_of_values(numbers: str, zero_point: onnx.TensorProto) -> str:
    values = numpy_helper.to_array(zero_point).reshape(-1)
    wrong = [(channel, int(value)) for channel, value in enumerate(values) if value != 0]
    if not wrong:
        return ""
    channel, value = wrong[0]
    where = f" in channel {channel}" if len(values) > 1 else ""
    return f"tensor {numbers!r} has zero point {value}{where}"
