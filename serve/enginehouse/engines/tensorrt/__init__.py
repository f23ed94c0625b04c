"""TensorRT engine: `tensorrt`, for both flavours, TensorRT and TensorRT-RTX.

| module          |                                                                       |
|-----------------|-----------------------------------------------------------------------|
| key.py          | what decides which engine file fits which node; profiles              |
| library.py      | TensorRT itself: the installed flavour, the GPU, what is said in logs |
| builder.py      | ONNX -> engine                                                        |
| kept_engines.py | engines built on this node because the bundle's own does not fit      |
| make.py         | the process that builds one of those                                  |
| device.py       | CUDA's runtime: calls that raise, buffers on both sides               |
| runtime.py      | running an engine                                                     |

An engine file runs only on the flavour, version and compute capability that it was built with and for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from enginehouse.engines import EngineOptions
from enginehouse.engines.tensorrt.kept_engines import engine_file
from enginehouse.engines.tensorrt.library import local_node
from enginehouse.engines.tensorrt.runtime import TensorRT

__all__ = ["TensorRT", "fitted"]


def fitted(options: EngineOptions, tell: Callable[[str], None]) -> EngineOptions:
    """`options` with the one engine file that fits this node, built here and now if there is none.

    `artifact` is changed to describe that file: one that was built here is `unverified`. See `engine_file`.
    """
    node = local_node(options.artifact.requires.get("flavour", ""))
    found = engine_file(options, node, tell)
    changes: dict[str, object] = {"requires": found.key.record()}
    if found.built_here:
        changes["status"] = "unverified"
    return replace(options, files=[found.path], artifact=options.artifact.model_copy(update=changes))
