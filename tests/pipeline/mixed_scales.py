"""Networks whose tensors mix small numbers that matter with large ones, as detectors do, and what they detect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from .graphs import Inputs, f32, i64, model, node, save, weights

SIZE = 16
CLASSES = 4
#: Cells of the feature map that the heads look at.
CELLS = (SIZE // 2) ** 2


@dataclass(frozen=True)
class Mixed:
    """A model at `path`, requests for it, fresh ones, and where in its output something is detected."""

    path: Path
    calibration: Sequence[Inputs]
    fresh: Sequence[Inputs]
    detected: Callable[[np.ndarray], np.ndarray]

    def kept(self, run: Callable[[Inputs], np.ndarray], reference: Callable[[Inputs], np.ndarray]) -> tuple[int, int]:
        """How many of the reference's detections on fresh requests `run` has too, and of how many."""
        found = [(self.detected(run(request)), self.detected(reference(request))) for request in self.fresh]
        return sum(int((got & want).sum()) for got, want in found), sum(int(want.sum()) for _, want in found)


def images(count: int, seed: int) -> list[Inputs]:
    generator = np.random.default_rng(seed)
    return [{"x": generator.standard_normal((4, 3, SIZE, SIZE), f32)} for _ in range(count)]


def mixed(folder: Path, proto: onnx.ModelProto, detected: Callable[[np.ndarray], np.ndarray]) -> Mixed:
    path = save(folder / "mixed.onnx", proto)
    return Mixed(path, images(12, 0), images(6, 1), detected)


def trunk() -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Two convolutions that carry most of the cost; "a" is what the heads see: 24 channels."""
    nodes = [
        node("Conv", ["x", "w1"], ["f1"], name="stem", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["f1"], ["a1"]),
        node("Conv", ["a1", "w2"], ["f2"], name="body", pads=[1] * 4),
        node("Relu", ["f2"], ["a"]),
    ]
    return nodes, {"w1": weights(16, 3, 3, 3) / f32(5), "w2": weights(24, 16, 3, 3) / f32(12)}


def head(outputs: int, scale: float, seed: int) -> np.ndarray:
    return weights(outputs, 24, 1, 1, seed=seed) * f32(scale / 5)


def built(nodes: list[onnx.NodeProto], parts: dict[str, np.ndarray], *shape: int | str) -> onnx.ModelProto:
    return model(nodes, {"x": (f32, ["n", 3, SIZE, SIZE])}, {"y": (f32, ["n", *shape])}, parts)


def above(first: int, threshold: float = 0.5, axis: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """Scores, from index `first` of `axis` on, above the threshold."""
    return lambda y: np.asarray(np.take(y, range(first, y.shape[axis]), axis=axis) > threshold)


def boxes_beside_scores(folder: Path) -> Mixed:
    """One output of boxes in pixels and scores, as YOLO's."""
    nodes, parts = trunk()
    nodes += [
        node("Conv", ["a", "wb", "bb"], ["boxes"]),
        node("Conv", ["a", "wc", "bc"], ["logits"]),
        node("Sigmoid", ["logits"], ["scores"]),
        node("Concat", ["boxes", "scores"], ["both"], name="join", axis=1),
        node("Reshape", ["both", "shape"], ["y"]),
    ]
    parts |= {"wb": head(4, 60, 1), "bb": np.full(4, 320, f32), "wc": head(CLASSES, 4, 2)}
    parts |= {"bc": np.full(CLASSES, -2, f32), "shape": np.array([0, 4 + CLASSES, -1], i64)}
    return mixed(folder, built(nodes, parts, 4 + CLASSES, CELLS), above(4))


def one_head_for_both(folder: Path, scale: float = 300) -> Mixed:
    """One convolution that makes boxes in pixels, of this size, and logits, which are split behind it."""
    nodes, parts = trunk()
    nodes += [
        node("Conv", ["a", "w", "b"], ["raw"], name="head"),
        node("Split", ["raw", "sizes"], ["boxes", "logits"], axis=1),
        node("Sigmoid", ["logits"], ["scores"]),
        node("Concat", ["boxes", "scores"], ["y"], name="join", axis=1),
    ]
    parts |= {"w": np.concatenate([head(4, scale, 1), head(CLASSES, 2, 2)]), "sizes": np.array([4, CLASSES], i64)}
    parts |= {"b": np.concatenate([np.full(4, scale, f32), np.full(CLASSES, -1, f32)])}
    return mixed(folder, built(nodes, parts, 4 + CLASSES, SIZE // 2, SIZE // 2), above(4))


def rare_channel(folder: Path, *, pooled: bool = False) -> Mixed:
    """One channel in the middle that is a thousand times as large as the others and scaled down behind it."""
    nodes, parts = trunk()
    nodes += [
        node("Conv", ["a", "wm"], ["m"], name="middle"),
        node("Relu", ["m"], ["am"]),
        *([node("MaxPool", ["am"], ["pm"], kernel_shape=[2, 2])] if pooled else []),
        node("Conv", ["pm" if pooled else "am", "wh", "bh"], ["logits"], name="head"),
        node("Sigmoid", ["logits"], ["y"]),
    ]
    large = np.ones(8, f32)
    large[5] = 1000
    parts |= {"wm": head(8, 3, 1) * large[:, None, None, None], "bh": np.full(CLASSES, -1, f32)}
    parts |= {"wh": weights(CLASSES, 8, 1, 1, seed=2) / large[:, None, None]}
    size = SIZE // 2 - pooled
    return mixed(folder, built(nodes, parts, CLASSES, size, size), above(0))


def rare_channel_pooled(folder: Path) -> Mixed:
    """The same where something that only moves numbers stands before the layer that needs them."""
    return rare_channel(folder, pooled=True)


def sum_of_unlike(folder: Path) -> Mixed:
    """Boxes and scores in channels of their own that an Add brings together."""
    nodes, parts = trunk()
    nodes += [
        node("Conv", ["a", "wb"], ["boxes"], name="boxes"),
        node("Conv", ["a", "ws"], ["scores"], name="scores"),
        node("Add", ["boxes", "scores"], ["y"], name="sum"),
    ]
    parts |= {"wb": np.concatenate([head(4, 300, 1), np.zeros((CLASSES, 24, 1, 1), f32)])}
    parts |= {"ws": np.concatenate([np.zeros((4, 24, 1, 1), f32), head(CLASSES, 1, 2)])}
    return mixed(folder, built(nodes, parts, 4 + CLASSES, SIZE // 2, SIZE // 2), above(4))


def softmax_beside_regression(folder: Path) -> Mixed:
    """Probabilities beside offsets in pixels, cell by cell, as SSD's."""
    nodes, parts = trunk()
    nodes += [
        node("Conv", ["a", "wb"], ["boxes"]),
        node("Transpose", ["boxes"], ["bt"], perm=[0, 2, 3, 1]),
        node("Reshape", ["bt", "bshape"], ["br"]),
        node("Conv", ["a", "wc"], ["logits"]),
        node("Transpose", ["logits"], ["ct"], perm=[0, 2, 3, 1]),
        node("Reshape", ["ct", "cshape"], ["cr"]),
        node("Softmax", ["cr"], ["scores"], axis=-1),
        node("Concat", ["br", "scores"], ["y"], name="join", axis=2),
    ]
    parts |= {"wb": head(4, 200, 1), "wc": head(CLASSES, 5, 2)}
    parts |= {"bshape": np.array([0, -1, 4], i64), "cshape": np.array([0, -1, CLASSES], i64)}
    return mixed(folder, built(nodes, parts, CELLS, 4 + CLASSES), above(4, axis=2))


def sizes_by_exp(folder: Path) -> Mixed:
    """Centres by a sigmoid, sizes by an exponential times an anchor, an objectness: a head of an older YOLO."""
    nodes, parts = trunk()
    nodes += [
        node("Conv", ["a", "w", "b"], ["raw"], name="head"),
        node("Split", ["raw", "sizes"], ["txy", "twh", "to"], axis=1),
        node("Sigmoid", ["txy"], ["sxy"]),
        node("Mul", ["sxy", "stride"], ["xy"]),
        node("Exp", ["twh"], ["ewh"]),
        node("Mul", ["ewh", "anchor"], ["wh"]),
        node("Sigmoid", ["to"], ["scores"]),
        node("Concat", ["xy", "wh", "scores"], ["y"], name="join", axis=1),
    ]
    parts |= {"w": np.concatenate([head(2, 1, 1), head(2, 2, 2), head(CLASSES, 4, 3)]), "b": np.zeros(4 + CLASSES, f32)}
    parts |= {"stride": np.array(32, f32), "anchor": np.array([116, 90], f32).reshape(1, 2, 1, 1)}
    parts |= {"sizes": np.array([2, 2, CLASSES], i64)}
    return mixed(folder, built(nodes, parts, 4 + CLASSES, SIZE // 2, SIZE // 2), above(4))


def unlike_inputs(folder: Path) -> Mixed:
    """Numbers of a table, an income beside ages and shares, which the first layer weighs by their size."""
    nodes = [
        node("MatMul", ["x", "w1"], ["h1"], name="first"),
        node("Relu", ["h1"], ["a1"]),
        node("MatMul", ["a1", "w2"], ["h2"], name="second"),
        node("Relu", ["h2"], ["a2"]),
        node("MatMul", ["a2", "w3"], ["logits"], name="last"),
        node("Sigmoid", ["logits"], ["y"]),
    ]
    sizes = np.array([1e5, 50, 1, 1, 20, 1, 5, 1], f32)
    parts = {"w1": weights(8, 64) / sizes[:, None], "w2": weights(64, 64) / f32(6), "w3": weights(64, CLASSES) / f32(2)}
    proto = model(nodes, {"x": (f32, ["n", 8])}, {"y": (f32, ["n", CLASSES])}, parts)

    def rows(count: int, seed: int) -> list[Inputs]:
        generator = np.random.default_rng(seed)
        return [{"x": generator.standard_normal((32, 8), f32) * sizes} for _ in range(count)]

    path = save(folder / "mixed.onnx", proto)
    return Mixed(path, rows(12, 0), rows(6, 1), above(0))


def outlying_feature(folder: Path) -> Mixed:
    """A linear layer one of whose features is far larger than the rest, as in the residual stream of a transformer."""
    nodes = [
        node("MatMul", ["x", "w1"], ["h1"], name="first"),
        node("Tanh", ["h1"], ["t1"]),
        node("MatMul", ["t1", "w2"], ["h2"], name="second"),
        node("Mul", ["h2", "large"], ["o"]),
        node("MatMul", ["o", "w3"], ["y"], name="last"),
    ]
    large = np.ones(48, f32)
    large[11] = 2000
    parts = {"w1": weights(8, 96) / f32(3), "w2": weights(96, 48) / f32(9), "large": large}
    parts["w3"] = weights(48, CLASSES) / large[:, None] / f32(4)
    proto = model(nodes, {"x": (f32, ["n", 8])}, {"y": (f32, ["n", CLASSES])}, parts)

    def rows(count: int, seed: int) -> list[Inputs]:
        generator = np.random.default_rng(seed)
        return [{"x": generator.standard_normal((32, 8), f32)} for _ in range(count)]

    path = save(folder / "mixed.onnx", proto)
    return Mixed(path, rows(12, 0), rows(6, 1), above(0, 1.0))


MIXED = [
    boxes_beside_scores,
    one_head_for_both,
    rare_channel,
    rare_channel_pooled,
    sum_of_unlike,
    softmax_beside_regression,
    sizes_by_exp,
    unlike_inputs,
    outlying_feature,
]
