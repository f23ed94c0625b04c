"""How long calls take. A call ends when its answer is there: whoever measures a GPU passes calls that wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Call = Callable[[], object]

#: Calls before the first one that counts: kernels are chosen, and memory is taken.
_WARM_UP = 3
#: Seconds of a call's turn, and its fewest calls.
_TURN_S, _TURN_CALLS = 0.05, 3


class Times(NamedTuple):
    """Milliseconds of a call, and how many calls they are from."""

    p50_ms: float
    p99_ms: float
    calls: int


def in_turns(calls: Mapping[str, Call], seconds: float) -> dict[str, Times]:
    """Times of calls that take turns, so that a noisy moment meets all of them, in about `seconds` for each."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(_WARM_UP):
            call()
    give_up = time.perf_counter() + seconds * len(calls)
    while True:
        for name, call in calls.items():
            taken[name] += _turn(call)
        if time.perf_counter() >= give_up:
            return {name: _times(laps) for name, laps in taken.items()}


def _turn(call: Call) -> list[float]:
    laps: list[float] = []
    while len(laps) < _TURN_CALLS or sum(laps) < _TURN_S:
        began = time.perf_counter()
        call()
        laps.append(time.perf_counter() - began)
    return laps


def _times(laps: list[float]) -> Times:
    p50, p99 = np.percentile(laps, (50, 99)) * 1e3
    return Times(float(p50), float(p99), len(laps))
