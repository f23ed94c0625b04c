"""What one replica publishes about the models that it hosts."""

from __future__ import annotations

from typing import Literal, TypedDict

ModelState = Literal["loading", "ready", "failed", "unavailable"]


class ModelReport(TypedDict):
    """What one replica publishes about one `model@version`; `engine` is the kind that it is loaded in, if it is.

    `measured` are (rows, milliseconds) that it timed itself, for an engine that the bundle has no latency table of.
    """

    state: ModelState
    reason: str
    engine: str
    artifact: str
    precision: str
    measured: list[tuple[int, float]]
