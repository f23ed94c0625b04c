"""Inputs that samples rarely have and engines silently answer otherwise: NaN, infinities, whole numbers beyond 2^24.

OpenVINO's Relu makes 0 of NaN, and it compares whole numbers in fp32, so that neighbouring ids are one and the same.
What differs is recorded with the artifact; the gate is not failed by it, because the samples may be all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from enginehouse.contract.errors import EnginehouseError, ParityFailed
from enginehouse.contract.manifest import InputBound
from enginehouse.contract.parity import Limits, compare, first_difference
from enginehouse.contract.tensors import Tensors
from enginehouse_build.graph.graph import element_types, subgraphs
from enginehouse_build.reference.onnx import plain_session

Run = Callable[[Tensors], Tensors]

#: Where neighbours begin to share a number of fp32, and far beyond that.
_BASES = (2**24, 2**30)
SEED = 0
_WHOLE = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64})
#: What may happen to a large whole number without a shape, and so memory, growing with it.
_HARMLESS = frozenset(
    {"Abs", "Add", "And", "Cast", "Concat", "Div", "Equal", "Flatten", "Gather", "GatherElements", "Greater"}
    | {"GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Shape", "Sign"}
    | {"Sub", "Sum", "Transpose", "Where"}
)
#: The same if it is the first input; the others say of what shape the result is.
_HARMLESS_FIRST = frozenset({"Expand", "Reshape", "Slice", "Squeeze", "Tile", "Unsqueeze"})
BOUNDS: Mapping[InputBound, str] = {
    "finite": "finite inputs only: it answers NaN or infinite inputs otherwise than the reference",
    "below-2^24": "ids below 2^24 only: it tells larger whole numbers apart otherwise than the reference",
}


def bounds(infer: Run, model: Path, request: Tensors, limits: Limits, threads: int) -> tuple[InputBound, ...]:
    """What inputs have to be for `infer` to answer as the reference in the ONNX file `model`; found with `request`.

    A probe that either of them refuses is no evidence: a refusal is not silent.
    """
    reference = plain_session(model, threads)
    found: list[InputBound] = []
    if any(
        _differs(infer, reference, probe, lambda got, want: _same_values(got, want, limits))
        for probe in _not_finite(request)
    ):
        found.append("finite")
    if takes_large_numbers(onnx.load(model, load_external_data=False)) and any(
        _differs(infer, reference, probe, lambda got, want: _same_answer(got, want, limits))
        for probe in _neighbours(request)
    ):
        found.append("below-2^24")
    return tuple(found)


def _differs(infer: Run, reference: Run, probe: Tensors, same: Callable[[Tensors, Tensors], bool]) -> bool:
    try:
        want = reference(probe)
    except Exception:
        # ONNX Runtime raises classes of its own, say for an id beyond its table.
        return False
    try:
        return not same(infer(probe), want)
    except EnginehouseError:
        return False


def _not_finite(request: Tensors) -> Iterator[Tensors]:
    """`request` with a NaN, or an infinity, among the values of one of its inputs."""
    for name, array in request.items():
        if array.dtype.kind == "f" and array.size:
            for value in (np.nan, np.inf, -np.inf):
                changed = array.copy()
                changed.reshape(-1)[::3] = value
                yield {**request, name: changed}


def _neighbours(request: Tensors) -> Iterator[Tensors]:
    """`request` with neighbouring large numbers for its whole ones."""
    whole = {name: array for name, array in request.items() if array.dtype.kind in "iu" and array.dtype.itemsize >= 4}
    generator = np.random.default_rng(SEED)
    for base in _BASES if whole else ():
        ids = {
            name: (base + generator.integers(0, 2, array.shape)).astype(array.dtype) for name, array in whole.items()
        }
        yield {**request, **ids}


def _same_values(got: Tensors, want: Tensors, limits: Limits) -> bool:
    """Whether what is not finite is so in the same places, and the rest is the same: a model may replace NaN itself."""
    undecided = dict.fromkeys(want, limits.differing)
    return first_difference(got, want, limits.relative_l2, limits.worst_row, undecided) is None


def _same_answer(got: Tensors, want: Tensors, limits: Limits) -> bool:
    try:
        figures = compare(got, want)
    except ParityFailed:
        return False
    return figures.worst_row <= limits.worst_row and figures.differing <= limits.differing


def takes_large_numbers(proto: onnx.ModelProto) -> bool:
    """Whether no shape can depend on the whole numbers among the inputs: 2^30 of anything is too much."""
    types = element_types(onnx.shape_inference.infer_shapes(proto).graph)
    large = {value.name for value in proto.graph.input if types.get(value.name) in _WHOLE}
    for node in proto.graph.node:
        reached = [at for at, name in enumerate(node.input) if name in large]
        if subgraphs(node) and large:
            return False
        if not reached:
            continue
        if node.op_type not in _HARMLESS and not (node.op_type in _HARMLESS_FIRST and reached == [0]):
            return False
        large |= {name for name in node.output if types.get(name, onnx.TensorProto.INT64) in _WHOLE}
    return True
