"""What is done to outputs before they are sent: `softmax`, `topk:5`, `nms:iou=0.5,score=0.05,max=100`, in the graph."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from enginehouse.contract.errors import ConfigError
from enginehouse.contract.tensors import Tensors
from enginehouse_build.graph.compose import FLOATS, Nodes, demand_opset, described, put_behind, shape
from enginehouse_build.graph.graph import POSTPROCESS
from enginehouse_build.graph.nms import Nms

_OPSET = 11


class _OfOneOutput(BaseModel):
    """Works on the float output called `output`; without a name, on the only one. Classes are the last axis."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str | None = None

    def _value(self, model: onnx.ModelProto) -> onnx.ValueInfoProto:
        outputs = {value.name: value for value in model.graph.output}
        value = outputs[self._name(list(outputs))]
        if value.type.tensor_type.elem_type not in FLOATS or len(shape(value)) < 2:
            raise ConfigError(f"--postprocess: output {described(value)} must be float [batch, ..., classes]")
        demand_opset(model, _OPSET, "post-processing")
        return value

    def _name(self, outputs: list[str]) -> str:
        if self.output is None and len(outputs) == 1:
            return outputs[0]
        if self.output not in outputs:
            what = "more than one output" if self.output is None else f"no output {self.output!r}"
            raise ConfigError(f"--postprocess: the model has {what}; give output=NAME, one of {', '.join(outputs)}")
        return self.output


class Softmax(_OfOneOutput):
    """Probabilities over the last axis; the output keeps its name and becomes float32."""

    kind: Literal["softmax"] = "softmax"

    def attach(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of `model` with probabilities. Raises ConfigError for an output that has none."""
        value = self._value(model)
        nodes = Nodes(f"{POSTPROCESS}softmax/")
        nodes.add("Softmax", nodes.float_output(value), axis=-1, outputs=[value.name])
        return put_behind(model, nodes, [value.name], [_like(value, value.name, TensorProto.FLOAT)])

    def reference(self, outputs: Tensors) -> dict[str, np.ndarray]:
        """The original model's `outputs` with probabilities, by numpy."""
        name = self._name(list(outputs))
        logits = outputs[name].astype(np.float64)
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return {**outputs, name: (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)}

    def describe(self) -> str:
        """The step in words, for the report."""
        return f"softmax of {self.output or 'the output'}"


class TopK(_OfOneOutput):
    """The `k` largest values of the last axis in falling order, and where they were.

    In the place of output NAME: `NAME_scores` (float32) and `NAME_indices` (int64), both [..., k]. Which of two equal
    values comes first is up to the engine.
    """

    kind: Literal["topk"] = "topk"
    k: int = Field(ge=1)

    def attach(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of `model` with the k best. Raises ConfigError for an output that has fewer classes."""
        value = self._value(model)
        classes = shape(value)[-1]
        if classes is not None and classes < self.k:
            raise ConfigError(f"--postprocess: topk:{self.k} is more than there is in {described(value)}; give less")
        scores, indices = _names(value.name)
        nodes = Nodes(f"{POSTPROCESS}topk/")
        most = nodes.constant(np.array([self.k], np.int64))
        nodes.add("TopK", nodes.float_output(value), most, axis=-1, outputs=[scores, indices])
        types = {scores: TensorProto.FLOAT, indices: TensorProto.INT64}
        return put_behind(model, nodes, [value.name], [_like(value, *item, last=self.k) for item in types.items()])

    def reference(self, outputs: Tensors) -> dict[str, np.ndarray]:
        """The original model's `outputs` with the k best in the place of the one they are from, by numpy."""
        name = self._name(list(outputs))
        scores, indices = _names(name)
        values = outputs[name].astype(np.float32)
        best = np.argsort(-values, axis=-1, kind="stable")[..., : self.k]
        rest = {other: array for other, array in outputs.items() if other != name}
        return {**rest, scores: np.take_along_axis(values, best, axis=-1), indices: best.astype(np.int64)}

    def describe(self) -> str:
        """The step in words, for the report."""
        return f"the {self.k} best of {self.output or 'the output'}"


Postprocess: TypeAlias = Annotated[Softmax | TopK | Nms, Field(discriminator="kind")]
#: Model of each kind, and the value that may be given without its name.
_KINDS: dict[str, tuple[type[BaseModel], str | None]] = {
    "softmax": (Softmax, None),
    "topk": (TopK, "k"),
    "nms": (Nms, None),
}


def of(text: str) -> Softmax | TopK | Nms:
    """Read `softmax`, `softmax:output=logits`, `topk:5`, `topk:5,output=logits` or `nms:iou=0.5,score=0.05,max=100`.

    Raises ConfigError naming the value at fault and what would do.
    """
    kind, _, rest = text.partition(":")
    if kind not in _KINDS:
        raise ConfigError(
            f"--postprocess: {kind!r} is not known; give softmax, topk:5 or nms:iou=0.5,score=0.05,max=100"
        )
    model, nameless = _KINDS[kind]
    values: dict[str, Any] = {"kind": kind}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals and nameless is not None:
            key, value = nameless, part
        if key not in model.model_fields or not value:
            known = ", ".join(name for name in model.model_fields if name != "kind")
            raise ConfigError(f"--postprocess: {part!r} is not known to {kind}; give key=value pairs with {known}")
        values[key] = value
    adapter: TypeAdapter[Softmax | TopK | Nms] = TypeAdapter(Postprocess)
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        fault = error.errors()[0]
        shown = "" if fault["type"] == "missing" else f" (got {fault['input']!r})"
        raise ConfigError(f"--postprocess: {kind}, {fault['loc'][-1]}: {fault['msg']}{shown}") from None


def _names(output: str) -> tuple[str, str]:
    return f"{output}_scores", f"{output}_indices"


def _like(value: onnx.ValueInfoProto, name: str, dtype: int, last: int | None = None) -> onnx.ValueInfoProto:
    """A tensor with the dimensions of `value`, the last one replaced by `last`."""
    made = helper.make_tensor_value_info(name, dtype, [0] * len(shape(value)))
    made.type.tensor_type.shape.CopyFrom(value.type.tensor_type.shape)
    if last is not None:
        made.type.tensor_type.shape.dim[-1].dim_value = last
    return made
