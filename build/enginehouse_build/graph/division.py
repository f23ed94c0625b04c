"""Divisions of whole numbers by -1, written so that no engine divides by it.

The least number of a type has no counterpart: divided by -1 it makes the processor trap, and one request ends ONNX
Runtime's process with all models in it. Where values of a request may bring both, a divisor of -1 becomes 1 and the
dividend changes its sign instead, which wraps as numpy's does. Divisors of 0 stay, for engines to refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from enginehouse_build.graph.graph import captured, constants, element_types, graphs, subgraphs

#: Names of the nodes and tensors that stand for such a division begin so.
PREFIX = "divided/"
#: Narrower numbers are divided as these, and cut to their own size after that.
_SIGNED = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
_DIVISIONS = ("Div", "Mod")
#: Their results are extents, which are far from the least number.
_EXTENTS = frozenset({"Shape", "Size"})
#: Where it began that a constant can be made of a type that is not known.
_CAST_LIKE = 15
#: What ONNX Runtime calls the types that Div and Mod take.
_NAMED = {
    f"tensor({called})": int(kind)
    for called, kind in (
        ("float", onnx.TensorProto.FLOAT),
        ("double", onnx.TensorProto.DOUBLE),
        ("float16", onnx.TensorProto.FLOAT16),
        *((name.lower(), kind) for name, kind in onnx.TensorProto.DataType.items() if "INT" in name),
    )
}
#: What hands on a constant as it is.
_HANDS_ON = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand"})


def guard_divisions(proto: onnx.ModelProto) -> int:
    """Rewrite the Div and Mod nodes of `proto` in place that may divide the least number by -1; how many there were.

    Bodies of If, Loop and Scan and local functions are looked through as well. Answers stay what they were.
    """
    nodes = [node for graph in graphs(proto) for node in graph.node]
    if not any(node.op_type in _DIVISIONS and not node.name.startswith(PREFIX) for node in nodes):
        return 0
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except Exception:
        # Then only what inputs and constants are is known.
        inferred = proto
    writer = _Writer(sum(node.name.startswith(PREFIX) for node in nodes), _opset(proto.opset_import))
    writer.graph(proto.graph, inferred.graph, _of_runtime(proto, inferred), {}, set())
    for function in proto.functions:
        writer.function(function)
    return writer.count


def _of_runtime(proto: onnx.ModelProto, inferred: onnx.ModelProto) -> dict[str, int]:
    """Types of dividends that only ONNX Runtime can tell: the operators that make them are its own."""
    types = element_types(inferred.graph)
    names = {
        node.input[0]
        for node in proto.graph.node
        if node.op_type in _DIVISIONS and not any(types.get(name) for name in (*node.input, *node.output))
    }
    if not names:
        return {}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names))
    try:
        return _types_in_runtime(copy)
    except Exception:
        # It is loaded as it is right after this, and says then what is wrong with it.
        return {}


class _Writer:
    """Rewrites graphs one after the other; `count` says how many divisions it has rewritten."""

    def __init__(self, first: int, opset: int) -> None:
        self.count = 0
        self._first = first
        self._opset = opset

    def graph(
        self,
        graph: onnx.GraphProto,
        inferred: onnx.GraphProto,
        types: Mapping[str, int],
        known: Mapping[str, np.ndarray],
        fixed: Iterable[str],
    ) -> None:
        """`types`, `known` constants and names that are `fixed`, whatever the request, are those of the graph around.

        `inferred` is the same graph with the types that could be told.
        """
        own_types = {**types, **element_types(inferred)}
        own = {**known, **_arrays(constants(graph))}
        still = {*fixed, *own}
        found: list[onnx.NodeProto] = []
        for node, twin in zip(graph.node, inferred.node, strict=True):
            found += self._rewritten(node, own_types, own, still)
            for inner, inner_twin in zip(subgraphs(node), subgraphs(twin), strict=True):
                self.graph(inner, inner_twin, own_types, own, still)
            _hand_on(node, own, still)
        del graph.node[:]
        graph.node.extend(found)

    def function(self, function: onnx.FunctionProto) -> None:
        """The same for the body of a function, whose types depend on who calls it."""
        self._opset, before = _opset(function.opset_import), self._opset
        own = _arrays(constants(function))
        still, found = {*own}, []
        for node in function.node:
            found += self._rewritten(node, {}, own, still)
            for inner in subgraphs(node):
                self.graph(inner, inner, {}, own, still)
            _hand_on(node, own, still)
        del function.node[:]
        function.node.extend(found)
        self._opset = before

    def _rewritten(
        self, node: onnx.NodeProto, types: Mapping[str, int], known: Mapping[str, np.ndarray], still: set[str]
    ) -> list[onnx.NodeProto]:
        if node.op_type not in _DIVISIONS or node.domain not in ("", "ai.onnx") or len(node.input) != 2:
            return [node]
        if node.name.startswith(PREFIX) or not self._may_trap(node, types, known, still):
            return [node]
        self.count += 1
        return _written_out(node, f"{PREFIX}{self._first + self.count}_", types, self._opset)

    def _may_trap(
        self, node: onnx.NodeProto, types: Mapping[str, int], known: Mapping[str, np.ndarray], still: set[str]
    ) -> bool:
        kind = next((types[name] for name in (*node.input, *node.output) if types.get(name)), 0)
        if kind and kind not in _SIGNED:
            return False
        if not kind and self._opset < _CAST_LIKE:
            return False
        dividend, divisor = (known.get(name) for name in node.input)
        if divisor is not None and (divisor.dtype.kind != "i" or not (divisor == -1).any()):
            return False
        if dividend is not None and (
            dividend.dtype.kind != "i" or not (dividend == np.iinfo(dividend.dtype).min).any()
        ):
            return False
        return not all(name in still for name in node.input)


def _written_out(node: onnx.NodeProto, prefix: str, types: Mapping[str, int], opset: int) -> list[onnx.NodeProto]:
    """Nodes that answer as `node` does. -1 itself never is a divisor; nor is it one of unsigned numbers or floats."""
    dividend, divisor = node.input
    kind = next((types[name] for name in (*node.input, *node.output) if types.get(name)), 0)
    made: list[onnx.NodeProto] = []

    def add(op: str, *inputs: str, **attributes: object) -> str:
        name = f"{prefix}{len(made)}_{op}"
        made.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def number(value: int, like: str) -> str:
        if kind:
            tensor = numpy_helper.from_array(np.array(value, helper.tensor_dtype_to_np_dtype(kind)))
            return add("Constant", value=tensor)
        tensor = numpy_helper.from_array(np.array(value, np.int64))
        return add("CastLike", add("Constant", value=tensor), like)

    one, minus = number(1, divisor), number(-1, divisor)
    is_minus = add("Equal", divisor, minus)
    if not kind:
        # What -1 becomes among unsigned numbers is none.
        is_minus = add("And", is_minus, add("Less", divisor, number(0, divisor)))
    harmless = add("Where", is_minus, one, divisor)
    last = onnx.NodeProto()
    last.CopyFrom(node)
    last.name = f"{prefix}{node.name or node.output[0]}"
    last.input[1] = harmless
    if node.op_type == "Mod":
        # Nothing is left of either.
        return [*made, last]
    quotient = f"{prefix}quotient"
    last.output[0] = quotient
    turned = helper.make_node("Mul", [dividend, minus], [f"{prefix}turned"], name=f"{prefix}turned")
    chosen = helper.make_node("Where", [is_minus, turned.output[0], quotient], [node.output[0]], name=f"{prefix}Where")
    return [*made, last, turned, chosen]


def _hand_on(node: onnx.NodeProto, known: dict[str, np.ndarray], still: set[str]) -> None:
    """Note what `node` makes of constants, and what is the same for all values of a request."""
    sources = [name for name in node.input if name]
    if node.op_type in _HANDS_ON and sources and sources[0] in known:
        known.update(dict.fromkeys(node.output, known[sources[0]]))
    elif node.op_type == "Cast" and sources[0] in known:
        to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
        known[node.output[0]] = known[sources[0]].astype(helper.tensor_dtype_to_np_dtype(to))
    if node.op_type in _EXTENTS or all(name in still for name in (*sources, *captured(node))):
        still.update(node.output)


def _arrays(tensors: Mapping[str, onnx.TensorProto]) -> dict[str, np.ndarray]:
    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in tensors.items()
        if tensor.data_type in _SIGNED and tensor.data_location != onnx.TensorProto.EXTERNAL
    }


def _types_in_runtime(proto: onnx.ModelProto) -> dict[str, int]:
    """TensorProto.DataType of each output of `proto`, which need not have one in the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = {output.name: _NAMED.get(output.type, 0) for output in session.get_outputs()}
    return {name: kind for name, kind in found.items() if kind}


def _opset(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    return max((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), default=1)
