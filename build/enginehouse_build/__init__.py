"""The build stage: a PyTorch module or an ONNX file becomes a bundle. Never imported by serving.

`ModelSource` is what a recipe's factory returns; it is imported on first use, because it brings torch along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enginehouse_build.inputs.source import ModelSource

__all__ = ["ModelSource"]


def __getattr__(name: str) -> Any:
    if name != "ModelSource":
        raise AttributeError(f"module 'enginehouse_build' has no attribute {name!r}")
    from enginehouse_build.inputs.source import ModelSource

    return ModelSource
