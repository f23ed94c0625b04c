"""Non-maximum suppression behind a detector: its overlapping boxes become at most `max` detections per image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper
from pydantic import BaseModel, ConfigDict, Field

from enginehouse.contract.errors import ConfigError
from enginehouse.contract.tensors import Tensors
from enginehouse_build.graph.compose import FLOATS, Nodes, demand_opset, described, put_behind, shape
from enginehouse_build.graph.graph import POSTPROCESS

_OPSET = 13
_COUNT, _BOXES, _SCORES, _CLASSES = "num_detections", "detection_boxes", "detection_scores", "detection_classes"


class Nms(BaseModel):
    """Boxes [batch, N, 4] and scores [batch, classes, N], both float, become the best detections of each image.

    Per class, a box that overlaps a better one by more than `iou` is dropped, as is one whose score is not above
    `score`; of what is left, over all classes, the `max` best are returned in falling order of score. In the place of
    the two outputs: `num_detections` int64 [batch, 1], `detection_boxes` float32 [batch, max, 4],
    `detection_scores` float32 [batch, max] and `detection_classes` int64 [batch, max]; past an image's number of
    detections they hold 0, 0 and -1. So the shapes are fixed and rows independent, which ONNX's own list of
    (image, class, box) over the whole batch is not.

    `format` is corners (two opposite ones, x or y first) or centre (x, y, width, height). `boxes` and `scores` name
    the outputs; default: the only one [batch, N, 4] and the only one [batch, classes, N] with the same N.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["nms"] = "nms"
    iou: float = Field(default=0.5, ge=0, le=1)
    score: float = Field(default=0.05, ge=0, lt=1)
    max: int = Field(default=100, ge=1)
    format: Literal["corners", "centre"] = "corners"
    boxes: str | None = None
    scores: str | None = None

    def attach(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of `model` with detections. Raises ConfigError when its outputs are not boxes and scores."""
        demand_opset(model, _OPSET, "nms")
        boxes_value, scores_value = self._values(list(model.graph.output))
        _, classes, number = shape(scores_value)
        if classes is None or number is None:
            raise ConfigError(
                f"--postprocess: nms needs to know the number of classes and boxes; {described(scores_value)} has free "
                "dimensions: fix the size of the images"
            )
        nodes = Nodes(f"{POSTPROCESS}nms/")
        boxes, scores = (nodes.float_output(value) for value in (boxes_value, scores_value))
        best_scores, flat = self._best(nodes, boxes, scores, classes * number)
        found = nodes.add("Greater", best_scores, nodes.constant(np.array(0, np.float32)))
        per_class = nodes.constant(np.array(number, np.int64))
        best_classes = nodes.add("Div", flat, per_class)
        box = nodes.add("Sub", flat, nodes.add("Mul", best_classes, per_class))
        wide = nodes.constant(np.array([2], np.int64))
        # Not GatherElements: behind a Slice, as boxes often are, OpenVINO reads past the Slice and refuses the shapes.
        best_boxes = nodes.add("GatherND", boxes, nodes.add("Unsqueeze", box, wide), batch_dims=1)
        number_found = nodes.add("Cast", found, to=TensorProto.INT64)
        axes = nodes.constant(np.array([1], np.int64))
        nodes.add("ReduceSum", number_found, axes, keepdims=1, outputs=[_COUNT])
        zero, none = nodes.constant(np.array(0, np.float32)), nodes.constant(np.array(-1, np.int64))
        nodes.add("Where", nodes.add("Unsqueeze", found, wide), best_boxes, zero, outputs=[_BOXES])
        nodes.add("Identity", best_scores, outputs=[_SCORES])
        nodes.add("Where", found, best_classes, none, outputs=[_CLASSES])
        kept = min(self.max, classes * number)
        types = {
            _COUNT: (TensorProto.INT64, [1]),
            _BOXES: (TensorProto.FLOAT, [kept, 4]),
            _SCORES: (TensorProto.FLOAT, [kept]),
            _CLASSES: (TensorProto.INT64, [kept]),
        }
        values = [_batched(boxes_value, name, dtype, dims) for name, (dtype, dims) in types.items()]
        return put_behind(model, nodes, [boxes_value.name, scores_value.name], values)

    def reference(self, outputs: Tensors) -> dict[str, np.ndarray]:
        """The original model's `outputs` with detections in the place of boxes and scores, by numpy."""
        names = self._names({name: array.shape for name, array in outputs.items()})
        boxes, scores = (outputs[name].astype(np.float32) for name in names)
        kept = np.zeros_like(scores)
        for image, per_class in enumerate(scores):
            areas = self._corners(boxes[image].astype(np.float64))
            for label, values in enumerate(per_class):
                stay = self._suppressed(areas, values)
                kept[image, label, stay] = values[stay]
        flat = kept.reshape(len(kept), -1)
        best = np.argsort(-flat, axis=1, kind="stable")[:, : self.max]
        best_scores = np.take_along_axis(flat, best, axis=1)
        best_boxes = np.take_along_axis(boxes, (best % scores.shape[2])[..., None], axis=1)
        found = best_scores > 0
        rest = {name: array for name, array in outputs.items() if name not in names}
        return {
            **rest,
            _COUNT: found.sum(axis=1, keepdims=True),
            _BOXES: np.where(found[..., None], best_boxes, np.float32(0)),
            _SCORES: best_scores,
            _CLASSES: np.where(found, best // scores.shape[2], -1),
        }

    def describe(self) -> str:
        """The step in words, for the report."""
        return f"non-maximum suppression (IoU > {self.iou:g}, score > {self.score:g}, the {self.max} best per image)"

    def _best(self, nodes: Nodes, boxes: str, scores: str, candidates: int) -> tuple[str, str]:
        """Scores of the best detections of each image, 0 past the last one, and their places in [classes * N]."""
        selected = nodes.add(
            "NonMaxSuppression",
            boxes,
            scores,
            nodes.constant(np.array(self.max, np.int64)),
            nodes.constant(np.array(self.iou, np.float32)),
            nodes.constant(np.array(self.score, np.float32)),
            center_point_box=int(self.format == "centre"),
        )
        # Back from a list over the whole batch, whose length depends on the data, to a place for every candidate.
        nothing = nodes.add("ConstantOfShape", nodes.add("Shape", scores))
        kept = nodes.add("ScatterND", nothing, selected, nodes.add("GatherND", scores, selected))
        flat = nodes.add("Reshape", kept, nodes.constant(np.array([-1, candidates], np.int64)))
        most = nodes.constant(np.array([min(self.max, candidates)], np.int64))
        names = [f"{nodes.prefix}best_scores", f"{nodes.prefix}best_places"]
        nodes.add("TopK", flat, most, axis=-1, outputs=names)
        return names[0], names[1]

    def _values(self, outputs: list[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
        floats = {value.name: value for value in outputs if value.type.tensor_type.elem_type in FLOATS}
        return [floats[name] for name in self._names({name: shape(value) for name, value in floats.items()})]

    def _names(self, shapes: Mapping[str, tuple[int | None, ...]]) -> tuple[str, str]:
        boxes = [
            name for name, dims in shapes.items() if len(dims) == 3 and dims[2] == 4 and self.boxes in (None, name)
        ]
        number = shapes[boxes[0]][1] if len(boxes) == 1 else None
        scores = [
            name
            for name, dims in shapes.items()
            if name not in boxes and len(dims) == 3 and dims[2] == number and self.scores in (None, name)
        ]
        if len(boxes) != 1 or len(scores) != 1:
            have = "; ".join(f"{name} {['*' if dim is None else dim for dim in dims]}" for name, dims in shapes.items())
            raise ConfigError(
                "--postprocess: nms needs one output [batch, N, 4] of boxes and one [batch, classes, N] of scores; "
                f"the model's float outputs are {have or 'none'}; name them with boxes=NAME,scores=NAME"
            )
        return boxes[0], scores[0]

    def _corners(self, boxes: np.ndarray) -> np.ndarray:
        """[N, 4] as the two smaller and the two larger coordinates."""
        first, second = boxes[:, :2], boxes[:, 2:]
        if self.format == "centre":
            return np.concatenate([first - second / 2, first + second / 2], axis=1)
        return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)

    def _suppressed(self, boxes: np.ndarray, scores: np.ndarray) -> list[int]:
        """Indices of the boxes of one class that stay, best first."""
        left = [int(index) for index in np.argsort(-scores, kind="stable") if scores[index] > self.score]
        stay: list[int] = []
        while left and len(stay) < self.max:
            best, *others = left
            stay.append(best)
            left = [other for other in others if _iou(boxes[best], boxes[other]) <= self.iou]
        return stay


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    both = float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - shared
    return shared / both if both > 0 else 0.0


def _batched(like: onnx.ValueInfoProto, name: str, dtype: int, dims: list[int]) -> onnx.ValueInfoProto:
    """A tensor whose batch dimension is that of `like`."""
    value = helper.make_tensor_value_info(name, dtype, [0, *dims])
    value.type.tensor_type.shape.dim[0].CopyFrom(like.type.tensor_type.shape.dim[0])
    return value
