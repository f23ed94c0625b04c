"""ONNX files that cannot be served, or not as asked: seeded, tiny, each with the pattern of its refusal.

`REFUSED` has a function for each kind, like `SERVED` of `awkward`.
"""

from __future__ import annotations

import functools
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


def random_kinds() -> Mapping[str, Callable[[Path], Awkward]]:
    """Every operator of ONNX that draws random numbers."""
    nodes = {
        "Bernoulli": node("Bernoulli", ["x"], ["noise"], "draw"),
        "Multinomial": node("Multinomial", ["x"], ["noise"], "draw", sample_size=4),
        "RandomNormal": node("RandomNormal", [], ["noise"], "draw", shape=[4]),
        "RandomUniform": node("RandomUniform", [], ["noise"], "draw", shape=[4], seed=1.0),
        "RandomUniformLike": node("RandomUniformLike", ["x"], ["noise"], "draw"),
    }

    def drawn(folder: Path, op: str) -> Awkward:
        cast = node("Cast", ["noise"], ["f"], to=TensorProto.FLOAT)
        made = [nodes[op], cast, node("Add", ["x", "f"], ["y"])]
        return refused(folder, op, made, rf"node 'draw' \({op}\) draws random numbers.*an input of the model")

    return {f"random_{op}": functools.partial(drawn, op=op) for op in nodes}


def trained(folder: Path, name: str, statistics: Sequence[str], opset: int, **attributes: int) -> Awkward:
    """A BatchNormalization that takes the statistics of the batch."""
    given = ["x", "scale", "bias", "mean", "var"]
    nodes = [node("BatchNormalization", given, ["y", *statistics], "norm_1", **attributes)]
    constants = {key: np.ones(4, f32) for key in given[1:]}
    reason = r"node 'norm_1' \(BatchNormalization\) is in training mode: .* the statistics of the batch.*model.eval"
    return refused(folder, name, nodes, reason, constants=constants, opset=opset)


def training_mode(folder: Path) -> Awkward:
    return trained(folder, "training_mode", ["mean_out", "var_out"], 20, training_mode=1)


def training_outputs(folder: Path) -> Awkward:
    """Before opset 14 a node is in training mode that is asked for the statistics as well."""
    return trained(folder, "training_outputs", ["mean_out", "var_out", "saved_mean", "saved_var"], 12)


def rankless(folder: Path) -> Awkward:
    reason = "input 'x' has no known number of dimensions; give it a shape"
    return refused(folder, "rankless", [node("Relu", ["x"], ["y"])], reason, None)


def bfloat16(folder: Path) -> Awkward:
    reason = "input 'x' is bfloat16, which ONNX Runtime neither takes nor gives.*cast it in the file"
    proto = model([node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], {}, {"y": (f32, ["b", 4])})
    proto.graph.input.append(helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["b", 4]))
    return Awkward(save(folder / "bfloat16.onnx", proto), floats(x=[-1, 4]), refusal=reason)


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


def pointer(folder: Path) -> Awkward:
    """What is in the file's place in a repository whose large files were not fetched."""
    path = folder / "pointer.onnx"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 44700\n")
    return Awkward(path, floats(x=[-1, 64]), refusal="pointer.onnx is not a valid ONNX model: it is a Git LFS pointer")


def page(folder: Path) -> Awkward:
    """What is saved when a download asks for a login."""
    path = folder / "page.onnx"
    path.write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    return Awkward(path, floats(x=[-1, 64]), refusal="page.onnx is not a valid ONNX model: it is HTML or XML")


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
    points, centre, scalar, custom, unknown, random, dropout, training_mode, training_outputs, rankless, bfloat16,
    sequence, truncated, pointer, page, weights_cut_short, weights_lost,
)  # fmt: skip
REFUSED: Mapping[str, Callable[[Path], Awkward]] = {maker.__name__: maker for maker in _REFUSED} | random_kinds()
