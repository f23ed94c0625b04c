"""Old path, kept for one release: clients of another release send and receive `enginehouse.hints.Hints`."""

from __future__ import annotations

from enginehouse.routing.hints import NO_HINTS, Hints, HintsByName

__all__ = ["NO_HINTS", "Hints", "HintsByName"]
