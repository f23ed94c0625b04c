"""Pace: how much slower or faster than the build's latency table engines have been lately.

    call time = table's time x contention of the hardware x pace of the model on this kind of hardware

The table was measured alone on one machine. *Contention* is what all models on the same nodes suffer together; it
changes within seconds. *Pace* is what remains for one model: another machine than the build's, another input mix.
Whatever a call took is attributed to contention first; only what persists is attributed to the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

#: Weight of the newest call in the pace that all engines of a model share, and in the deviation of one engine from it.
#: The latter is smaller: a machine that gets busy would otherwise look like an engine that got slow.
SHARED, OWN = 0.3, 0.05
#: Seconds in which half of a pace is forgotten: a backend that was slow once gets no calls, and so no new measurement.
HALF_LIFE_S = 20.0
#: Weight of the newest call, of whatever model, in the contention of some hardware, and its half-life in seconds.
CONTENTION, CONTENTION_HALF_LIFE_S = 0.2, 2.0
#: Bound of a contention and of its inverse: about that of eight models at once.
MOST_CONTENTION = 8.0
#: Sets of nodes for which a contention is kept: they change when pools scale and when nodes come and go.
MOST_CONTENTIONS = 256
#: Bounds of an engine's deviation: above the first it is taken for one delayed call, below the second for noise, which
#: would otherwise send requests over a hop for nothing.
MOST, LEAST = 4.0, 1.1


class Pace:
    """Recent call time / (table's x contention), for the engines of one model on one kind of hardware.

    Two parts, because only engines in use are measured: a *shared* pace of all of them, and each engine's own deviation
    from it, by the bit length of the rows of a call.
    """

    def __init__(self) -> None:
        self._shared = _Average(SHARED)
        self._own: dict[tuple[str, int], _Average] = {}
        self._has_calls = False

    def note(self, pool: str, rows: int, ratio: float, now: float, contention: Contention | None = None) -> None:
        """Learn from a call of `rows` rows to `pool` that took `ratio` times the table's time.

        Blames shared load first and attributes only persistent slowness to the model: `contention` learns from the
        call before this does.
        """
        known = self._at(pool, rows.bit_length(), now)
        if self._has_calls:
            # One call counts for no more than this: a pause of the machine would make everything late for a minute.
            expected = known * (contention.at(now) if contention else 1.0)
            ratio = min(expected * MOST, max(expected / MOST, ratio))
        self._has_calls = True
        if contention is not None:
            contention.note(ratio / known, now)
            ratio /= contention.at(now)
        self._shared.note(ratio, now)
        key = pool, rows.bit_length()
        own = self._own.get(key)
        if own is None:
            own = self._own[key] = _Average(OWN)
        own.note(min(MOST, max(1 / MOST, ratio / self._shared.at(now))), now)

    def of(self, pool: str, now: float, contention: float = 1.0) -> Mapping[int, float]:
        """Pace of `pool` times `contention`, by bit length of the rows; at 0 for rows not seen there."""
        shared = self._shared.at(now) * contention
        pace = {bits: shared * _significant(own.at(now)) for (name, bits), own in self._own.items() if name == pool}
        pace[0] = shared
        return pace

    def _at(self, pool: str, bits: int, now: float) -> float:
        own = self._own.get((pool, bits))
        return self._shared.at(now) * (_significant(own.at(now)) if own else 1.0)


class Contention:
    """The factor by which calls of all models on some hardware are slowed down now, because they share it; 1 is none.

    Every model's calls feed it, so it is fresher than any model's own pace. With a thousand models it makes a quarter
    fewer answers late or refused (benchmarks/replay).
    """

    def __init__(self) -> None:
        self.nodes: frozenset[str] = frozenset()
        self._factor = 1.0
        self._noted_at = 0.0

    def note(self, ratio: float, now: float) -> None:
        """Learn from a call that took `ratio` times what its model takes on this hardware without contention."""
        # A pause of the machine delays many calls at once; together they count for no more than this.
        ratio = min(MOST_CONTENTION, max(1 / MOST_CONTENTION, ratio))
        self._factor, self._noted_at = self.at(now) + CONTENTION * (ratio - self.at(now)), now

    def at(self, now: float) -> float:
        """The factor now; without new calls it decays to 1."""
        return 1.0 + (self._factor - 1.0) * math.exp2((self._noted_at - now) / CONTENTION_HALF_LIFE_S)


class Contentions:
    """A `Contention` per accelerator and nodes, shared with the first that overlaps."""

    def __init__(self) -> None:
        self._by_nodes: dict[tuple[str, frozenset[str]], Contention] = {}

    def of(self, accelerator: str, nodes: frozenset[str]) -> Contention:
        """The one of `nodes`."""
        contention = self._by_nodes.get((accelerator, nodes))
        if contention is None:
            if len(self._by_nodes) >= MOST_CONTENTIONS:
                self._by_nodes.clear()
            others = (one for (kind, _), one in self._by_nodes.items() if kind == accelerator and one.nodes & nodes)
            contention = self._by_nodes[accelerator, nodes] = next(others, None) or Contention()
            contention.nodes |= nodes
        return contention


def _significant(deviation: float) -> float:
    return 1.0 if 1 / LEAST < deviation < LEAST else deviation


class _Average:
    """A moving average, weighted exponentially by calls and by age; without new values it decays to 1."""

    __slots__ = ("_at", "_newest", "_value")

    def __init__(self, newest: float) -> None:
        self._newest = newest
        self._value = 1.0
        self._at = -math.inf

    def note(self, value: float, now: float) -> None:
        kept = (1 - self._newest) * math.exp2((self._at - now) / HALF_LIFE_S)
        self._value = kept * self._value + (1 - kept) * value
        self._at = now

    def at(self, now: float) -> float:
        return 1.0 + (self._value - 1.0) * math.exp2((self._at - now) / HALF_LIFE_S)
