"""Small seeded models with what real ones are made of, and rows as their users would give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime import InferenceSession

f32, i64 = np.float32, np.int64
node = helper.make_node
#: Ids that the encoder's table has; 0 is padding.
VOCABULARY = 60
#: A class that the segmenter finds in few pixels, and what the detector seldom scores above nothing.
RARE = 5


@dataclass(frozen=True)
class Model:
    """`make` is the ONNX model, `rows` are its user's, by input; who has no rows gives `ranges` of free dimensions."""

    make: Callable[[], onnx.ModelProto]
    rows: Callable[[], dict[str, np.ndarray]]
    ranges: Mapping[str, str] = field(default_factory=dict)


def weights(seed: int, *shape: int) -> np.ndarray:
    """Standard normal, and as large as keeps activations about 1."""
    scale = np.sqrt(max(int(np.prod(shape[1:])), 1))
    values: np.ndarray = (np.random.default_rng((seed, *shape)).standard_normal(shape) / scale).astype(f32)
    return values


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Any, Sequence[int | str]]],
    outputs: Mapping[str, tuple[Any, Sequence[int | str]]],
    constants: Mapping[str, np.ndarray],
) -> onnx.ModelProto:
    def values(shapes: Mapping[str, tuple[Any, Sequence[int | str]]]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in shapes.items()
        ]

    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "model", values(inputs), values(outputs), tensors)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def images(rows: int = 48, size: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    """Smooth pictures of blobs, each of its own brightness: not noise, which hides what is shifted by a pixel."""
    generator = np.random.default_rng(seed)
    at = np.arange(size)
    centres = generator.uniform(0, size, (rows, 3, 2, 1, 1))
    widths = generator.uniform(1.5, 5, (rows, 3, 1, 1))
    squares = (at[:, None] - centres[:, :, 0]) ** 2 + (at[None, :] - centres[:, :, 1]) ** 2
    pictures = np.exp(-squares / widths**2) * generator.uniform(0.3, 2.5, (rows, 1, 1, 1))
    return {"x": (pictures + 0.05 * generator.standard_normal(pictures.shape)).astype(f32)}


def classifier() -> onnx.ModelProto:
    """Convolution, batch normalisation, a residual connection, a mean and ten classes."""
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c0", "gain", "shift", "mean", "variance"], ["n0"], name="norm", epsilon=1e-5),
        node("Relu", ["n0"], ["r0"]),
        node("Conv", ["r0", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], name="second"),
        node("Add", ["c1", "r0"], ["sum"]),
        node("Relu", ["sum"], ["r1"]),
        node("GlobalAveragePool", ["r1"], ["pooled"]),
        node("Flatten", ["pooled"], ["flat"]),
        node("Gemm", ["flat", "w2", "b2"], ["scores"]),
    ]
    parts = {"w0": weights(0, 16, 3, 3, 3), "b0": weights(1, 16, 1), "w1": weights(2, 16, 16, 3, 3)}
    parts["b0"] = parts["b0"][:, 0] / 4
    parts |= {"b1": weights(3, 16, 1)[:, 0] / 4, "w2": 4 * weights(4, 16, 10), "b2": weights(5, 10, 1)[:, 0] / 2}
    generator = np.random.default_rng(6)
    parts |= {"gain": generator.uniform(0.5, 1.5, 16).astype(f32), "shift": weights(7, 16, 1)[:, 0] / 4}
    parts |= {"mean": weights(8, 16, 1)[:, 0] / 8, "variance": generator.uniform(0.05, 0.5, 16).astype(f32)}
    shapes = {"x": (f32, ["n", 3, 16, 16])}, {"scores": (f32, ["n", 10])}
    scores = InferenceSession(_model(nodes, *shapes, parts).SerializeToString()).run(None, images())[0]
    # Each class has its share of the rows.
    parts["b2"] = parts["b2"] - scores.mean(axis=0)
    return _model(nodes, *shapes, parts)


def segmenter() -> onnx.ModelProto:
    """Features made twice as large and a class for each pixel: all that is answered is the map."""
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], pads=[1, 1, 1, 1]),
        node("Relu", ["c0"], ["r0"]),
        node("Resize", ["r0", "", "scales"], ["up"], mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Conv", ["up", "w1", "b1"], ["scores"], pads=[1, 1, 1, 1]),
        node("ArgMax", ["scores"], ["map"], axis=1, keepdims=0),
    ]
    bias = weights(13, 6, 1)[:, 0] / 4
    bias[RARE] -= 0.3
    parts = {"w0": weights(10, 12, 3, 3, 3), "w1": weights(12, 6, 12, 3, 3), "b1": bias}
    parts["scales"] = np.array([1, 1, 2, 2], f32)
    return _model(nodes, {"x": (f32, ["n", 3, 16, 16])}, {"map": (i64, ["n", 32, 32])}, parts)


def detector() -> onnx.ModelProto:
    """Boxes in pixels beside scores in one tensor, [row, what, place]; one class is hardly ever there."""
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "boxes_w", "boxes_b"], ["raw_boxes"]),
        node("Mul", ["raw_boxes", "pixels"], ["boxes"]),
        node("Conv", ["r0", "scores_w", "scores_b"], ["logits"]),
        node("Sigmoid", ["logits"], ["chances"]),
        node("Concat", ["boxes", "chances"], ["joined"], axis=1),
        node("Reshape", ["joined", "shape"], ["found"]),
    ]
    rare = np.array([-1.0, -2.0, -9.0], f32)
    parts = {"w0": weights(20, 12, 3, 3, 3), "boxes_w": weights(21, 4, 12, 1, 1), "boxes_b": np.full(4, 0.5, f32)}
    parts |= {"pixels": np.array(320, f32), "scores_w": 4 * weights(22, 3, 12, 1, 1), "scores_b": rare}
    parts["shape"] = np.array([0, 7, -1])
    return _model(nodes, {"x": (f32, ["n", 3, 16, 16])}, {"found": (f32, ["n", 7, 64])}, parts)


def encoder() -> onnx.ModelProto:
    """Tokens, one head of attention that leaves padding out, a normalisation, and a tag for each token."""
    nodes = [
        node("Gather", ["table", "ids"], ["words"]),
        node("Add", ["words", "places"], ["e"]),
        node("MatMul", ["e", "wq"], ["q"]),
        node("MatMul", ["e", "wk"], ["k"]),
        node("MatMul", ["e", "wv"], ["v"]),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["s"]),
        node("Equal", ["ids", "padding"], ["is_padding"]),
        node("Unsqueeze", ["is_padding", "middle"], ["masked"]),
        node("Where", ["masked", "lowest", "s"], ["ms"]),
        node("Softmax", ["ms"], ["p"]),
        node("MatMul", ["p", "v"], ["a"]),
        node("Add", ["a", "e"], ["r"]),
        node("LayerNormalization", ["r", "gain", "shift"], ["n"], name="norm", epsilon=1e-5),
        node("MatMul", ["n", "wo"], ["unbiased"]),
        node("Add", ["unbiased", "bo"], ["scores"]),
        node("ArgMax", ["scores"], ["tags"], axis=2, keepdims=0),
    ]
    parts = {f"w{part}": weights(30 + at, 16, 16) for at, part in enumerate("qkv")}
    parts |= {"table": 0.4 * weights(34, VOCABULARY, 1) * np.ones(16, f32) + weights(35, VOCABULARY, 16)}
    parts |= {"places": weights(36, 10, 16) / 2, "padding": np.array(0, i64), "middle": np.array([1], i64)}
    parts |= {"lowest": np.array(-1e4, f32), "gain": np.ones(16, f32), "shift": weights(37, 16, 1)[:, 0] / 4}
    parts |= {"wo": 2 * weights(38, 16, 5), "bo": weights(39, 5, 1)[:, 0] / 2}
    outputs = {"scores": (f32, ["n", 10, 5]), "tags": (i64, ["n", 10])}
    return _model(nodes, {"ids": (i64, ["n", 10])}, outputs, parts)


def texts(rows: int = 64) -> dict[str, np.ndarray]:
    """Common words often and rare ones seldom, with padding behind; the last tenth of the vocabulary never."""
    generator = np.random.default_rng(1)
    common = (1 + (VOCABULARY * 0.9 - 1) * generator.random((rows, 10)) ** 2).astype(i64)
    return {"ids": common * (np.arange(10) < generator.integers(4, 11, (rows, 1)))}


def tabular() -> onnx.ModelProto:
    """Missing values (NaN) are replaced by the mean of their column; three classes, by name."""
    nodes = [
        node("IsNaN", ["x"], ["missing"]),
        node("Where", ["missing", "means", "x"], ["whole"]),
        node("MatMul", ["whole", "w0"], ["h"]),
        node("Tanh", ["h"], ["t"]),
        node("MatMul", ["t", "w1"], ["scores"]),
        node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
    ]
    parts = {"means": np.array([[2.0, -1, 3, 0.5, -2, 1]], f32), "w0": weights(40, 6, 12), "w1": weights(41, 12, 3)}
    outputs = {"scores": (f32, ["n", 3]), "best": (i64, ["n"])}
    return _model(nodes, {"x": (f32, ["n", 6])}, outputs, parts)


def columns(rows: int = 64) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(2).normal([2, -1, 3, 0.5, -2, 1], 1.5, (rows, 6)).astype(f32)}


def labeller() -> onnx.ModelProto:
    """All that is answered is the name of the best of six classes."""
    names = ["cat", "dog", "hen", "owl", "pig", "rat"]
    nodes = [
        node("MatMul", ["x", "w"], ["scores"]),
        node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node(
            "LabelEncoder", ["best"], ["label"], "names", domain="ai.onnx.ml",
            keys_int64s=list(range(6)), values_strings=names,
        ),
    ]  # fmt: skip
    return _model(nodes, {"x": (f32, ["n", 6])}, {"label": (object, ["n"])}, {"w": weights(50, 6, 6)})


def counter() -> onnx.ModelProto:
    """Whole numbers of any size: ids made of two columns."""
    nodes = [node("Mul", ["id", "columns"], ["wide"]), node("Add", ["wide", "offset"], ["key"])]
    parts = {"columns": np.array([[4096, 1, 65536]], i64), "offset": np.array([[7, 0, 3]], i64)}
    return _model(nodes, {"id": (i64, ["n", 3])}, {"key": (i64, ["n", 3])}, parts)


def pooler() -> onnx.ModelProto:
    """Pictures of any size, halved with what is left over at their edges; its user's all have one size."""
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], pads=[1, 1, 1, 1]),
        node("MaxPool", ["c0"], ["halved"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("GlobalAveragePool", ["halved"], ["pooled"]),
        node("Flatten", ["pooled"], ["y"]),
    ]
    shape = ["n", 3, "height", "width"]
    return _model(nodes, {"x": (f32, shape)}, {"y": (f32, ["n", 6])}, {"w0": weights(60, 6, 3, 3, 3)})


def ids(rows: int = 64) -> dict[str, np.ndarray]:
    return {"id": np.random.default_rng(3).integers(0, 30_000, (rows, 3))}


MODELS: Mapping[str, Model] = {
    "classifier": Model(classifier, images),
    "segmenter": Model(segmenter, images),
    "detector": Model(detector, images),
    "encoder": Model(encoder, texts),
    "tabular": Model(tabular, columns),
    "labeller": Model(labeller, columns),
    "counter": Model(counter, ids),
    "pooler": Model(pooler, images, {"height": "8:16:24", "width": "8:16:24"}),
}
