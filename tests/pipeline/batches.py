"""Random small graphs whose rows depend on each other, or do not, known from how `made` makes them.

A graph is one to three row-wise layers, one thing that mixes rows or only looks as if it did, a layer, and an end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import onnx
from onnx import TensorProto

from .graphs import f32, floats, i64, model, node

Nodes: TypeAlias = list[onnx.NodeProto]
WIDTH = 6


def _mean_of_batch() -> Nodes:
    return [node("ReduceMean", ["h", "zeroth"], ["m"], keepdims=1), node("Sub", ["h", "m"], ["mixed"])]


def _quantized() -> Nodes:
    return [
        node("DynamicQuantizeLinear", ["h"], ["q", "s", "z"]),
        node("DequantizeLinear", ["q", "s", "z"], ["mixed"]),
    ]


def _normalised() -> Nodes:
    return [
        node("ReduceMean", ["h"], ["m"], keepdims=0),
        node("Sub", ["h", "m"], ["centred"]),
        node("Mul", ["centred", "centred"], ["squares"]),
        node("ReduceMean", ["squares"], ["variance"], keepdims=0),
        node("Sqrt", ["variance"], ["deviation"]),
        node("Add", ["deviation", "little"], ["divisor"]),
        node("Div", ["centred", "divisor"], ["mixed"]),
    ]


def _best_row() -> Nodes:
    return [node("TopK", ["h", "one"], ["best", "where"], axis=0), node("Sub", ["h", "best"], ["mixed"])]


def _sum_so_far() -> Nodes:
    return [node("CumSum", ["h", "axis0"], ["mixed"])]


def _causal() -> Nodes:
    """Each step sees the one before it: dim 0 is time, and row 0 never changes."""
    return [
        node("Pad", ["h", "one_before"], ["padded"]),
        node("Slice", ["padded", "zeroth", "minus_one", "zeroth"], ["before"]),
        node("Add", ["h", "before"], ["mixed"]),
    ]


def _attention() -> Nodes:
    return [
        node("Transpose", ["h"], ["t"], perm=[1, 0]),
        node("MatMul", ["h", "t"], ["alike"]),
        node("Softmax", ["alike"], ["share"], axis=1),
        node("MatMul", ["share", "h"], ["mixed"]),
    ]


def _place() -> Nodes:
    """Something is added that depends on which row it is, not on the others."""
    return [node("Mul", ["h", "nought"], ["zeros"]), node("Add", ["zeros", "unit"], ["ones"]),
            node("CumSum", ["ones", "axis0"], ["places"]), node("Add", ["h", "places"], ["mixed"])]  # fmt: skip


def _mean_of_row() -> Nodes:
    return [node("ReduceMean", ["h", "first"], ["m"], keepdims=1), node("Sub", ["h", "m"], ["mixed"])]


def _sum_in_row() -> Nodes:
    return [node("CumSum", ["h", "axis1"], ["mixed"])]


def _best_in_row() -> Nodes:
    return [node("TopK", ["h", "one"], ["best", "where"], axis=1), node("Sub", ["h", "best"], ["mixed"])]


def _one_scale() -> Nodes:
    """Quantized with a scale that was measured before: rows stay apart."""
    return [
        node("QuantizeLinear", ["h", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["mixed"]),
    ]


MIXING: Mapping[str, Callable[[], Nodes]] = {
    maker.__name__.strip("_"): maker
    for maker in (_mean_of_batch, _quantized, _normalised, _best_row, _sum_so_far, _causal, _attention, _place)
}
APART: Mapping[str, Callable[[], Nodes]] = {
    maker.__name__.strip("_"): maker for maker in (_mean_of_row, _sum_in_row, _best_in_row, _one_scale)
}
ENDS = ("scores", "label", "map", "text")


def made(kind: str, end: str, seed: int, rows: int | str = "n") -> onnx.ModelProto:
    """A graph from `x` [rows, 6] to `y`; dim 0 of both is `rows`."""
    generator = np.random.default_rng((seed, len(kind)))
    constants: dict[str, np.ndarray] = {
        "zeroth": np.array([0]), "first": np.array([1]), "one": np.array([1]), "minus_one": np.array([-1]),
        "axis0": np.array(0), "axis1": np.array(1), "little": np.array(1e-6, f32), "one_before": np.array([1, 0, 0, 0]),
        "nought": np.array(0, f32), "unit": np.array(0.5, f32), "scale": np.array(1 / 64, f32),
        "zero": np.array(100, np.uint8),
    }  # fmt: skip
    nodes: Nodes = []
    layers = int(generator.integers(1, 4))
    for layer in range(layers):
        before, after = "x" if layer == 0 else f"a{layer}", "h" if layer == layers - 1 else f"a{layer + 1}"
        constants[f"w{layer}"] = (generator.standard_normal((WIDTH, WIDTH)) / 2).astype(f32)
        constants[f"b{layer}"] = generator.standard_normal(WIDTH).astype(f32)
        kind_of_layer = str(generator.choice(["Relu", "Tanh", "LeakyRelu", "Identity"]))
        nodes += [
            node("Gemm", [before, f"w{layer}", f"b{layer}"], [f"g{layer}"]),
            node(kind_of_layer, [f"g{layer}"], [after]),
        ]
    nodes += (MIXING | APART)[kind]()
    constants["head"] = generator.standard_normal((WIDTH, WIDTH)).astype(f32)
    constants["bias"] = generator.standard_normal(WIDTH).astype(f32)
    nodes.append(node("Gemm", ["mixed", "head", "bias"], ["y" if end == "scores" else "last"]))
    kinds = {"scores": (f32, [rows, WIDTH]), "label": (i64, [rows]), "map": (i64, [rows, WIDTH]), "text": (str, [rows])}
    if end == "label":
        nodes.append(node("ArgMax", ["last"], ["y"], axis=1, keepdims=0))
    elif end == "map":
        constants["hundred"] = np.array(100, f32)
        nodes += [
            node("Mul", ["last", "hundred"], ["large"]),
            node("Round", ["large"], ["whole"]),
            node("Cast", ["whole"], ["y"], to=TensorProto.INT64),
        ]
    elif end == "text":
        names = {"keys_int64s": list(range(WIDTH)), "values_strings": [f"class {at}" for at in range(WIDTH)]}
        nodes += [
            node("ArgMax", ["last"], ["class"], axis=1, keepdims=0),
            node("LabelEncoder", ["class"], ["y"], domain="ai.onnx.ml", **names),
        ]
    dtype, shape = kinds[end]
    proto = model(nodes, {"x": (f32, [rows, WIDTH])}, {} if end == "text" else {"y": (dtype, shape)}, constants)
    if end == "text":
        proto.graph.output.append(onnx.helper.make_tensor_value_info("y", TensorProto.STRING, shape))
        proto.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 2))
    return proto


def samples(seed: int) -> dict[str, np.ndarray]:
    return floats(x=[-1, WIDTH])(16, seed)
