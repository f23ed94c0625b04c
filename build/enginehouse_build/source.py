"""Old path, kept for one release: factories import `ModelSource` from here; now `from enginehouse_build import` it."""

from __future__ import annotations

from enginehouse_build.inputs.source import ModelSource

__all__ = ["ModelSource"]
