"""What one replica publishes about the models that it hosts."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from enginehouse.contract.bounds import InputBounds

ModelState = Literal["loading", "ready", "failed", "unavailable"]


class ModelReport(TypedDict):
    """What one replica publishes about one model version.

    `engine` (its kind), `artifact` and `precision` are empty unless it is loaded. `measured` are (rows, milliseconds)
    timed by the replica where no latency table of the bundle holds. `inputs_only` are the bounds of the loaded engine,
    `lanes` how many calls it computes at once, `pads` whether it takes rows that were padded as the artifact says;
    replicas of the release before publish none of these.
    """

    state: ModelState
    reason: str
    engine: str
    artifact: str
    precision: str
    measured: list[tuple[int, float]]
    inputs_only: NotRequired[InputBounds]
    lanes: NotRequired[int]
    pads: NotRequired[bool]
