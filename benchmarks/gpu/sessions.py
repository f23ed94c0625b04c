"""ONNX Runtime with the settings that are compared; the engine that serves has those that it has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.lab import Lab, NotRun

#: Settings of the CUDA provider that are compared, beside its defaults and `use_tf32`.
CUDA_OPTIONS = {
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "cudnn_conv_use_max_workspace": ("1", "0"),
    "prefer_nhwc": ("0", "1"),
    "enable_cuda_graph": ("0", "1"),
    "use_tf32": ("0", "1"),
}


def session(lab: Lab, model: Path, **options: str) -> Any:
    """A session on the GPU with `options` of the CUDA provider, or in a dry run one on the CPU that has none of them.

    Raises NotRun when ONNX Runtime opens less than was asked for.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = lab.threads
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: Sequence[Any] = ["CPUExecutionProvider"]
    if not lab.dry:
        onnxruntime.preload_dlls()
        providers = [("CUDAExecutionProvider", {"device_id": "0", **options})]
    opened = onnxruntime.InferenceSession(model, settings, providers=providers)
    wanted = "CPUExecutionProvider" if lab.dry else "CUDAExecutionProvider"
    if opened.get_providers()[0] != wanted:
        raise NotRun(f"ONNX Runtime opened {opened.get_providers()[0]} instead of {wanted}")
    opened.disable_fallback()
    return opened
