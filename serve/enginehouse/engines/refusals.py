"""Which messages of an engine are about the request, and which about the engine.

What an engine *refuses* because of what is in the request fails with InvalidInput: it is the caller's mistake, so that
no other engine is asked. A less strict one would answer: OpenVINO has zeros for an id that is in no table. Whatever
else an engine says is its own *failure* (InferenceFailed), which another engine may make good; so is all that is in
doubt, since a sick engine that blames its callers is never replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from enginehouse.contract.errors import InferenceFailed, InvalidInput
from enginehouse.contract.manifest import EngineKind

#: What no request can help, whatever else the message says: memory, devices, kernels.
_FAILURES = re.compile(
    r"bad_alloc|failed to allocate|allocation|out of memory|CUDA (error|failure)|cudaError|CUDNN_|CUBLAS_"
    r"|NOT_IMPLEMENTED|not implemented",
    re.IGNORECASE,
)

#: Observed with ONNX Runtime 1.31, which has no status of its own for requests: besides INVALID_ARGUMENT, which its
#: kernels return for values and shapes, it reports many shapes as FAIL or RUNTIME_EXCEPTION.
_ONNX_RUNTIME = re.compile(
    r"INVALID_ARGUMENT"
    r"|out of (data )?bounds|index (is )?out of|invalid ind(ex|ice)"
    r"|broadcast an axis|mismatch|must match|cannot be reshaped|reshape_helper|incompatible|not compatible"
    r"|should not be greater than|must be within|exceeds",
    re.IGNORECASE,
)

_REFUSALS: Mapping[EngineKind, re.Pattern[str]] = {
    "onnxruntime-cpu": _ONNX_RUNTIME,
    "onnxruntime-cuda": _ONNX_RUNTIME,
    # Observed with 2026.4.1: shape inference of a node, and the few kernels that look at indices.
    "openvino-cpu": re.compile(
        r"shape_inference|mismatch|incompatible|inconsistent|not consistent|conflicts with|exceeds the axis"
        r"|non-existing|out of (bounds|range)|primitive descriptor for the inner product|new dims are undefined",
        re.IGNORECASE,
    ),
    # After NVIDIA's documentation; not observed yet.
    "tensorrt": re.compile(
        r"incompatible dimensions|not compatible|dimension mismatch|dimensions? must|reshaping failed"
        r"|broadcast|shapes? (is|are) (inconsistent|invalid)",
        re.IGNORECASE,
    ),
}


def told(kind: EngineKind, message: str) -> InvalidInput | InferenceFailed:
    """The error for what an engine of this kind said when it did not answer."""
    is_refusal = _REFUSALS[kind].search(message) and not _FAILURES.search(message)
    return (InvalidInput if is_refusal else InferenceFailed)(f"{kind}: {message}")
