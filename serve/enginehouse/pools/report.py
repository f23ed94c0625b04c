"""What one replica publishes about the models that it hosts."""

from __future__ import annotations

from typing import Literal, TypedDict

ModelState = Literal["loading", "ready", "failed", "unavailable"]


class ModelReport(TypedDict):
    """What one replica publishes about one model version.

    `engine` (its kind), `artifact` and `precision` are empty unless it is loaded. `measured` are (rows, milliseconds)
    timed by the replica where no latency table of the bundle holds.
    """

    state: ModelState
    reason: str
    engine: str
    artifact: str
    precision: str
    measured: list[tuple[int, float]]
