"""Old path, kept for one release: nodes hold `enginehouse.shortcut:middlewares` in their environment."""

from __future__ import annotations

from enginehouse.faces.http.shortcut import middlewares

__all__ = ["middlewares"]
