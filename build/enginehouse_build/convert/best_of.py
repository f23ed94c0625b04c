"""Which setting of a quantizer suits a model: the one that does best on requests it was not calibrated on."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from enginehouse.contract.tensors import Tensors

#: Requests (input name -> array) of a few rows each, real data.
Calibration: TypeAlias = Sequence[Tensors]
#: The outputs of a model for each of some requests.
Answers: TypeAlias = Sequence[Sequence[np.ndarray]]

#: Requests that decide, at most.
_JUDGING = 8
_Setting = TypeVar("_Setting")


def best_of(
    settings: Sequence[_Setting],
    calibration: Calibration,
    quantized: Callable[[_Setting, Calibration, Calibration], Answers],
    reference: Callable[[Calibration], Answers],
) -> _Setting:
    """The setting with which `quantized` (calibrated on half of the requests, asked the others) is closest.

    One that fails is not. `quantized(setting, seen, unseen)` and `reference(unseen)` answer `unseen`. The first setting
    where one request is all there is.
    """
    seen, unseen = calibration[::2], calibration[1::2][:_JUDGING]
    if not unseen:
        return settings[0]
    wanted = reference(unseen)

    def distance(setting: _Setting) -> float:
        try:
            return _distance(quantized(setting, seen, unseen), wanted)
        except Exception:
            # Percentiles of a tensor that never changes do not exist, say; another setting may do.
            traceback.print_exc()
            return math.inf

    return min(settings, key=distance)


def _distance(answers: Answers, wanted: Answers) -> float:
    """|a - r|^2 / |r|^2 over all requests, summed over outputs; infinite if an answer is not a number."""
    total = 0.0
    for got, want in zip(zip(*answers, strict=True), zip(*wanted, strict=True), strict=True):
        if want[0].dtype.kind in "fiu":
            off = sum(float(np.square(a.astype(np.float64) - r).sum()) for a, r in zip(got, want, strict=True))
            total += off / max(sum(float(np.square(r, dtype=np.float64).sum()) for r in want), 1e-30)
    return math.inf if math.isnan(total) else total
