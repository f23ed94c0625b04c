"""Whether a whole number among the inputs of a graph may become a size, so that a large one would take all memory."""

from __future__ import annotations

import onnx

from enginehouse_build.graph.graph import element_types, subgraphs

_WHOLE_TYPES = frozenset(
    {onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64}
)
#: What may happen to a large whole number without a shape, and so memory, growing with it.
_HARMLESS = frozenset(
    {"Abs", "Add", "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"}
    | {
        "Cast",
        "Clip",
        "Compress",
        "Concat",
        "CumSum",
        "Div",
        "Einsum",
        "Equal",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
    }
    | {
        "Greater",
        "GreaterOrEqual",
        "Identity",
        "Less",
        "LessOrEqual",
        "MatMul",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "NonZero",
    }
    | {"Not", "Or", "Pow", "ScatterElements", "ScatterND", "Shape", "Sign", "Size", "Sub", "Sum", "Transpose", "Where"}
    | {"Unique", "Xor"}
)
#: The same if it is the first input; the others say of what shape the result is.
_HARMLESS_FIRST = frozenset(
    {
        "Expand",
        "OneHot",
        "Pad",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "Reshape",
        "Slice",
        "Split",
    }
    | {"Squeeze", "Tile", "TopK", "Unsqueeze"}
)


def sizing(proto: onnx.ModelProto) -> str:
    """The first node that may make a size of a whole number among the inputs, as `Range 'r'`; "" when none does.

    2^30 of anything would be too much.
    """
    types = element_types(onnx.shape_inference.infer_shapes(proto).graph)
    large = {value.name for value in proto.graph.input if types.get(value.name) in _WHOLE_TYPES}
    for node in proto.graph.node if large else ():
        reached = [at for at, name in enumerate(node.input) if name in large]
        is_harmless = node.op_type in _HARMLESS or (node.op_type in _HARMLESS_FIRST and reached == [0])
        if subgraphs(node) or (reached and not is_harmless):
            return f"{node.op_type} {(node.name or node.output[0])!r}"
        if reached:
            large |= {name for name in node.output if types.get(name, onnx.TensorProto.INT64) in _WHOLE_TYPES}
    return ""
