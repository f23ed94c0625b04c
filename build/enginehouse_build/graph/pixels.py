"""Pre-processing of one model's image input, every size known: as nodes of its graph, and by Pillow and numpy.

Resizing is two matrix products with the weights of Pillow's antialiased filters: OpenVINO ignores the attribute
`antialias` of Resize and TensorRT refuses it, while a product is the same everywhere. The crop only takes rows of the
matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from enginehouse_build.graph.compose import Nodes, put_before, requested
from enginehouse_build.graph.graph import PREPROCESS

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, slots=True)
class Axis:
    """Height or width: pixels coming in and after resizing, and which of these are kept. All None where it is free."""

    incoming: int | None
    resized: int | None
    start: int
    kept: int | None

    @property
    def resizes(self) -> bool:
        return self.resized != self.incoming


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """`Preprocess` fitted to a model: see there for the meaning of the fields.

    `input` keeps its name and becomes uint8 of `layout`; the model itself goes on reading `dtype`, NCHW.
    `reverse` swaps red and blue; `mean` and `std` have one value per channel.
    """

    input: str
    dtype: np.dtype
    layout: str
    channels: int
    height: Axis
    width: Axis
    filter: str
    reverse: bool
    scale: float
    mean: np.ndarray
    std: np.ndarray

    def attach(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of `model` that takes pixels."""
        nodes = Nodes(PREPROCESS)
        # TensorRT reads uint8 only to cast it: a Transpose before the Cast fails in its parser.
        pixels = nodes.add("Cast", self.input, to=TensorProto.FLOAT)
        if self.layout == "NHWC":
            pixels = nodes.add("Transpose", pixels, perm=[0, 3, 1, 2])
        pixels = self._sliced(nodes, pixels)
        if self.width.resizes:
            weights = self._weights(self.width)
            pixels = _bounded(nodes, nodes.add("MatMul", pixels, nodes.constant(weights.T.copy())), weights)
        if self.height.resizes:
            weights = self._weights(self.height)
            pixels = _bounded(nodes, nodes.add("MatMul", nodes.constant(weights), pixels), weights)
        pixels = self._normalised(nodes, pixels)
        if self.dtype != np.float32:
            nodes.add("Cast", pixels, to=helper.np_dtype_to_tensor_dtype(self.dtype))
        return put_before(model, nodes, self._value(requested(model)[self.input]))

    def reference(self, images: np.ndarray) -> np.ndarray:
        """What the original model's input should be for uint8 `images`, by Pillow and numpy.

        Computed in float from end to end, so without the rounding to whole levels after each pass of Pillow's 8-bit
        resize, from which it differs by one level of 255 at most.
        """
        planes = images.transpose(0, 3, 1, 2) if self.layout == "NHWC" else images
        pixels = np.stack([[self._resized(plane) for plane in image] for image in planes.astype(np.float32)])
        if self.reverse:
            pixels = pixels[:, ::-1]
        mean, std = (values.reshape(1, -1, 1, 1) for values in (self.mean, self.std))
        return np.ascontiguousarray((pixels * self.scale - mean) / std, dtype=self.dtype)

    def taken(self, images: np.ndarray | None) -> str:
        """What `images` should be, where they are not what `reference` takes, to go on a message; "" where they are."""
        if images is None or (images.dtype == np.uint8 and self._fits(images)):
            return ""
        dims = "height, width, channels" if self.layout == "NHWC" else "channels, height, width"
        wanted = f"; --preprocess takes pixels as they come: uint8, 0 to 255, [rows, {dims}] ({self.layout})"
        if images.dtype != np.uint8:
            wanted += ", before they are scaled and normalised"
        order = (0, 2, 3, 1) if self.layout == "NHWC" else (0, 3, 1, 2)
        if not self._fits(images) and images.ndim == len(order) and self._fits(images.transpose(order)):
            other = "NCHW" if self.layout == "NHWC" else "NHWC"
            wanted += f". These are {other}: give {self.input}.transpose{order}, or build with "
            wanted += f"--preprocess ...,layout={other}"
        return wanted

    def _fits(self, images: np.ndarray) -> bool:
        sides = (self.height.incoming, self.width.incoming)
        dims = (*sides, self.channels) if self.layout == "NHWC" else (self.channels, *sides)
        return images.ndim == 4 and all(want in (None, have) for want, have in zip(dims, images.shape[1:], strict=True))

    def describe(self) -> str:
        """The steps in words, for the report."""
        sides = ["*" if side is None else str(side) for side in (self.height.incoming, self.width.incoming)]
        dims = [*sides, str(self.channels)] if self.layout == "NHWC" else [str(self.channels), *sides]
        steps = [f"{self.input}: uint8 pixels [*,{','.join(dims)}]"]
        if self._resizes:
            steps.append(f"{self.filter} to {self.height.resized}x{self.width.resized}")
        if (self.height.resized, self.width.resized) != (self.height.kept, self.width.kept):
            steps.append(f"centre {self.height.kept}x{self.width.kept}")
        steps += ["bgr"] if self.reverse else []
        steps.append(f"x {self.scale:.6g}")
        if np.any(self.mean != 0) or np.any(self.std != 1):
            mean, std = ("/".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
            steps.append(f"mean {mean}, std {std}")
        return " -> ".join([*steps, f"{self.dtype} NCHW"])

    @property
    def _resizes(self) -> bool:
        return self.height.resizes or self.width.resizes

    def _normalised(self, nodes: Nodes, pixels: str) -> str:
        """Colour order, scale, mean and deviation."""
        factor = (self.scale / self.std).astype(np.float32)
        offset = (-self.mean / self.std).astype(np.float32)
        order = np.arange(self.channels)[:: -1 if self.reverse else 1]
        if self._resizes:
            # OpenVINO fuses what follows a MatMul as if channels were the last axis: with Mul and Add, ours or the
            # model's own, it fails to compile (observed with 2026.4). A convolution of single pixels is not fused.
            weights = np.zeros((self.channels, self.channels, 1, 1), np.float32)
            weights[np.arange(self.channels), order, 0, 0] = factor
            return nodes.add("Conv", pixels, nodes.constant(weights), nodes.constant(offset))
        if self.reverse:
            pixels = nodes.add("Gather", pixels, nodes.constant(order.copy()), axis=1)
        if np.any(factor != 1):
            pixels = nodes.add("Mul", pixels, nodes.constant(factor.reshape(1, -1, 1, 1)))
        if np.any(offset != 0):
            pixels = nodes.add("Add", pixels, nodes.constant(offset.reshape(1, -1, 1, 1)))
        return pixels

    def _sliced(self, nodes: Nodes, pixels: str) -> str:
        """The crop of the axes that no matrix product crops."""
        cropped = [
            (axis.start, axis.start + axis.kept, number)
            for number, axis in ((2, self.height), (3, self.width))
            if axis.kept is not None and not axis.resizes and axis.kept != axis.resized
        ]
        if not cropped:
            return pixels
        return nodes.add(
            "Slice", pixels, *(nodes.constant(np.array(part, np.int64)) for part in zip(*cropped, strict=True))
        )

    def _weights(self, axis: Axis) -> np.ndarray:
        """[kept, incoming] float32: Pillow's own weights, as its answer to each single lit pixel."""
        assert axis.incoming is not None and axis.resized is not None and axis.kept is not None
        lit = Image.fromarray(np.eye(axis.incoming, dtype=np.float32))
        answers = np.asarray(lit.resize((axis.incoming, axis.resized), _FILTERS[self.filter]))
        return answers[axis.start : axis.start + axis.kept].copy()

    def _resized(self, plane: np.ndarray) -> np.ndarray:
        height, width = plane.shape
        for size in (
            (self.width.resized or width, height),
            (self.width.resized or width, self.height.resized or height),
        ):
            plane = np.clip(np.asarray(Image.fromarray(plane).resize(size, _FILTERS[self.filter])), 0, 255)
        rows, columns = (slice(axis.start, axis.kept and axis.start + axis.kept) for axis in (self.height, self.width))
        return plane[rows, columns]

    def _value(self, old: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        sides: list[int | str] = [self.height.incoming or "height", self.width.incoming or "width"]
        dims = [0, *sides, self.channels] if self.layout == "NHWC" else [0, self.channels, *sides]
        value = helper.make_tensor_value_info(self.input, TensorProto.UINT8, dims)
        value.type.tensor_type.shape.dim[0].CopyFrom(old.type.tensor_type.shape.dim[0])
        return value


def _bounded(nodes: Nodes, pixels: str, weights: np.ndarray) -> str:
    """Filters with negative weights overshoot; Pillow cuts that off after each pass."""
    if weights.min() >= 0:
        return pixels
    return nodes.add("Clip", pixels, *(nodes.constant(np.array(bound, np.float32)) for bound in (0, 255)))
