"""Traces: when which model is asked for how many rows, and when nodes are lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.replay.fleet import Fleet

#: Mean load over what the fleet computes in full batches: the peak of a day is then 0.8, which is what pools scale for
#: (`target_busy`), and it is two thirds of what is left when a quarter of the nodes is gone.
LOAD = 0.5
#: Rows of a request, and how many requests have them: assumed, most callers send one.
ROWS, ROWS_SHARE = (1, 4, 16), (0.7, 0.2, 0.1)
#: A day from 0.4 to 1.6 of the mean, squeezed into the trace.
SWING = 0.6
#: Every model bursts by itself: for 2 s on average, every 12 s, to five times its calm rate (a Markov-modulated Poisson
#: process of two states).
BURST_TIMES, BURST_S, CALM_S = 5.0, 2.0, 10.0
#: So many of the nodes vanish, a zone of four, for the middle third of the trace.
LOST = 0.25


@dataclass(frozen=True, slots=True)
class Loss:
    """`nodes`, by their place in the fleet, vanish at `at_s` and are back with warm engines at `until_s`."""

    nodes: Sequence[int]
    at_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class Trace:
    """Arrivals in order: seconds, place of the model in the fleet, rows."""

    name: str
    seconds: float
    at_s: Sequence[float]
    models: Sequence[int]
    rows: Sequence[int]
    loss: Loss | None = None


def make(fleet: Fleet, seconds: float, seed: int, load: float = LOAD) -> list[Trace]:
    """Four traces of the same mean load: steady, diurnal, bursty, and node loss, which is steady but for the loss."""
    rate = load * fleet.rows_per_s / float(np.dot(ROWS, ROWS_SHARE))
    random = np.random.default_rng([seed, 1])
    lost = sorted(random.choice(len(fleet.nodes), round(LOST * len(fleet.nodes)), replace=False).tolist())
    steady = _drawn(random, fleet, rate, seconds)
    day = _drawn(random, fleet, rate * (1 + SWING), seconds)
    daily = (1 - SWING * np.cos(2 * math.pi * day[0] / seconds)) / (1 + SWING)
    burst_share = BURST_S / (BURST_S + CALM_S)
    calm = 1 / (1 - burst_share + burst_share * BURST_TIMES)
    bursts = _drawn(random, fleet, rate * calm * BURST_TIMES, seconds)
    bursting = _bursting(random, bursts[0], bursts[1], len(fleet.models), seconds)
    return [
        _trace("steady", seconds, *steady),
        _trace("diurnal", seconds, *_thinned(random, day, daily)),
        _trace("bursty", seconds, *_thinned(random, bursts, np.where(bursting, 1.0, 1 / BURST_TIMES))),
        _trace("node loss", seconds, *steady, loss=Loss(lost, seconds / 3, seconds * 2 / 3)),
    ]


_Arrivals = tuple[np.ndarray, np.ndarray, np.ndarray]


def _drawn(random: np.random.Generator, fleet: Fleet, rate: float, seconds: float) -> _Arrivals:
    count = random.poisson(rate * seconds)
    popularity = [model.popularity for model in fleet.models]
    return (
        np.sort(random.uniform(0, seconds, count)),
        random.choice(len(popularity), count, p=popularity),
        random.choice(ROWS, count, p=ROWS_SHARE),
    )


def _thinned(random: np.random.Generator, arrivals: _Arrivals, kept: np.ndarray) -> _Arrivals:
    chosen = random.random(len(kept)) < kept
    at, models, rows = arrivals
    return at[chosen], models[chosen], rows[chosen]


def _bursting(
    random: np.random.Generator, at: np.ndarray, models: np.ndarray, count: int, seconds: float
) -> np.ndarray:
    """Whether the model of each arrival bursts then."""
    bursting = np.zeros(len(at), dtype=bool)
    for model in range(count):
        begins_calm = random.random() >= BURST_S / (BURST_S + CALM_S)
        pairs = int(seconds / (BURST_S + CALM_S) * 3) + 20
        first, second = (CALM_S, BURST_S) if begins_calm else (BURST_S, CALM_S)
        changes = np.cumsum(np.ravel([random.exponential(first, pairs), random.exponential(second, pairs)], order="F"))
        mine = models == model
        bursting[mine] = (np.searchsorted(changes, at[mine]) % 2 == 1) == begins_calm
    return bursting


def _trace(
    name: str, seconds: float, at: np.ndarray, models: np.ndarray, rows: np.ndarray, loss: Loss | None = None
) -> Trace:
    return Trace(name, seconds, at.tolist(), models.tolist(), rows.tolist(), loss)
