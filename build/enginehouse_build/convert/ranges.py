"""What passes through a model on real requests: how large each tensor gets, which no artifact's answer shows.

A CPU computes fp16 files in fp32, so an activation that overflows in fp16 passes the gate there and fails on the first
GPU. And int8 gives all inputs of a Concat one scale, so a small one beside a large one is rounded to a few steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from enginehouse.contract.tensors import Tensors
from enginehouse_build.graph.graph import element_types
from enginehouse_build.reference.onnx import plain_session

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
    graph = proto.graph
    types = element_types(graph)
    known = {value.name for value in graph.output}
    inside = [name for node in graph.node for name in node.output if types.get(name) == TensorProto.FLOAT]
    graph.output.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inside if name not in known
    )
    found: dict[str, Range] = {}
    with tempfile.TemporaryDirectory(prefix="enginehouse-") as folder:
        path = Path(folder) / "told.onnx"
        onnx.save(proto, path, save_as_external_data=proto.ByteSize() > onnx.checker.MAXIMUM_PROTOBUF)
        run = plain_session(path)
        for request in requests[:: max(1, len(requests) // _REQUESTS)][:_REQUESTS]:
            told = run(request)
            for name, array in (*request.items(), *told.items()):
                if array.dtype == np.float32:
                    found.setdefault(name, Range()).take_in(array)
    return found
