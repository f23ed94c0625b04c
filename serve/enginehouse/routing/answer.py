"""What a router returns: an answer with its origin, or how a request would be routed and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from enginehouse.contract.bounds import described
from enginehouse.contract.tensors import Timing
from enginehouse.routing.policy import Choice
from enginehouse.routing.view import ModelVersion


class Answer(NamedTuple):
    """The outputs of one request, and the backend that computed them."""

    outputs: dict[str, np.ndarray]
    version: ModelVersion
    choice: Choice
    timing: Timing
    attempts: int

    def origin(self) -> dict[str, Any]:
        """Version, backend, precision, times in milliseconds and attempts, as plain data for the response headers."""
        predicted_ms = self.choice.predicted_ms
        return {
            "version": self.version.config.version,
            "backend": self.choice.backend.pool,
            "precision": self.choice.backend.precision,
            "queue_ms": round(self.timing.queue_ms, 3),
            "compute_ms": round(self.timing.compute_ms, 3),
            **({"predicted_ms": round(predicted_ms, 3)} if predicted_ms < math.inf else {}),
            "attempts": self.attempts,
        }


class Explained(NamedTuple):
    """How a request for `version` would be routed: the policy's choices, and in `out` why other pools are not live."""

    version: ModelVersion
    choices: Sequence[Choice]
    out: dict[str, str]

    def document(self) -> dict[str, Any]:
        """As plain data; times in milliseconds, None where nothing was measured."""
        backends = [
            {
                "pool": choice.backend.pool,
                "artifact": choice.backend.artifact,
                "precision": choice.backend.precision,
                "replicas": choice.backend.replicas,
                "wait_ms": choice.wait_ms,
                "compute_ms": _finite(choice.compute_ms),
                "predicted_ms": _finite(choice.predicted_ms),
                "cost": _finite(choice.cost),
                "reason": choice.reason or choice.backend.fails or (choice.behind and f"behind {choice.behind}"),
                "may_answer": not choice.reason,
                "inputs_only": described(choice.backend.inputs_only),
            }
            for choice in self.choices
        ]
        return {"model": self.version.config.id, "backends": backends, "out": self.out}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
