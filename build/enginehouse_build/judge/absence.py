"""Whether an engine is missing on this machine, or is here and refuses: only absence leaves an artifact unverified."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from enginehouse.contract.errors import EngineUnavailable
from enginehouse.contract.manifest import ACCELERATOR_OF, EngineKind
from enginehouse.engines.hardware import probe_gpus
from enginehouse.engines.tensorrt.library import local_node

_MODULE: Mapping[EngineKind, str] = {
    "onnxruntime-cpu": "onnxruntime",
    "onnxruntime-cuda": "onnxruntime",
    "openvino-cpu": "openvino",
}


def missing(kind: EngineKind) -> str:
    """Why there is no engine of this kind on this machine, whatever the artifact; "" when it is here.

    A library that is installed and cannot be imported is missing, as is one whose hardware is.
    """
    if ACCELERATOR_OF[kind] == "gpu" and not (gpus := probe_gpus()).devices:
        return gpus.reason
    try:
        if kind == "tensorrt":
            local_node()
            return ""
        module = importlib.import_module(_MODULE[kind])
    except (ImportError, EngineUnavailable) as error:
        return str(error)
    if kind == "onnxruntime-cuda" and "CUDAExecutionProvider" not in module.get_available_providers():
        return "the installed ONNX Runtime is a CPU build"
    return ""
