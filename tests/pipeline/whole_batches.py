"""Random small graphs over whole numbers, bytes, truth values and text, whose rows depend on each other or do not.

The samples of those that do show nothing of it: they all have the brightest pixel, one length, no end token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper

from .graphs import f32, i64, model, node, values

Nodes: TypeAlias = list[onnx.NodeProto]
Samples: TypeAlias = dict[str, np.ndarray]
WIDTH, ROWS, TABLE, HIDDEN = 8, 24, 40, 4


@dataclass(frozen=True)
class Case:
    """`proto` has the input `x` [n, 8]; `apart` says whether its rows are independent."""

    proto: onnx.ModelProto
    samples: Samples
    apart: bool


def _number(name: str = "x") -> Nodes:
    return [node("Cast", [name], ["f"], to=TensorProto.FLOAT)]


def _by_largest(axes: str) -> Nodes:
    """Divided by the largest value, of the batch without `axes`, or of the row."""
    return [*_number(), node("ReduceMax", ["f", axes], ["m"], keepdims=1), node("Div", ["f", "m"], ["mixed"])]


def _from_least(axes: str) -> Nodes:
    return [*_number(), node("ReduceMin", ["f", axes], ["m"], keepdims=1), node("Sub", ["f", "m"], ["mixed"])]


def _by_span(axes: str) -> Nodes:
    return [
        *_number(),
        node("ReduceMax", ["f", axes], ["high"], keepdims=1),
        node("ReduceMin", ["f", axes], ["low"], keepdims=1),
        node("Sub", ["high", "low"], ["span"]),
        node("Max", ["span", "unit"], ["divisor"]),
        node("Sub", ["f", "low"], ["above"]),
        node("Div", ["above", "divisor"], ["mixed"]),
    ]


def _capped(axes: str) -> Nodes:
    """Scaled by the largest only where that is more than the samples ever have."""
    return [
        *_number(),
        node("ReduceMax", ["f", axes], ["m"], keepdims=1),
        node("Max", ["m", "cap"], ["divisor"]),
        node("Div", ["f", "divisor"], ["mixed"]),
    ]


def _switched(axes: str) -> Nodes:
    """Another formula where any value is the mark, as by an early exit."""
    return [
        *_number(),
        node("Equal", ["x", "mark"], ["is"]),
        node("Cast", ["is"], ["share"], to=TensorProto.FLOAT),
        node("ReduceMax", ["share", axes], ["any"], keepdims=1),
        node("Add", ["f", "any"], ["mixed"]),
    ]


def _trimmed(axes: str) -> Nodes:
    """The mean over as many places as the longest row has."""
    return [
        *_number(),
        node("Greater", ["f", "nought"], ["there"]),
        node("Cast", ["there"], ["ones"], to=TensorProto.FLOAT),
        node("ReduceSum", ["ones", "first"], ["lengths"], keepdims=1),
        node("ReduceMax", ["lengths", axes], ["longest"], keepdims=1),
        node("Max", ["longest", "unit"], ["divisor"]),
        node("Div", ["f", "divisor"], ["mixed"]),
    ]


MIXES: Mapping[str, Callable[[str], Nodes]] = {
    maker.__name__.strip("_"): maker for maker in (_by_largest, _from_least, _by_span, _capped, _switched, _trimmed)
}
#: Which of them can be told from each other in which types.
KINDS: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "bytes": (np.uint8, ("by_largest", "from_least", "by_span", "switched", "trimmed")),
    "short": (np.int16, ("by_largest", "from_least", "by_span", "capped", "switched", "trimmed")),
    "int32": (np.int32, ("by_largest", "from_least", "by_span", "capped", "switched", "trimmed")),
    "int64": (i64, ("by_largest", "from_least", "by_span", "capped", "switched", "trimmed")),
    "bool": (np.bool_, ("by_span", "trimmed", "from_least")),
}
_LARGEST = {"bytes": 255, "bool": 1}


def made(mix: str, kind: str, seed: int, *, apart: bool, rows: int | str = "n") -> Case:
    """A graph of that kind; with `apart` the same per row."""
    dtype, _ = KINDS[kind]
    generator = np.random.default_rng((seed, len(mix), len(kind)))
    largest = _LARGEST.get(kind, 200)
    mark = int(generator.integers(3, 20)) * 2 + 1
    constants = {
        "rowwise": np.array([1]), "whole": np.array([0, 1]), "first": np.array([1]), "unit": np.array(1, f32),
        "nought": np.array(0, f32), "cap": np.array(largest, f32), "mark": np.array(mark).astype(dtype),
        "w": generator.standard_normal((WIDTH, HIDDEN)).astype(f32), "b": generator.standard_normal(HIDDEN).astype(f32),
    }  # fmt: skip
    nodes = [*MIXES[mix]("rowwise" if apart else "whole"), node("Gemm", ["mixed", "w", "b"], ["y"])]
    proto = model(nodes, {"x": (dtype, [rows, WIDTH])}, {"y": (f32, [rows, HIDDEN])}, constants)
    return Case(proto, {"x": _samples(mix, kind, generator, largest)}, apart)


def _samples(mix: str, kind: str, generator: np.random.Generator, largest: int) -> np.ndarray:
    """Even numbers, so that the mark is none, from 2 on; the largest and the least are in every row."""
    dtype, _ = KINDS[kind]
    if kind == "bool":
        ones = np.ones((ROWS, WIDTH), bool)
        if mix != "trimmed":
            ones[:, 1:] = generator.integers(0, 2, (ROWS, WIDTH - 1))
            ones[:, 1] = False
        return ones
    array = generator.integers(1, largest // 2, (ROWS, WIDTH)) * 2
    array[:, 0] = largest
    array[:, 1] = 0 if mix in ("from_least", "by_span") else 2
    return array.astype(dtype)


def looked_up(*, apart: bool, table: int = TABLE) -> Case:
    """Ids of a table; a row with the end token has the whole batch take another branch, or only itself."""
    generator = np.random.default_rng(3)
    end = 2
    branches = {
        f"{name}_branch": helper.make_graph(
            [node("MatMul", ["mean", f"w_{name}"], ["o"])], name, [], values({"o": (f32, ["n", HIDDEN])})
        )
        for name in ("then", "else")
    }
    nodes = [
        node("Gather", ["table", "x"], ["found"]),
        node("ReduceMean", ["found", "first"], ["mean"], keepdims=0),
        node("Equal", ["x", "end"], ["is"]),
        node("Cast", ["is"], ["share"], to=TensorProto.FLOAT),
    ]
    if apart:
        nodes += [
            node("ReduceMax", ["share", "first"], ["any"], keepdims=1),
            node("MatMul", ["mean", "w_then"], ["z"]),
            node("Add", ["z", "any"], ["y"]),
        ]
    else:
        nodes += [
            node("ReduceMax", ["share"], ["any"], keepdims=0),
            node("Cast", ["any"], ["condition"], to=TensorProto.BOOL),
            node("If", ["condition"], ["y"], **branches),
        ]
    constants = {
        "first": np.array([1]), "end": np.array(end),
        **{name: generator.standard_normal(shape).astype(f32)
           for name, shape in (("table", (table, 5)), ("w_then", (5, HIDDEN)), ("w_else", (5, HIDDEN)))},
    }  # fmt: skip
    proto = model(nodes, {"x": (i64, ["n", WIDTH])}, {"y": (f32, ["n", HIDDEN])}, constants)
    return Case(proto, {"x": generator.integers(3, table, (ROWS, WIDTH))}, apart)


def said(*, apart: bool) -> Case:
    """Texts, one of which changes the answers of all, or of its row."""
    generator = np.random.default_rng(4)
    axes = "first" if apart else "whole"
    nodes = [
        node("LabelEncoder", ["x"], ["f"], domain="ai.onnx.ml", keys_strings=["yes", "no", "stop"],
             values_floats=[1.0, 2.0, 3.0], default_float=0.5),
        node("Equal", ["x", "word"], ["is"]),
        node("Cast", ["is"], ["share"], to=TensorProto.FLOAT),
        node("ReduceMax", ["share", axes], ["any"], keepdims=1),
        node("Add", ["f", "any"], ["mixed"]),
        node("MatMul", ["mixed", "w"], ["y"]),
    ]  # fmt: skip
    constants = {"first": np.array([1]), "whole": np.array([0, 1]), "w": np.ones((WIDTH, HIDDEN), f32)}
    proto = model(nodes, {}, {"y": (f32, ["n", HIDDEN])}, constants)
    proto.graph.input.append(helper.make_tensor_value_info("x", TensorProto.STRING, ["n", WIDTH]))
    proto.graph.initializer.append(helper.make_tensor("word", TensorProto.STRING, [1], [b"stop"]))
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    words = generator.choice(["yes", "no"], (ROWS, WIDTH)).astype(object)
    return Case(proto, {"x": words}, apart)
