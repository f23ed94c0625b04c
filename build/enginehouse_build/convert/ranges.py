"""What passes through a model on real requests: how large each tensor gets, which no artifact's answer shows.

A CPU computes fp16 files in fp32, so an activation that overflows in fp16 passes the gate there and fails on the first
GPU. And int8 gives all inputs of a Concat one scale, so a small one beside a large one is rounded to a few steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from enginehouse.contract.tensors import Tensors
from enginehouse_build.graph.graph import element_types
from enginehouse_build.reference.onnx import Run, plain_session

#: Requests that are looked at, at most: every activation of one is in memory at once.
_REQUESTS = 16


@dataclass(slots=True)
class Range:
    """The least and the largest finite value of a tensor in all requests, and whether all of them are whole numbers."""

    least: float = 0.0
    largest: float = 0.0
    is_whole: bool = True

    @property
    def magnitude(self) -> float:
        """The largest distance from zero."""
        return max(-self.least, self.largest)

    @property
    def width(self) -> float:
        """What a quantizer that keeps zero exact spreads its steps over."""
        return max(self.largest, 0.0) - min(self.least, 0.0)

    def take_in(self, values: np.ndarray) -> None:
        """Widen it by `values`."""
        finite = values[np.isfinite(values)]
        if finite.size:
            self.least = min(self.least, float(finite.min()))
            self.largest = max(self.largest, float(finite.max()))
            self.is_whole = self.is_whole and bool((finite == np.rint(finite)).all())


def ranges(model: Path, requests: Sequence[Tensors]) -> Mapping[str, Range]:
    """Ranges of the fp32 tensors outside subgraphs, inputs among them, that the ONNX file `model` computes.

    Raises ExportFailed when the model does not load.
    """
    if not requests:
        return {}
    proto = onnx.shape_inference.infer_shapes(onnx.load(model))
    types = element_types(proto.graph)
    made = {name for node in proto.graph.node for name in node.output if types.get(name) == TensorProto.FLOAT}
    found: dict[str, Range] = {}
    run = inside(proto, made)
    for request in _looked_at(requests):
        for name, array in (*request.items(), *run(request).items()):
            if array.dtype == np.float32:
                found.setdefault(name, Range()).take_in(array)
    return found


def channel_widths(model: Path, requests: Sequence[Tensors], names: Collection[str]) -> Mapping[str, np.ndarray]:
    """What each channel (index of axis 1) of these fp32 tensors, where they have channels, spreads over."""
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    run = inside(onnx.shape_inference.infer_shapes(onnx.load(model)), names)
    for request in _looked_at(requests) if names else ():
        for name, array in run(request).items():
            if name in names and array.ndim > 1 and array.size:
                others = tuple(axis for axis in range(array.ndim) if axis != 1)
                least, largest = found.get(name, (np.zeros(array.shape[1]), np.zeros(array.shape[1])))
                if least.shape == array.shape[1:2]:
                    found[name] = np.fmin(least, array.min(others)), np.fmax(largest, array.max(others))
    return {name: largest - least for name, (least, largest) in found.items()}


def inside(proto: onnx.ModelProto, names: Collection[str]) -> Run:
    """Runs `proto`, whose types are inferred, and tells these tensors besides its outputs.

    Raises ExportFailed when the model does not load.
    """
    types = element_types(proto.graph)
    told = onnx.ModelProto()
    told.CopyFrom(proto)
    known = {value.name for value in proto.graph.output}
    told.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, types[name], None) for name in sorted(set(names) - known)
    )
    with tempfile.TemporaryDirectory(prefix="enginehouse-") as folder:
        path = Path(folder) / "told.onnx"
        onnx.save(told, path, save_as_external_data=told.ByteSize() > onnx.checker.MAXIMUM_PROTOBUF)
        return plain_session(path)


def _looked_at(requests: Sequence[Tensors]) -> Sequence[Tensors]:
    return requests[:: max(1, len(requests) // _REQUESTS)][:_REQUESTS]
