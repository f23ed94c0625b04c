"""Which messages of an engine are about the request, and which about the engine.

What an engine *refuses* because of what is in the request fails with InvalidInput: it is the caller's mistake, so that
no other engine is asked. A less strict one would answer: OpenVINO has zeros for an id that is in no table. Whatever
else an engine says is its own *failure* (InferenceFailed), which another engine may make good.

Which it is, is told by where an engine says it, not by its words: those of a node that runs are about what came to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from enginehouse.contract.errors import InferenceFailed, InvalidInput
from enginehouse.contract.manifest import EngineKind
from enginehouse.contract.tensors import Tensors

#: What no request can help, whatever else the message says: memory, threads, devices, kernels.
_FAILURES = re.compile(
    r"bad_alloc|failed to allocate|allocation|out of memory|larger than max_size|length_error"
    r"|can not clone \w+ with dims|resource temporarily unavailable"
    r"|CUDA (error|failure)|cudaError|CUDNN_|CUBLAS_|NOT_IMPLEMENTED|not implemented",
    re.IGNORECASE,
)

#: Observed with ONNX Runtime 1.31 and some forty kinds of bad request: each is reported by the kernel of a node, with
#: the status INVALID_ARGUMENT, FAIL or RUNTIME_EXCEPTION and one of hundreds of texts, which may be empty. A session
#: that was loaded has answered before, on this very device; what a kernel then does not take was in the request.
_ONNX_RUNTIME = re.compile(r"INVALID_ARGUMENT|status code returned while running \w+ node")

_REFUSALS: Mapping[EngineKind, re.Pattern[str]] = {
    "onnxruntime-cpu": _ONNX_RUNTIME,
    "onnxruntime-cuda": _ONNX_RUNTIME,
    # Observed with 2026.4.1, in the same way: what a node of the CPU plugin throws while it runs.
    "openvino-cpu": re.compile(r"plugins/intel_cpu/src/(node|graph)\.cpp"),
    # After NVIDIA's documentation; not observed yet.
    "tensorrt": re.compile(
        r"incompatible dimensions|not compatible|dimension mismatch|dimensions? must|reshaping failed"
        r"|broadcast|shapes? (is|are) (inconsistent|invalid)",
        re.IGNORECASE,
    ),
}


def told(kind: EngineKind, message: str, inputs: Tensors) -> InvalidInput | InferenceFailed:
    """The error for what an engine of this kind said when it did not answer `inputs`, whose shapes it names."""
    is_refusal = _REFUSALS[kind].search(message) and not _FAILURES.search(message)
    return refused(kind, message, inputs) if is_refusal else InferenceFailed(_text(kind, message, inputs))


def refused(kind: EngineKind, message: str, inputs: Tensors) -> InvalidInput:
    """The error for `inputs` that an engine of this kind cannot take, whatever it said."""
    return InvalidInput(_text(kind, message, inputs))


def _text(kind: EngineKind, message: str, inputs: Tensors) -> str:
    shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in inputs.items())
    return f"{kind}: {message.strip()} (inputs: {shapes})"
