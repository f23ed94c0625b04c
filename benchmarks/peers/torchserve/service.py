"""What TorchServe's worker processes import: the function that it calls with a batch of requests."""

from __future__ import annotations

from typing import Any

import numpy as np
from peer import Model

_model = Model()


def handle(data: list[dict[str, Any]] | None, context: object) -> list[bytes] | None:
    """The answers' float32 bytes, in the order of the requests; `data` is None once, when a worker has started."""
    if data is None:
        return None
    answers = _model(np.concatenate([_model.row(request["body"]) for request in data]))
    return [answer.tobytes() for answer in answers]
