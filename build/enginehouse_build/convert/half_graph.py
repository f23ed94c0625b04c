"""Rewrites an fp32 ONNX graph so that its operators compute in fp16, where what is known of it allows that.

Written here because the known converters fail on ordinary graphs: onnxconverter-common 1.16 leaves `Cast(to=FLOAT)`,
intermediate outputs and If branches with contradicting types, the one in onnxruntime.transformers fails onnx.checker.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from enginehouse.contract.errors import ConversionFailed
from enginehouse_build.convert.ranges import Range
from enginehouse_build.graph.graph import POSTPROCESS, captured, constants, element_types, subgraphs, tally

LARGEST = float(np.finfo(np.float16).max)
_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
_HALF = "/fp16"
#: Squares and sums leave fp16's range where their inputs and results do not (a variance overflows from 256 on), and
#: running sums and ranges lose whole numbers from 2048 on.
_WIDE = frozenset(
    {"CumSum", "Pow", "Range", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd"}
    | {"ReduceSum", "ReduceSumSquare"}
)
#: They square their input inside, in fp16 on some engines (TensorRT warns of it) whatever ONNX says of them.
_SQUARING = frozenset(
    {"GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization", "LpPool"}
    | {"MeanVarianceNormalization", "RMSNormalization"}
)
#: An activation this close to the end of fp16 on some requests may pass it on others.
_HEADROOM = 2.0
#: fp16 tells whole numbers apart up to here.
_LARGEST_WHOLE = 2048.0


class HalfGraph:
    """Rewrites one model in place.

    A tensor keeps its name in fp32; its fp16 twin is called `<name>/fp16` (`half`, which is longer where the model has
    such names itself). Each node uses the one or the other, and where a tensor is made as one and used as the other
    there is a Cast behind its producer.
    """

    def __init__(self, proto: onnx.ModelProto, seen: Mapping[str, Range], left: Collection[str]) -> None:
        self.left = left
        #: Nodes that compute in fp16, and what is to be said, once it has run.
        self.halved: list[str] = []
        self.remark = ""
        self.graph = proto.graph
        self.opset = next(opset.version for opset in proto.opset_import if opset.domain in ("", "ai.onnx"))
        self.types = element_types(proto.graph)
        self.weights = constants(proto.graph)
        self.types |= {name: tensor.data_type for name, tensor in self.weights.items()}
        self.cut: dict[str, float] = {}
        self.half = _HALF
        while any(name.endswith(self.half) for name in (*self.types, *self.weights)):
            self.half += "_"
        squared = {node.input[0] for node in proto.graph.node if node.op_type in _SQUARING}
        self.wide = {name: found for name, found in seen.items() if _is_wide(found)}
        self.squared = {name for name in squared if name in seen and _overflows(seen[name].magnitude ** 2)}

    def run(self) -> None:
        graph = self.graph
        sizes = self._sizes()
        body = [node for node in graph.node if node.op_type != "Constant"]
        made_half = {node.name: self._half_sides(node) for node in body if self._fits(node, sizes)}
        self.halved = [name for name, (inputs, outputs) in made_half.items() if inputs or outputs]
        if not self.halved:
            raise ConversionFailed(
                f"nothing to convert to fp16: none of the operators ({tally(node.op_type for node in body)}) computes "
                f"in fp32 where fp16 would do{self._about_wide('; ')}"
            )
        kept = [
            node.op_type
            for node in body
            if node.name not in made_half
            and node.name not in self.left
            and not sizes.intersection(node.output)
            and any(self._is_float(name) for name in (*node.input, *node.output))
        ]
        wanted_half = {node.input[at] for node in body for at in made_half.get(node.name, ((), ()))[0]}
        wanted_full = {value.name for value in graph.output}
        for node in body:
            halves = made_half.get(node.name, ((), ()))[0]
            wanted_full |= {name for at, name in enumerate(node.input) if at not in halves} | captured(node)
        nodes: list[onnx.NodeProto] = []
        self._half_weights(wanted_half, wanted_full, nodes)
        nodes += [
            _cast(value.name, value.name + self.half, TensorProto.FLOAT16)
            for value in graph.input
            if value.name in wanted_half and value.name not in self.weights
        ]
        for node in body:
            inputs, outputs = made_half.get(node.name, ((), ()))
            full = [name for at, name in enumerate(node.output) if at not in outputs and name in wanted_half]
            half = [node.output[at] for at in outputs]
            for at in inputs:
                node.input[at] += self.half
            for at in outputs:
                node.output[at] += self.half
            if inputs or outputs:
                self._retype(node)
            nodes.append(node)
            nodes += [_cast(name, name + self.half, TensorProto.FLOAT16) for name in full]
            nodes += [_cast(name + self.half, name, TensorProto.FLOAT) for name in half if name in wanted_full]
        del graph.node[:]
        graph.node.extend(nodes)
        # What was inferred for the fp32 graph no longer holds.
        del graph.value_info[:]
        self.remark = self._remark(kept)

    def _is_float(self, name: str) -> bool:
        return bool(self.types.get(name) == TensorProto.FLOAT)

    def _fits(self, node: onnx.NodeProto, sizes: set[str]) -> bool:
        """Whether `node` may compute in fp16: its definition allows it, and nothing is known against it."""
        if node.name in self.left or node.op_type in _WIDE:
            return False
        if node.domain not in ("", "ai.onnx") or subgraphs(node):
            return False
        if node.op_type not in ("Shape", "Size") and sizes.intersection(node.output):
            return False
        if any(name in self.wide for name in (*node.input, *node.output)):
            return False
        if node.op_type in _SQUARING and node.input[0] in self.squared:
            return False
        if node.name.startswith(POSTPROCESS) or (node.op_type == "ConstantOfShape" and not node.attribute):
            return False
        # A type that inference could not find might be fp32, and then it could not be followed.
        return all(name in self.types for name in (*node.input, *node.output) if name) and not any(
            attribute.name == "dtype" and attribute.i == TensorProto.FLOAT for attribute in node.attribute
        )

    def _half_sides(self, node: onnx.NodeProto) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Positions of the inputs and outputs of `node` that become fp16."""
        schema = onnx.defs.get_schema(node.op_type, self.opset)
        allowed = {
            constraint.type_param_str: "tensor(float16)" in constraint.allowed_type_strs
            for constraint in schema.type_constraints
        }
        return tuple(
            tuple(
                at
                for at, name in enumerate(names)
                # The last formal parameter may be variadic.
                if self._is_float(name) and allowed.get(formal[min(at, len(formal) - 1)].type_str, False)
            )
            for names, formal in ((node.input, schema.inputs), (node.output, schema.outputs))
        )  # type: ignore[return-value]

    def _sizes(self) -> set[str]:
        """Tensors that are computed from shapes alone: as fp16 they would be off by whole elements."""
        sizes: set[str] = set()
        for node in self.graph.node:
            computed = {name for name in node.input if name and name not in self.weights}
            if node.op_type in ("Shape", "Size") or (computed and computed <= sizes):
                sizes |= set(node.output)
        return sizes

    def _half_weights(self, half: set[str], full: set[str], nodes: list[onnx.NodeProto]) -> None:
        """Replace weights by their fp16 twins, keeping those that are used in fp32 too."""
        for node in self.graph.node:
            if node.op_type == "Constant":
                name = node.output[0]
                if name in half and name not in self.weights:
                    nodes += [node, _cast(name, name + self.half, TensorProto.FLOAT16)]
                elif name not in half or name in full:
                    nodes.append(node)
        kept = [tensor for tensor in self.graph.initializer if tensor.name not in half or tensor.name in full]
        twins = [self._twin(name, tensor) for name, tensor in self.weights.items() if name in half]
        listed = {tensor.name for tensor in kept}
        inputs = [value for value in self.graph.input if value.name not in self.weights or value.name in listed]
        del self.graph.initializer[:], self.graph.input[:]
        self.graph.initializer.extend(kept + twins)
        self.graph.input.extend(inputs)

    def _twin(self, name: str, tensor: onnx.TensorProto) -> onnx.TensorProto:
        values = numpy_helper.to_array(tensor)
        finite = values[np.isfinite(values)]
        largest = float(np.abs(finite).max(initial=0.0))
        if largest > LARGEST:
            self.cut[name] = largest
        return numpy_helper.from_array(_rounded(values), name + self.half)

    def _retype(self, node: onnx.NodeProto) -> None:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(self._twin(node.name, attribute.t))

    def _about_wide(self, joint: str) -> str:
        if not self.wide:
            return ""
        name = max(self.wide, key=lambda name: self.wide[name].magnitude)
        largest = f"{self.wide[name].magnitude:.1e} in {name!r}"
        return f"{joint}{len(self.wide)} activations are too large for fp16 on the samples, the largest {largest}"

    def _remark(self, kept: list[str]) -> str:
        remarks = []
        if kept:
            remarks.append(f"{len(kept)} operators stay in fp32: {tally(kept)}")
        if self.wide:
            remarks.append(self._about_wide(""))
        if self.cut:
            name = max(self.cut, key=lambda name: self.cut[name])
            remarks.append(
                f"{len(self.cut)} weights have values beyond fp16's {LARGEST:.0f}, which were cut to it, "
                f"the largest {self.cut[name]:.1e} in {name!r}"
            )
        return "; ".join(remarks)


def _overflows(magnitude: float) -> bool:
    return magnitude > LARGEST / _HEADROOM


def _is_wide(found: Range) -> bool:
    return _overflows(found.magnitude) or (found.is_whole and found.magnitude > _LARGEST_WHOLE)


def _rounded(values: np.ndarray) -> np.ndarray:
    """`values` in fp16: large ones cut, and none that is not zero made zero (an epsilon guards a division)."""
    cut = np.where(np.isfinite(values), np.clip(values, -LARGEST, LARGEST), values)
    tiny = (values != 0) & (np.abs(values) < _SMALLEST)
    return np.asarray(np.where(tiny, np.copysign(_SMALLEST, values), cut).astype(np.float16))


def _cast(name: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [result], name=f"{name}/to/{result}", to=to)
