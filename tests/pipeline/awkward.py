"""ONNX files as they come in the wild that can be served: seeded, tiny, each with what a build of it needs.

`SERVED` has a function for each kind: `SERVED["tokens"](folder)` writes the file and says the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data

from .graphs import Awkward, Inputs, Shape, f32, floats, i64, model, node, save, values, weights


def several(folder: Path) -> Awkward:
    """Two inputs of different rank, three outputs, one of them integers."""
    nodes = [
        node("Flatten", ["right"], ["flat"]),
        node("Concat", ["left", "flat"], ["joined"], axis=1),
        node("MatMul", ["joined", "w"], ["scores"]),
        node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
    ]
    proto = model(
        nodes,
        {"left": (f32, ["batch", 4]), "right": (f32, ["batch", 3, 2])},
        {"scores": (f32, ["batch", 5]), "best": (i64, ["batch"]), "joined": (f32, ["batch", 10])},
        {"w": weights(10, 5)},
    )
    return Awkward(save(folder / "several.onnx", proto), floats(left=[-1, 4], right=[-1, 3, 2]))


def text_ids(rows: int, seed: int, length: int = 11) -> Inputs:
    generator = np.random.default_rng((seed, rows))
    lengths = generator.integers(1, length + 1, (rows, 1))
    mask = (np.arange(length) < lengths).astype(i64)
    return {"ids": generator.integers(0, 50, (rows, length)) * mask, "mask": mask}


def encoder(batch: int | str) -> onnx.ModelProto:
    """Embedding, heads taken apart and joined, masked mean, a linear layer; the sequence is free."""
    nodes = [
        node("Shape", ["ids"], ["length"], start=1, end=2),
        node("Concat", ["rows", "length", "heads"], ["apart"], axis=0),
        node("Concat", ["rows", "length", "rest"], ["together"], axis=0),
        node("Gather", ["table", "ids"], ["embedded"]),
        node("Reshape", ["embedded", "apart"], ["split"]),
        node("Softmax", ["split"], ["attended"], axis=2),
        node("Reshape", ["attended", "together"], ["words"]),
        node("Cast", ["mask"], ["keep"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["keep", "last"], ["column"]),
        node("Mul", ["words", "column"], ["kept"]),
        node("ReduceSum", ["kept", "axis"], ["total"], keepdims=0),
        node("ReduceSum", ["keep", "axis"], ["count"], keepdims=1),
        node("Div", ["total", "count"], ["mean"]),
        node("MatMul", ["mean", "w"], ["vector"]),
    ]
    return model(
        nodes,
        {"ids": (i64, [batch, "sequence"]), "mask": (i64, [batch, "sequence"])},
        {"vector": (f32, [batch, 4]), "kept": (f32, [batch, "sequence", 6])},
        {
            "table": weights(50, 6),
            "w": weights(6, 4),
            "last": np.array([2]),
            "axis": np.array([1]),
            "rows": np.array([batch if isinstance(batch, int) else 0]),
            "heads": np.array([2, 3]),
            "rest": np.array([-1]),
        },
    )


def tokens(folder: Path) -> Awkward:
    """int64 tokens with a dynamic sequence axis."""
    np.savez(folder / "tokens.npz", **text_ids(16, 1))
    path = save(folder / "tokens.onnx", encoder("batch"))
    return Awkward(path, text_ids, {"samples": folder / "tokens.npz"})


def one_text(folder: Path) -> Awkward:
    """Tokens of one text at a time: a fixed batch beside a free sequence."""
    np.savez(folder / "one_text.npz", **text_ids(16, 1))
    path = save(folder / "one_text.onnx", encoder(1))
    return Awkward(path, text_ids, {"samples": folder / "one_text.npz"})


def halves(folder: Path) -> Awkward:
    """fp16 from end to end."""
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])]
    proto = model(
        nodes,
        {"x": (np.float16, ["n", 8])},
        {"y": (np.float16, ["n", 3])},
        {"w": weights(8, 3, dtype=np.float16)},
    )

    def fresh(rows: int, seed: int) -> Inputs:
        return {"x": np.random.default_rng((seed, rows)).standard_normal((rows, 8)).astype(np.float16)}

    return Awkward(save(folder / "halves.onnx", proto), fresh)


def pixels(folder: Path) -> Awkward:
    """uint8 images with the channels last, as cameras and files have them."""
    nodes = [
        node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        node("Transpose", ["real"], ["planes"], perm=[0, 3, 1, 2]),
        node("Mul", ["planes", "scale"], ["scaled"]),
        node("Conv", ["scaled", "w"], ["features"], kernel_shape=[3, 3], strides=[2, 2]),
        node("GlobalAveragePool", ["features"], ["pooled"]),
        node("Flatten", ["pooled"], ["scores"]),
    ]
    proto = model(
        nodes,
        {"image": (np.uint8, ["batch", 16, 16, 3])},
        {"scores": (f32, ["batch", 5])},
        {"scale": np.array(1 / 255, f32), "w": weights(5, 3, 3, 3)},
    )

    def fresh(rows: int, seed: int) -> Inputs:
        return {"image": np.random.default_rng((seed, rows)).integers(0, 256, (rows, 16, 16, 3)).astype(np.uint8)}

    return Awkward(save(folder / "pixels.onnx", proto), fresh)


def odd_names(folder: Path) -> Awkward:
    """Names as TensorFlow and Caffe2 write them, and a batch that is called like a size."""
    nodes = [node("Gemm", ["input:0", "gpu_0/w"], ["scope/logits:0"], "scope/Gemm:0")]
    proto = model(
        nodes,
        {"input:0": (f32, ["unk__12", 3])},
        {"scope/logits:0": (f32, ["unk__12", 2])},
        {"gpu_0/w": weights(3, 2)},
    )
    return Awkward(save(folder / "odd_names.onnx", proto), floats(**{"input:0": [-1, 3]}))


def negative_batch(folder: Path) -> Awkward:
    """A free batch written as the size -1, as Keras did."""
    nodes = [node("Gemm", ["x", "w"], ["y"])]
    proto = model(nodes, {"x": (f32, [-1, 3])}, {"y": (f32, [-1, 2])}, {"w": weights(3, 2)})
    return Awkward(save(folder / "negative_batch.onnx", proto), floats(x=[-1, 3]))


def matmul() -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    return model(nodes, {"x": (f32, ["b", 64])}, {"y": (f32, ["b", 32])}, {"w": weights(64, 32)})


def external(folder: Path) -> Awkward:
    """Weights in a file of their own beside the model."""
    proto = matmul()
    convert_model_to_external_data(proto, location="external.bin", size_threshold=0)
    return Awkward(save(folder / "external.onnx", proto), floats(x=[-1, 64]))


def old(folder: Path) -> Awkward:
    """Opset 11, format version 3, every weight listed as an input."""
    nodes = [
        node("Conv", ["x", "w"], ["features"], kernel_shape=[3, 3]),
        node("Clip", ["features", "low", "high"], ["clipped"]),
        node("ReduceMean", ["clipped"], ["mean"], axes=[2, 3], keepdims=0),
        node("Dropout", ["mean"], ["same"], ratio=0.5),
        node("Softmax", ["same"], ["chances"]),
    ]
    constants = {"w": weights(4, 2, 3, 3), "low": np.array(0, f32), "high": np.array(6, f32)}
    listed = {name: (f32, array.shape) for name, array in constants.items()}
    proto = model(nodes, {"x": (f32, ["batch", 2, 8, 8]), **listed}, {"chances": (f32, ["batch", 4])}, constants, 11, 3)
    return Awkward(save(folder / "old.onnx", proto), floats(x=[-1, 2, 8, 8]))


def one_image(folder: Path) -> Awkward:
    """Exported for one image: the 1 is baked into Reshape and Resize, and a class token is put beside the patches."""
    nodes = [
        node("Resize", ["x", "", "", "sizes"], ["big"], mode="nearest"),
        node("Conv", ["big", "w"], ["patches"], kernel_shape=[4, 4], strides=[4, 4]),
        node("Reshape", ["patches", "list"], ["listed"]),
        node("Transpose", ["listed"], ["words"], perm=[0, 2, 1]),
        node("Concat", ["token", "words"], ["all"], axis=1),
        node("Mul", ["all", "all"], ["squares"]),
        node("Reshape", ["squares", "flat"], ["flattened"]),
        node("MatMul", ["flattened", "head"], ["y"]),
    ]
    constants = {
        "sizes": np.array([1, 3, 16, 16]),
        "w": weights(6, 3, 4, 4),
        "list": np.array([1, 6, 16]),
        "token": weights(1, 1, 6),
        "flat": np.array([1, -1]),
        "head": weights(102, 5),
    }
    proto = model(nodes, {"x": (f32, [1, 3, 8, 8])}, {"y": (f32, [1, 5])}, constants)
    return Awkward(save(folder / "one_image.onnx", proto), floats(x=[-1, 3, 8, 8]))


def one_scene(folder: Path) -> Awkward:
    """A fixed batch of 1 that cannot be made dynamic: dim 0 is averaged away, which nobody sees with one row."""
    nodes = [node("ReduceMean", ["x", "first"], ["mean"], keepdims=1), node("MatMul", ["mean", "w"], ["y"])]
    constants = {"first": np.array([0]), "w": weights(3, 2)}
    proto = model(nodes, {"x": (f32, [1, 3])}, {"y": (f32, [1, 2])}, constants)
    return Awkward(save(folder / "one_scene.onnx", proto), floats(x=[1, 3]), batched=False)


def cloud() -> onnx.ModelProto:
    """Points around their centre: dim 0 is free, but no batch."""
    nodes = [node("ReduceMean", ["points", "first"], ["centre"], keepdims=1), node("Sub", ["points", "centre"], ["y"])]
    shapes = {"points": (f32, ["points", 3])}, {"y": (f32, ["points", 3])}
    return model(nodes, *shapes, {"first": np.array([0])})


def points_at_once(folder: Path) -> Awkward:
    """The same, with --no-batch: a request is one whole cloud."""
    fresh = floats(points=[9, 3])
    np.savez(folder / "cloud.npz", **fresh(1, 1))
    path = save(folder / "points_at_once.onnx", cloud())
    return Awkward(path, fresh, {"batched": False, "samples": folder / "cloud.npz"}, batched=False)


def energy() -> onnx.ModelProto:
    nodes = [node("Mul", ["x", "x"], ["squares"]), node("ReduceSum", ["squares"], ["energy"], keepdims=0)]
    return model(nodes, {"x": (f32, ["n", 4])}, {"energy": (f32, []), "squares": (f32, ["n", 4])})


def scalar_at_once(folder: Path) -> Awkward:
    fresh = floats(x=[6, 4])
    np.savez(folder / "scalar.npz", **fresh(1, 1))
    path = save(folder / "scalar_at_once.onnx", energy())
    return Awkward(path, fresh, {"batched": False, "samples": folder / "scalar.npz"}, batched=False)


def branches(folder: Path) -> Awkward:
    """An If whose branches say the same in two ways."""
    inner = {
        "then": [node("Mul", ["h", "two"], ["double"], "inner/Mul")],
        "else": [node("Add", ["h", "h"], ["double"], "inner/Add")],
    }
    then, other = (
        helper.make_graph(body, name, [], values({"double": (f32, ["batch", 2])})) for name, body in inner.items()
    )
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Shape", ["x"], ["size"], start=0, end=1),
        node("Greater", ["size", "three"], ["many"]),
        node("Squeeze", ["many"], ["condition"]),
        node("If", ["condition"], ["branch"], then_branch=then, else_branch=other),
        node("Relu", ["branch"], ["y"]),
    ]
    constants = {"w": weights(4, 2), "two": np.array(2, f32), "three": np.array([3])}
    proto = model(nodes, {"x": (f32, ["batch", 4])}, {"y": (f32, ["batch", 2])}, constants)
    return Awkward(save(folder / "branches.onnx", proto), floats(x=[-1, 4]))


def function(folder: Path) -> Awkward:
    """An operator of the writer's own, defined in the file itself."""
    body = [node("Sigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["b"])]
    proto = model(
        [node("MatMul", ["x", "w"], ["h"]), node("Swish", ["h"], ["y"], domain="acme")],
        {"x": (f32, ["batch", 4])},
        {"y": (f32, ["batch", 2])},
        {"w": weights(4, 2)},
        domains=["acme"],
    )
    proto.functions.append(helper.make_function("acme", "Swish", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))
    return Awkward(save(folder / "function.onnx", proto), floats(x=[-1, 4]))


def any_image(folder: Path) -> Awkward:
    """Images of any size: two free dimensions beside the batch."""
    nodes = [
        node("Conv", ["image", "w"], ["features"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["features"], ["pooled"]),
        node("Flatten", ["pooled"], ["y"]),
    ]
    shape = ["batch", 3, "height", "width"]
    proto = model(nodes, {"image": (f32, shape)}, {"y": (f32, ["batch", 4])}, {"w": weights(4, 3, 3, 3)})
    fresh = floats(image=[-1, 3, 12, 20])
    np.savez(folder / "any_image.npz", **fresh(16, 1))
    return Awkward(save(folder / "any_image.onnx", proto), fresh, {"samples": folder / "any_image.npz"})


def large_integers(folder: Path) -> Awkward:
    """int64 past 32 bits, which OpenVINO cuts off: its artifact must not become ready."""
    nodes = [node("Add", ["x", "offset"], ["y"])]
    proto = model(nodes, {"x": (i64, ["batch", 2])}, {"y": (i64, ["batch", 2])}, {"offset": np.array([2**40])})

    def fresh(rows: int, seed: int) -> Inputs:
        return {"x": np.random.default_rng((seed, rows)).integers(0, 1000, (rows, 2))}

    return Awkward(save(folder / "large_integers.onnx", proto), fresh)


def nothing(folder: Path) -> Awkward:
    """One of the outputs is empty."""
    nodes = [node("Slice", ["x", "four", "four", "one"], ["empty"]), node("Relu", ["x"], ["y"])]
    constants = {"four": np.array([4]), "one": np.array([1])}
    outputs: dict[str, tuple[Any, Shape]] = {"y": (f32, ["batch", 4]), "empty": (f32, ["batch", 0])}
    proto = model(nodes, {"x": (f32, ["batch", 4])}, outputs, constants)
    return Awkward(save(folder / "nothing.onnx", proto), floats(x=[-1, 4]))


_SERVED = (
    several, tokens, one_text, halves, pixels, odd_names, negative_batch, external, old, one_image, one_scene,
    points_at_once, scalar_at_once, branches, function, any_image, large_integers, nothing,
)  # fmt: skip
SERVED: Mapping[str, Callable[[Path], Awkward]] = {maker.__name__: maker for maker in _SERVED}
