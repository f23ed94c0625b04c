"""Pace: how the engines of a model compute lately, held against what was measured when it was built.

A call takes its table's time x how crowded its hardware is just now x the pace of its model there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

#: Weight of the newest call in what all engines share, and in what one has of its own. The latter is smaller, or
#: a machine that gets busy would at first look like an engine that got slow.
SHARED, OWN = 0.3, 0.05
#: Seconds until half of what is known is forgotten: a backend that was slow once is not asked, and so has to be given
#: another chance.
HALF_LIFE_S = 20.0
#: The same of a contention: weight of the newest call, of whatever model, and seconds.
CONTENTION, CONTENTION_HALF_LIFE_S = 0.2, 2.0
#: No contention is larger: 8 models that compute at once, say.
MOST_CONTENTION = 8.0
#: Sets of nodes for which a contention is remembered: they change when pools scale and nodes come and go.
MOST_CONTENTIONS = 256
#: An engine is taken to deviate from the others by so much at most, and at least: more is chance, or a call that was
#: held up, and less is chance too, which would send requests over a hop for nothing.
MOST, LEAST = 4.0, 1.1


class Pace:
    """Times of calls over those of the latency table, for the engines of one model on one kind of hardware.

    Two parts, because only the engines in use are heard of: what all of them share (a busy or another machine than the
    one that the table was made on), and what each deviates from that at so many rows, by powers of two.
    """

    def __init__(self) -> None:
        self._shared = _Average(SHARED)
        self._own: dict[tuple[str, int], _Average] = {}
        self._heard = False

    def note(self, pool: str, rows: int, ratio: float, now: float, contention: Contention | None = None) -> None:
        """A call of `rows` rows to `pool` took `ratio` times what the table says; `contention` learns from it first."""
        known = self._at(pool, rows.bit_length(), now)
        # One call says no more than that: a pause of the machine would otherwise make everything late for a minute.
        if self._heard:
            expected = known * (contention.at(now) if contention else 1.0)
            ratio = min(expected * MOST, max(expected / MOST, ratio))
        self._heard = True
        if contention is not None:
            # What is new is the contention's first. The rest, and what lasts, is of the model itself.
            contention.note(ratio / known, now)
            ratio /= contention.at(now)
        self._shared.note(ratio, now)
        key = pool, rows.bit_length()
        own = self._own.get(key)
        if own is None:
            own = self._own[key] = _Average(OWN)
        own.note(min(MOST, max(1 / MOST, ratio / self._shared.at(now))), now)

    def of(self, pool: str, now: float, contention: float = 1.0) -> Mapping[int, float]:
        """The pace of `pool` in such a contention by the bit length of the rows; under 0 for rows not seen there."""
        shared = self._shared.at(now) * contention
        pace = {bits: shared * _certain(own.at(now)) for (name, bits), own in self._own.items() if name == pool}
        pace[0] = shared
        return pace

    def _at(self, pool: str, bits: int, now: float) -> float:
        own = self._own.get((pool, bits))
        return self._shared.at(now) * (_certain(own.at(now)) if own else 1.0)


class Contention:
    """How much slower the calls of all models are just now on some hardware, which they share: 1 is not at all.

    Every model tells of it, and so it is fresher than what a model knows of itself: among a thousand models it makes a
    quarter fewer answers late or refused (benchmarks/replay).
    """

    def __init__(self) -> None:
        self.nodes: frozenset[str] = frozenset()
        self._slower = 1.0
        self._noted_at = 0.0

    def note(self, ratio: float, now: float) -> None:
        """A call took `ratio` times what was to be expected of its model on this hardware without a contention."""
        # However many calls a pause of the machine held up, together they say no more than this.
        ratio = min(MOST_CONTENTION, max(1 / MOST_CONTENTION, ratio))
        self._slower, self._noted_at = self.at(now) + CONTENTION * (ratio - self.at(now)), now

    def at(self, now: float) -> float:
        """The factor that calls take now; where nothing is heard it goes back to 1."""
        return 1.0 + (self._slower - 1.0) * math.exp2((self._noted_at - now) / CONTENTION_HALF_LIFE_S)


class Contentions:
    """The contention of each kind of hardware: one for all pools that share a node."""

    def __init__(self) -> None:
        self._by_nodes: dict[tuple[str, frozenset[str]], Contention] = {}

    def of(self, accelerator: str, nodes: frozenset[str]) -> Contention:
        """That on `nodes`."""
        contention = self._by_nodes.get((accelerator, nodes))
        if contention is None:
            if len(self._by_nodes) >= MOST_CONTENTIONS:
                self._by_nodes.clear()
            others = (one for (kind, _), one in self._by_nodes.items() if kind == accelerator and one.nodes & nodes)
            contention = self._by_nodes[accelerator, nodes] = next(others, None) or Contention()
            contention.nodes |= nodes
        return contention


def _certain(deviation: float) -> float:
    return 1.0 if 1 / LEAST < deviation < LEAST else deviation


class _Average:
    """Exponentially weighted by calls and by time, and back at 1 when nothing is heard."""

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
