"""Value guards: requests whose values OpenVINO does not check, although a graph decides places and shapes by them.

ONNX Runtime refuses an id outside of a table, a division by zero or a negative count. OpenVINO's CPU plugin (2026.4.1)
answers something, or writes where it must not. A graph that hands values of a request to such an operand gets a further
output where it would be answered with something, which counts what is wrong (`guard`), and is not run where more harm
can be done (`unsafe`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginehouse.contract.tensors import Signature

#: Operand -> what it says. Each was observed, with values that ONNX Runtime refuses, to end the process, to corrupt its
#: memory or to be answered with nonsense: see `unsafe` in tests/conformance.
_DECIDING: Mapping[str, Mapping[int, str]] = {
    "DFT": {1: "axes", 2: "length"},
    "Gather": {2: "axis"},
    "GatherND": {1: "places"},
    "Loop": {0: "number of turns"},
    "NonMaxSuppression": {2: "number of boxes"},
    "IDFT": {1: "axes", 2: "length"},
    "IRDFT": {1: "axes", 2: "length"},
    "OneHot": {1: "depth"},
    "Pad": {1: "pads in front", 2: "pads behind"},
    "RDFT": {1: "axes", 2: "length"},
    "Range": {2: "step"},
    "ScatterElementsUpdate": {1: "places", 3: "axis"},
    "ScatterUpdate": {1: "places", 2: "axis"},
    "Slice": {3: "steps", 4: "axes"},
    "Squeeze": {1: "axes"},
    "StridedSlice": {3: "steps"},
    "Tile": {1: "repeats"},
    "TopK": {1: "number"},
    "Unsqueeze": {1: "axes"},
}
#: Their outputs hold places in their own inputs (`TopK` has them second), or nothing but extents.
_PLACES = frozenset({"NonMaxSuppression", "NonZero", "ShapeOf", "TopK"})
#: How long their outputs are depends on values.
_AS_LONG_AS_FOUND = frozenset({"NonMaxSuppression", "NonZero", "Unique"})
#: Their other operands decide how long their outputs are.
_AS_LONG_AS_TOLD = frozenset(
    {"Broadcast", "Interpolate", "Pad", "Range", "Reshape", "Slice", "StridedSlice", "VariadicSplit"}
)
_DIVISIONS = frozenset({"Divide", "FloorMod", "Mod"})
#: What hands on whole numbers as they are.
_HANDS_ON = frozenset({"Convert", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_FLOATS = frozenset({"bf16", "f16", "f32"})
_WHOLE = frozenset({"i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"})


@dataclass(frozen=True)
class Guard:
    """One further output of a graph: at `port` it counts what a request makes the node do that it must not.

    `fault` says what that is.
    """

    port: int
    fault: str


def unsafe(graph: Any) -> str:
    """Why `graph`, an `openvino.Model`, must not run, naming the node; empty when it may."""
    return _unsafe(graph, _Values(graph))


def guard(graph: Any, signature: Signature) -> tuple[Guard, ...]:
    """Give `graph` an output for each operator that has to be watched, and tell which they are.

    Lookups by ids that the door checks (`TensorSpec.domain`) are not watched.
    """
    values = _Values(graph)
    checked = {spec.name for spec in signature.inputs if spec.domain is not None}
    guards: list[Guard] = []
    for node in graph.get_ordered_ops():
        kind, name = node.get_type_name(), node.get_friendly_name()
        if kind in ("Gather", "GatherND") and values.decide(node, 1, or_places=True):
            if kind == "Gather" and _is_checked(node.input_value(1), checked):
                continue
            counted = _outside(node) if kind == "Gather" else _outside_nd(node)
            fault = "looks up places that its data does not have"
        elif kind in _DIVISIONS and _type(node.input_value(1)) in _WHOLE and values.decide(node, 1):
            counted, fault = _zeros(node.input_value(1)), "divides whole numbers by zero"
        else:
            continue
        guards.append(Guard(len(graph.outputs), f"{kind} {name!r} {fault}"))
        graph.add_results([_opset().result(counted)])
    return tuple(guards)


class _Values:
    """Which outputs of a graph hold values of a request, and which are as long as values say.

    `counters` are the parameters of a body that count its turns.
    """

    def __init__(self, graph: Any, counters: frozenset[str] = frozenset()) -> None:
        # Of places it matters for some operators whether they were found or come from outside.
        self._given: set[tuple[str, int]] = set()
        self._found: set[tuple[str, int]] = set()
        self._long: set[tuple[str, int]] = set()
        for node in graph.get_ordered_ops():
            kind = node.get_type_name()
            sources = [_key(value) for value in node.input_values()]
            outputs = [(node.get_name(), port) for port in range(node.get_output_size())]
            is_given = kind == "Parameter" and node.get_name() not in counters
            if is_given or (kind not in _PLACES and self._given & set(sources)):
                self._given.update(outputs)
            elif kind == "TopK":
                self._given.update(outputs[:1] if self._given & set(sources) else ())
            if kind in ("NonMaxSuppression", "NonZero", "TopK") or (kind != "ShapeOf" and self._found & set(sources)):
                self._found.update(outputs)
            told = kind in _AS_LONG_AS_TOLD and self._given & set(sources if kind == "Range" else sources[1:])
            if kind in _AS_LONG_AS_FOUND or told or (kind != "ShapeOf" and self._long & set(sources)):
                self._long.update(outputs)

    def decide(self, node: Any, operand: int, *, or_places: bool = False) -> bool:
        """Whether values of a request are in this operand, or with `or_places` places found by them."""
        key = _key(node.input_value(operand))
        return key in self._given or (or_places and key in self._found)

    def vary(self, node: Any) -> bool:
        """Whether the extents of the first operand depend on values."""
        return _key(node.input_value(0)) in self._long


def _unsafe(graph: Any, values: _Values) -> str:
    for node in graph.get_ordered_ops():
        kind, name = node.get_type_name(), node.get_friendly_name()
        if _is_cut(node, values):
            return f"{kind} {name!r} takes FP64 values of a request, which OpenVINO keeps in fp32"
        for operand, what in _DECIDING.get(kind, {}).items():
            if operand < node.get_input_size() and values.decide(node, operand):
                return f"the {what} of {kind} {name!r} come from values of a request, which OpenVINO does not check"
        if kind == "TopK" and values.vary(node) and not values.decide(node, 1) and _is_constant(node.input_value(1)):
            return f"how many {kind} {name!r} can choose from depends on values, and OpenVINO does not check it"
        for body, counters in _bodies(node, values):
            inside = _Values(body, counters)
            if reason := _unsafe(body, inside):
                return reason
            for each in body.get_ordered_ops():
                if each.get_type_name() == "Gather" and inside.decide(each, 1, or_places=True):
                    return f"{kind} {name!r} looks up computed places in its body, which OpenVINO does not check"
    return ""


def _is_cut(node: Any, values: _Values) -> bool:
    """Whether the node needs more digits of a value than OpenVINO keeps."""
    kind = node.get_type_name()
    if kind == "Convert" and _type(node.output(0)) in _FLOATS:
        return False
    for operand, value in enumerate(node.input_values()):
        source = value.get_node()
        is_exact = source.get_type_name() == "Convert" and _type(source.input_value(0)) in _FLOATS
        if _type(value) == "f64" and values.decide(node, operand) and not (kind == "Result" and is_exact):
            return True
    return False


def _bodies(node: Any, values: _Values) -> Iterator[tuple[Any, frozenset[str]]]:
    """The graphs inside of a node, with those of their parameters that count turns, of which the number is known."""
    kind = node.get_type_name()
    if kind == "If":
        yield node.get_then_body(), frozenset()
        yield node.get_else_body(), frozenset()
    elif kind in ("Loop", "TensorIterator"):
        body = node.get_function()
        port = node.get_special_body_ports()[0] if kind == "Loop" and not values.decide(node, 0) else -1
        yield body, frozenset({body.get_parameters()[port].get_name()} if port >= 0 else ())


def _is_checked(value: Any, checked: set[str]) -> bool:
    """Whether these are the numbers of an input that the door checks, and no others."""
    node = value.get_node()
    while node.get_type_name() in _HANDS_ON and _type(node.input_value(0)) in _WHOLE:
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Parameter" and bool(checked & set(node.output(0).get_names()))


def _outside(node: Any) -> Any:
    """How many places are none of what Gather looks in, where they are numbered [-n, n)."""
    extent = _opset().gather(_opset().shape_of(node.input_value(0), "i64"), node.input_value(2), _number(0))
    return _counted(_beyond(node.input_value(1), extent))


def _outside_nd(node: Any) -> Any:
    """The same for GatherND, whose places are rows of a number for each axis."""
    places = node.input_value(1)
    batch = int(node.get_attributes()["batch_dims"])
    length = places.get_partial_shape()[-1].get_length()
    axes = _opset().constant(np.arange(batch, batch + length, dtype=np.int64))
    return _counted(_beyond(places, _opset().gather(_opset().shape_of(node.input_value(0), "i64"), axes, _number(0))))


def _beyond(places: Any, extents: Any) -> Any:
    ops = _opset()
    wide = ops.convert(places, "i64")
    return ops.logical_or(ops.less(wide, ops.negative(extents)), ops.greater_equal(wide, extents))


def _zeros(divisor: Any) -> Any:
    return _counted(_opset().equal(_opset().convert(divisor, "i64"), _number(0)))


def _counted(faults: Any) -> Any:
    """The sum: that of nothing is 0."""
    ops = _opset()
    flat = ops.reshape(ops.convert(faults, "i32"), ops.constant(np.array([-1], np.int64)), False)
    return ops.reduce_sum(flat, ops.constant(np.array([0], np.int64)), False)


def _number(value: int) -> Any:
    return _opset().constant(np.array(value, np.int64))


def _opset() -> Any:
    from openvino import opset13

    return opset13


def _key(value: Any) -> tuple[str, int]:
    return value.get_node().get_name(), value.get_index()


def _type(value: Any) -> str:
    return str(value.get_element_type().get_type_name())


def _is_constant(value: Any) -> bool:
    return bool(value.get_node().get_type_name() == "Constant")
