"""An ONNX file adopted as the fp32 reference."""

from __future__ import annotations

from pathlib import Path

import onnx

from enginehouse.errors import ExportFailed
from enginehouse.tensors import Signature
from enginehouse_build.onnx import finish, reason


def adopt(source: Path, path: Path, *, batched: bool) -> Signature:
    """Copy an ONNX file to `path` as one self-contained file after checking it. Raises ExportFailed."""
    try:
        proto = onnx.load(source)
        onnx.checker.check_model(proto)
    except Exception as error:
        raise ExportFailed(f"{source} is not a valid ONNX model: {reason(error)}") from error
    inferred = onnx.shape_inference.infer_shapes(proto)
    # Inference knows more about outputs than many writers recorded; the rest of its annotations are not needed.
    del proto.graph.output[:]
    proto.graph.output.extend(inferred.graph.output)
    return finish(proto, path, batched)
