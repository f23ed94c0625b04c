"""ONNX files that cannot be served, or not as asked: seeded, tiny, each with the pattern of its refusal.

`REFUSED` has a function for each kind, like `SERVED` of `awkward`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from .awkward import cloud, energy, external, matmul
from .graphs import Awkward, Shape, f32, floats, model, node, save


def points(folder: Path) -> Awkward:
    """A free first dimension whose rows depend on each other, and nobody said --no-batch."""
    path = save(folder / "points.onnx", cloud())
    return Awkward(path, floats(points=[-1, 3]), refusal="a row that shares its batch")


def centre(folder: Path) -> Awkward:
    """A free first dimension that the output does not have."""
    nodes = [node("ReduceMean", ["points", "first"], ["y"], keepdims=1)]
    proto = model(nodes, {"points": (f32, ["points", 3])}, {"y": (f32, [1, 3])}, {"first": np.array([0])})
    path = save(folder / "centre.onnx", proto)
    return Awkward(path, floats(points=[-1, 3]), refusal="output 'y' has a fixed batch: .*--no-batch")


def scalar(folder: Path) -> Awkward:
    """A scalar output, and nobody said --no-batch."""
    path = save(folder / "scalar.onnx", energy())
    return Awkward(path, floats(x=[-1, 4]), refusal="output 'energy' is a scalar: .*--no-batch")


def refused(
    folder: Path, name: str, nodes: Sequence[onnx.NodeProto], refusal: str, shape: Shape | None = ("b", 4), **more: Any
) -> Awkward:
    """A model from `x` to `y` that cannot be served."""
    proto = model(nodes, {"x": (f32, shape)}, {"y": (f32, ["b", 4])}, **more)
    return Awkward(save(folder / f"{name}.onnx", proto), floats(x=[-1, 4]), refusal=refusal)


def custom(folder: Path) -> Awkward:
    nodes = [node("Warp", ["x"], ["y"], "warp_1", domain="com.acme")]
    return refused(
        folder, "custom", nodes, r"node 'warp_1' \(com.acme::Warp\) is a custom operator", domains=["com.acme"]
    )


def unknown(folder: Path) -> Awkward:
    return refused(
        folder, "unknown", [node("Warp", ["x"], ["y"], "w")], r"node 'w' \(Warp\) is no operator of ONNX opset 20"
    )


def random(folder: Path) -> Awkward:
    nodes = [node("RandomNormalLike", ["x"], ["noise"], "noise_1", seed=3.0), node("Add", ["x", "noise"], ["y"])]
    return refused(folder, "random", nodes, r"node 'noise_1' \(RandomNormalLike\) draws random numbers")


def dropout(folder: Path) -> Awkward:
    nodes = [node("Dropout", ["x", "", "training"], ["y"])]
    reason = r"the node \(Dropout\) that makes 'y' is in training mode"
    return refused(folder, "dropout", nodes, reason, constants={"training": np.array(True)})


def rankless(folder: Path) -> Awkward:
    reason = "input 'x' has no known number of dimensions; give it a shape"
    return refused(folder, "rankless", [node("Relu", ["x"], ["y"])], reason, None)


def sequence(folder: Path) -> Awkward:
    nodes = [node("SplitToSequence", ["x"], ["parts"], "split_1", axis=1)]
    proto = model(nodes, {"x": (f32, ["b", 4])}, {})
    proto.graph.output.append(helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None))
    reason = r"output 'parts', made by node 'split_1' \(SplitToSequence\), is no named tensor but a sequence"
    return Awkward(save(folder / "sequence.onnx", proto), floats(x=[-1, 4]), refusal=reason)


def truncated(folder: Path) -> Awkward:
    whole = save(folder / "whole.onnx", matmul())
    path = folder / "truncated.onnx"
    path.write_bytes(whole.read_bytes()[:4000])
    return Awkward(path, floats(x=[-1, 64]), refusal="truncated.onnx is not a valid ONNX model")


def weights_cut_short(folder: Path) -> Awkward:
    whole = external(folder)
    data = folder / "external.bin"
    data.write_bytes(data.read_bytes()[:4000])
    return Awkward(whole.path, whole.fresh, refusal="external.onnx is not a valid ONNX model")


def weights_lost(folder: Path) -> Awkward:
    whole = external(folder)
    (folder / "external.bin").unlink()
    return Awkward(whole.path, whole.fresh, refusal="external.onnx is not a valid ONNX model: .*external.bin")


_REFUSED = (
    points, centre, scalar, custom, unknown, random, dropout, rankless, sequence, truncated, weights_cut_short,
    weights_lost,
)  # fmt: skip
REFUSED: Mapping[str, Callable[[Path], Awkward]] = {maker.__name__: maker for maker in _REFUSED}
