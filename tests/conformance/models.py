"""Tiny ONNX models, each with its signature, sample inputs and its own check in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
from numpy.random import Generator
from onnx import TensorProto, helper, numpy_helper

from enginehouse.contract.tensors import Signature, Tensors, TensorSpec

OPSET = 20
_ONNX_OF = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "object": TensorProto.STRING,
}
_RNG = np.random.default_rng(7)
WEIGHT = _RNG.standard_normal((64, 16), dtype=np.float32)
BIAS = _RNG.standard_normal(16, dtype=np.float32)


@dataclass(frozen=True)
class Case:
    """`expected` is the numpy check; `unfit` maps engine kinds that cannot run the model to the reason."""

    name: str
    signature: Signature
    graph: onnx.GraphProto
    sample: Callable[[Generator, int], Tensors]
    expected: Callable[[Tensors], Tensors]
    tolerance: float = 1e-6
    unfit: Mapping[str, str] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        return helper.make_model(self.graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _case(
    name: str,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    sample: Callable[[Generator, int], Tensors],
    expected: Callable[[Tensors], Tensors],
    *,
    batched: bool = True,
    tolerance: float = 1e-6,
    unfit: Mapping[str, str] | None = None,
) -> Case:
    def infos(specs: list[TensorSpec]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                spec.name,
                _ONNX_OF[spec.dtype.name],
                [_dim(spec, axis) for axis in range(len(spec.shape))],
            )
            for spec in specs
        ]

    # The graph lists its outputs the other way round: engines must go by name, not by position.
    graph = helper.make_graph(
        nodes,
        name,
        infos(inputs),
        infos(outputs)[::-1],
        [numpy_helper.from_array(array, constant) for constant, array in constants.items()],
    )
    signature = Signature(tuple(inputs), tuple(outputs), batched)
    return Case(name, signature, graph, sample, expected, tolerance, unfit or {})


def _dim(spec: TensorSpec, axis: int) -> int | str:
    dim = spec.shape[axis]
    return dim if dim is not None else "rows" if axis == 0 else f"{spec.name}_{axis}"


def _spec(name: str, dtype: object, *shape: int | None) -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)  # type: ignore[call-overload]


def _floats(name: str, width: int) -> Callable[[Generator, int], Tensors]:
    return lambda rng, rows: {name: rng.standard_normal((rows, width), dtype=np.float32)}


def _words(rng: Generator, rows: int) -> Tensors:
    return {"x": np.array([[b"caf\xc3\xa9", str(rng.integers(99)).encode()] for _ in range(rows)], dtype=object)}


def _softmax_of_affine(inputs: Tensors) -> Tensors:
    logits = np.maximum(inputs["x"].astype(np.float64) @ WEIGHT + BIAS, 0)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return {"y": (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)}


_ONLY_STRINGS = "strings are for ONNX Runtime on the CPU"

CASES = [
    _case(
        "affine",
        [_spec("x", np.float32, None, 64)],
        [_spec("y", np.float32, None, 16)],
        [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])],
        {"w": WEIGHT, "b": BIAS},
        _floats("x", 64),
        lambda inputs: {"y": inputs["x"] @ WEIGHT + BIAS},
        tolerance=1e-5,
    ),
    _case(
        "classifier",
        [_spec("x", np.float32, None, 64)],
        [_spec("y", np.float32, None, 16)],
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["g"]),
            helper.make_node("Relu", ["g"], ["r"]),
            helper.make_node("Softmax", ["r"], ["y"], axis=1),
        ],
        {"w": WEIGHT, "b": BIAS},
        _floats("x", 64),
        _softmax_of_affine,
        tolerance=1e-5,
    ),
    _case(
        "image_bytes",
        [_spec("image", np.uint8, None, 4, 4, 3)],
        [_spec("scaled", np.float32, None, 4, 4, 3)],
        [
            helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["f", "scale"], ["scaled"]),
        ],
        {"scale": np.array([1 / 255, 2 / 255, 4 / 255], np.float32)},
        lambda rng, rows: {"image": rng.integers(0, 256, (rows, 4, 4, 3), dtype=np.uint8)},
        lambda inputs: {"scaled": inputs["image"] * np.array([1 / 255, 2 / 255, 4 / 255], np.float32)},
    ),
    _case(
        "two_by_two",
        [_spec("b", np.float32, None, 3), _spec("a", np.float32, None, 3)],
        [_spec("difference", np.float32, None, 3), _spec("area", np.float32, None, 1)],
        [
            helper.make_node("Sub", ["a", "b"], ["difference"]),
            helper.make_node("Mul", ["a", "b"], ["m"]),
            helper.make_node("ReduceSum", ["m", "axis"], ["area"], keepdims=1),
        ],
        {"axis": np.array([1], np.int64)},
        lambda rng, rows: _floats("a", 3)(rng, rows) | _floats("b", 3)(rng, rows),
        lambda inputs: {
            "difference": inputs["a"] - inputs["b"],
            "area": (inputs["a"] * inputs["b"]).sum(axis=1, keepdims=True),
        },
    ),
    _case(
        "whole_numbers",
        [_spec("x", np.int64, None, 4)],
        [_spec("y", np.int64, None, 4)],
        [helper.make_node("Mul", ["x", "c"], ["p"]), helper.make_node("Sub", ["p", "c"], ["y"])],
        {"c": np.array([3], np.int64)},
        # Beyond the 24 bits that float32 keeps.
        lambda rng, rows: {"x": rng.integers(-(2**29), 2**29, (rows, 4))},
        lambda inputs: {"y": inputs["x"] * 3 - 3},
        tolerance=0,
    ),
    _case(
        "half",
        [_spec("x", np.float16, None, 5)],
        [_spec("y", np.float16, None, 5)],
        [helper.make_node("Mul", ["x", "c"], ["y"])],
        {"c": np.array([4], np.float16)},
        lambda rng, rows: {"x": rng.standard_normal((rows, 5)).astype(np.float16)},
        lambda inputs: {"y": inputs["x"] * np.float16(4)},
        tolerance=0,
    ),
    _case(
        "brain_float",
        [_spec("x", ml_dtypes.bfloat16, None, 5)],
        [_spec("y", ml_dtypes.bfloat16, None, 5)],
        [
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["f", "c"], ["p"]),
            helper.make_node("Cast", ["p"], ["y"], to=TensorProto.BFLOAT16),
        ],
        {"c": np.array([4], np.float32)},
        lambda rng, rows: {"x": rng.standard_normal((rows, 5)).astype(ml_dtypes.bfloat16)},
        lambda inputs: {"y": (inputs["x"].astype(np.float32) * 4).astype(ml_dtypes.bfloat16)},
        tolerance=0,
    ),
    _case(
        "truth",
        [_spec("x", np.bool_, None, 4), _spec("y", np.bool_, None, 4)],
        [_spec("both", np.bool_, None, 4), _spec("not_x", np.bool_, None, 4)],
        [helper.make_node("And", ["x", "y"], ["both"]), helper.make_node("Not", ["x"], ["not_x"])],
        {},
        lambda rng, rows: {name: rng.integers(0, 2, (rows, 4)).astype(np.bool_) for name in "xy"},
        lambda inputs: {"both": inputs["x"] & inputs["y"], "not_x": ~inputs["x"]},
        tolerance=0,
    ),
    _case(
        "free_length",
        [_spec("x", np.float32, None, None)],
        [_spec("doubled", np.float32, None, None), _spec("total", np.float32, None, 1)],
        [
            helper.make_node("Add", ["x", "x"], ["doubled"]),
            helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=1),
        ],
        {"axis": np.array([1], np.int64)},
        lambda rng, rows: _floats("x", 3 + rows)(rng, rows),
        lambda inputs: {"doubled": inputs["x"] * 2, "total": inputs["x"].sum(axis=1, keepdims=True)},
        unfit={"tensorrt": "the build stage gives only the batch a range"},
    ),
    _case(
        "unbatched",
        [_spec("x", np.float32, 4, 4)],
        [_spec("y", np.float32, 4, 4)],
        [helper.make_node("MatMul", ["x", "x"], ["y"])],
        {},
        lambda rng, rows: {"x": rng.standard_normal((4, 4), dtype=np.float32)},
        lambda inputs: {"y": inputs["x"] @ inputs["x"]},
        batched=False,
        tolerance=1e-5,
    ),
    _case(
        "passed_through",
        [_spec("x", np.float32, None, 4)],
        [_spec("same", np.float32, None, 4), _spec("more", np.float32, None, 4)],
        [helper.make_node("Identity", ["x"], ["same"]), helper.make_node("Add", ["x", "x"], ["more"])],
        {},
        _floats("x", 4),
        lambda inputs: {"same": inputs["x"], "more": inputs["x"] * 2},
    ),
    _case(
        "text",
        [_spec("x", np.object_, None, 2)],
        [_spec("y", np.object_, None, 2)],
        [helper.make_node("StringConcat", ["x", "mark"], ["y"])],
        {"mark": np.array(["!"], dtype=object)},
        _words,
        lambda inputs: {"y": inputs["x"] + b"!"},
        unfit=dict.fromkeys(("openvino-cpu", "onnxruntime-cuda", "tensorrt"), _ONLY_STRINGS),
    ),
]
#: Two free lengths that must agree: no signature can say so, only running them can.
DISAGREEING = [
    _case(
        "pair",
        [_spec("a", np.float32, None, None), _spec("b", np.float32, None, None)],
        [_spec("y", np.float32, None, None)],
        [helper.make_node("Add", ["a", "b"], ["y"])],
        {},
        lambda rng, rows: _floats("a", 4)(rng, rows) | _floats("b", 4)(rng, rows),
        lambda inputs: {"y": inputs["a"] + inputs["b"]},
        unfit={"tensorrt": "the build stage gives only the batch a range"},
    ),
    _case(
        "pair_total",
        [_spec("a", np.float32, 2, None), _spec("b", np.float32, 2, None)],
        [_spec("y", np.float32, 2, 1)],
        [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("ReduceSum", ["s", "axis"], ["y"], keepdims=1)],
        {"axis": np.array([1], np.int64)},
        lambda rng, rows: _floats("a", 4)(rng, 2) | _floats("b", 4)(rng, 2),
        lambda inputs: {"y": (inputs["a"] + inputs["b"]).sum(axis=1, keepdims=True)},
        batched=False,
        unfit={"tensorrt": "the build stage gives only the batch a range"},
    ),
]
BY_NAME = {case.name: case for case in CASES}
