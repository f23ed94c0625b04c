"""Hands units to the scorers of all pools, until all are done: the whole of a job's scheduling.

Each scorer has up to two units, so that the next is read while one is computed. All pools take from one stream, so fast
ones take more. Pools grow while units wait, and shrink when none do. Units of a scorer that died are handed out again.
A pool whose scorers cannot be made is given up, unless it is the last one.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from enginehouse.contract.errors import (
    ConfigError,
    EnginehouseError,
    EngineUnavailable,
    InferenceFailed,
    NoBackend,
    StoreUnavailable,
)
from enginehouse.faces.scoring.answering import ScorerPool
from enginehouse.faces.scoring.ledger import Line
from enginehouse.faces.scoring.scorers import caution as caution_of
from enginehouse.faces.scoring.scorers.caution import Caution
from enginehouse.faces.scoring.scorers.head import Head
from enginehouse.faces.scoring.scorers.hosted import HostedScorer
from enginehouse.faces.scoring.storage import Folder
from enginehouse.faces.scoring.task import Task
from enginehouse.faces.scoring.units import Unit

logger = logging.getLogger(__name__)

#: Units that one scorer has at a time.
_AT_ONCE = 2
#: How often a unit fails, or scorers die that have it, before the job gives up: more often while it is found out which
#: row is to blame. And how many in a row do not start.
_TRIES, _DEATHS, _DEATHS_ASKING, _STILLBORN = 4, 8, 60, 4
#: With so many scorers dead, a unit is scored with caution.
_CAUTION = 2
#: Seconds between looks at what is not an answer, between one more scorer and the next, and for a place for the first.
_LOOK_S, _GROW_S, _START_S = 0.5, 2.0, 120.0
#: Seconds that the head may be silent, one that comes back with all that it knew included; Ray itself waits for 60.
_HEAD_S = 30.0


@dataclass(slots=True)
class _Hand:
    """A scorer as the driver sees it."""

    pool: ScorerPool
    actor: Any
    placing: Any
    starting: Any
    #: When it was started, or once it is up, when that was.
    since: float
    units: dict[Any, Unit] = field(default_factory=dict)
    pid: int = 0
    placed: float = 0.0

    def late(self, now: float) -> str:
        """What it has not done in time: found a place, or made what answers there; "" for neither."""
        if self.pid:
            return ""
        if not self.placed and ray.wait([self.placing], timeout=0)[0]:
            self.placed = now
        if self.placed:
            return f"was ready within {self.pool.load_s:g} s" if now - self.placed > self.pool.load_s else ""
        return f"started within {_START_S:g} s" if now - self.since > _START_S else ""


@dataclass(slots=True)
class Workers:
    """The scorers of a job. By pool, for the report: `deaths`, `most` at a time, and seconds up and starting.

    `given_up`: why the scorers of a pool could not be made.
    """

    task: Task
    pools: Sequence[ScorerPool]
    stopping: Callable[[], bool] = lambda: False
    deaths: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    up_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    starting_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    given_up: dict[str, str] = field(default_factory=dict)
    _hands: list[_Hand] = field(default_factory=list)
    _left: deque[Unit] = field(default_factory=deque)
    _failures: Counter[str] = field(default_factory=Counter)
    _lost: Counter[str] = field(default_factory=Counter)
    _lost_asking: Counter[str] = field(default_factory=Counter)
    _cautions: dict[str, Caution] = field(default_factory=dict)
    _stillborn: int = 0
    _folder: Folder = field(init=False)
    _head: Head = field(default_factory=Head)
    _grown: dict[str, float] = field(default_factory=dict)

    def lines(self, units: Sequence[Unit]) -> Iterator[Line | None]:
        """Lines as units are finished, None when there is none for a moment; ends early when `stopping`.

        Raises the EnginehouseError that stopped the job; finished units stay so.
        """
        self._left, self._folder = deque(units), Folder(self.task.folder)
        try:
            for pool in self.pools:
                for _ in range(min(pool.least, len(units))):
                    self._start(pool)
            while (self._left and not self.stopping()) or any(hand.units for hand in self._hands):
                yield from self._round()
        finally:
            for hand in list(self._hands):
                self._end(hand)

    def told(self) -> dict[str, Any]:
        """What the report says of them."""
        return {
            "deaths": dict(self.deaths),
            "scorers": dict(self.most),
            "up_s": dict(self.up_s),
            "starting_s": dict(self.starting_s),
        }

    def _round(self) -> Iterator[Line | None]:
        silent_s = self._head.silent_s()
        if silent_s > _HEAD_S:
            raise NoBackend(
                f"the head of the cluster ({self._head.address}) has not answered for {silent_s:.0f} s; the same "
                "command goes on with the units that are not done, on any cluster"
            )
        if not self.stopping():
            if not silent_s:
                self._resize()
            for hand in self._hands:
                while hand.pid and self._left and len(hand.units) < _AT_ONCE and self._may_have(hand, self._left[0]):
                    unit = self._left.popleft()
                    hand.units[hand.actor.score.remote(unit, self._cautions.get(unit.name))] = unit
        waited = [ref for hand in self._hands for ref in hand.units] + [
            hand.starting for hand in self._hands if not hand.pid
        ]
        if not waited:
            time.sleep(_LOOK_S)
            yield None
            return
        ready, _ = ray.wait(waited, num_returns=1, timeout=_LOOK_S)
        if not ready:
            yield None
        for ref in ready:
            hand = next(hand for hand in self._hands if ref == hand.starting or ref in hand.units)
            try:
                found = ray.get(ref)
            except RayTaskError as error:
                self._failed(hand, ref, error)
                continue
            except (RayActorError, RayError) as error:
                self._died(hand, error)
                continue
            if ref == hand.starting and not hand.pid:
                hand.pid, self._stillborn = found, 0
                self.starting_s[hand.pool.name] += time.monotonic() - hand.since
                hand.since = time.monotonic()
            else:
                del hand.units[ref]
                yield found

    def _may_have(self, hand: _Hand, unit: Unit) -> bool:
        """A unit that scorers died with is alone, so that nothing else is taken for its doing."""
        if unit.name in self._cautions:
            return not hand.units
        return not any(own.name in self._cautions for own in hand.units.values())

    def _failed(self, hand: _Hand, ref: Any, error: RayTaskError) -> None:
        """A scorer could not start, or a unit failed in it."""
        cause = error.cause if isinstance(error.cause, EnginehouseError) else None
        if cause is None:
            last = str(error).strip().splitlines()[-1]
            cause = InferenceFailed(f"a scorer of {hand.pool.name} failed: {last}")
        unit = hand.units.pop(ref, None)
        if unit is None:
            self._not_made(hand, cause)
            return
        # What may pass, or be the engine's own, is tried elsewhere; the rest is so everywhere.
        if not (cause.retryable or cause.fault.help != "nothing"):
            raise cause
        self._again(unit, cause, self._failures, _TRIES)
        if isinstance(cause, EngineUnavailable):
            # One that is stuck, for instance, does not come back by itself: another process will have one that works.
            self._end(hand)
            self.deaths[hand.pool.name] += 1
            for other in hand.units.values():
                self._again(other, cause, self._lost, _DEATHS)

    def _not_made(self, hand: _Hand, cause: EnginehouseError) -> None:
        self._end(hand)
        self._stillborn += 1
        if isinstance(cause, StoreUnavailable) and self._stillborn < _STILLBORN:
            return
        self.given_up[hand.pool.name] = str(cause)
        if all(pool.name in self.given_up for pool in self.pools):
            raise cause
        logger.warning("no more scorers of %s: %s: %s", hand.pool.name, type(cause).__name__, cause)

    def _died(self, hand: _Hand, error: Exception) -> None:
        self._gone(hand)
        self.deaths[hand.pool.name] += 1
        self._stillborn += not hand.pid
        if self._stillborn >= _STILLBORN:
            said = str(error).strip().splitlines()[0]
            raise EngineUnavailable(hand.pool.name, f"its scorers do not start: {said}")
        for unit in list(hand.units.values()):
            self._lose(hand, unit)
        self._grown.pop(hand.pool.name, None)

    def _lose(self, hand: _Hand, unit: Unit) -> None:
        """A scorer died with `unit`."""
        why = EngineUnavailable(hand.pool.name, "the process died that scored them")
        caution = self._cautions.get(unit.name)
        asked = caution_of.read(self._folder, unit) if caution is not None else ()
        self._again(unit, why, self._lost_asking if asked else self._lost, _DEATHS_ASKING if asked else _DEATHS)
        if caution is not None:
            self._cautions[unit.name] = caution.after(asked)
        elif self._lost[unit.name] >= _CAUTION:
            self._cautions[unit.name] = Caution()
        caution_of.clear(self._folder, unit)

    def _again(self, unit: Unit, why: EnginehouseError, counts: Counter[str], most: int) -> None:
        counts[unit.name] += 1
        if counts[unit.name] >= most:
            raise InferenceFailed(
                f"rows {unit.part.first} to {unit.part.first + unit.part.rows - 1} of {unit.file.url} failed "
                f"{most} times: {type(why).__name__}: {why}"
            )
        self._left.appendleft(unit)

    def _resize(self) -> None:
        now = time.monotonic()
        for pool in self.pools:
            own = [hand for hand in self._hands if hand.pool is pool]
            if not self._left:
                for hand in own:
                    if not hand.units and len(self._hands) > 1:
                        self._end(hand)
                continue
            late = [missed for hand in own if (missed := hand.late(now))]
            if late and not any(hand.pid for hand in self._hands):
                raise ConfigError(f"no scorer of {pool.name} {late[0]}; {free()}")
            if pool.name in self.given_up:
                continue
            is_full = all(hand.pid and len(hand.units) == _AT_ONCE for hand in own)
            waits = len(self._left) > _AT_ONCE * len(own)
            is_time = now - self._grown.get(pool.name, now - _GROW_S) >= _GROW_S
            if len(own) < pool.least or (len(own) < pool.most and is_full and waits and is_time and _is_room(pool)):
                self._start(pool)

    def _start(self, pool: ScorerPool) -> None:
        options = {"max_concurrency": _AT_ONCE + 2, "max_restarts": 0, **pool.actor_options}
        actor = ray.remote(HostedScorer).options(**options).remote()
        # In this order: making what answers may keep the process from saying that it is there.
        placing = actor.__ray_ready__.remote()
        starting = actor.start.remote(self.task, pool.answering, pool.name, pool.nice)
        self._hands.append(_Hand(pool, actor, placing, starting, time.monotonic()))
        self._grown[pool.name] = time.monotonic()
        own = sum(hand.pool is pool for hand in self._hands)
        self.most[pool.name] = max(self.most[pool.name], own)

    def _end(self, hand: _Hand) -> None:
        self._gone(hand)
        if not self._head.silent_s():
            ray.kill(hand.actor)

    def _gone(self, hand: _Hand) -> None:
        self._hands.remove(hand)
        spent = self.up_s if hand.pid else self.starting_s
        spent[hand.pool.name] += time.monotonic() - hand.since


def _is_room(pool: ScorerPool) -> bool:
    have = ray.available_resources()
    return all(
        have.get(name, 0.0) >= float(pool.actor_options.get(option) or 0)
        for name, option in (("CPU", "num_cpus"), ("GPU", "num_gpus"))
    )


def check_room(pools: Sequence[ScorerPool]) -> None:
    """Raises ConfigError, with figures, when the first scorers have no room: they would wait for ever."""
    have = ray.available_resources().get("CPU", 0.0)
    needed = sum(pool.least * float(pool.actor_options.get("num_cpus") or 0) for pool in pools)
    if have < needed:
        count = sum(pool.least for pool in pools)
        raise ConfigError(
            f"scoring needs {needed:g} free logical CPUs for {count} scorers, but {free()}; start fewer "
            "(--min-actors), add a CPU node or lower the pools' num_cpus"
        )


def free() -> str:
    """How much of the cluster is free, in words."""
    have, total = ray.available_resources(), ray.cluster_resources()
    return f"{have.get('CPU', 0.0):g} of {total.get('CPU', 0.0):g} are free"
