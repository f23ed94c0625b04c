"""One model on one pool as a router has it, in simulated time: `routing.backends.Backend` and its `Coalescer`."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.replay.book import Request
from benchmarks.replay.channel import Channel
from benchmarks.replay.clock import Clock, Timer
from benchmarks.replay.fleet import PRICE, Model
from benchmarks.replay.machines import Call, Pool
from enginehouse.contract.manifest import ACCELERATOR_OF
from enginehouse.routing.backends import FAILURES, PROBE_S, attempt_s
from enginehouse.routing.coalescing import HOLD_S, KNOWN_S, NEWEST
from enginehouse.routing.pace import Contention, Pace
from enginehouse.routing.policy import HOP_MS, BackendState, Choice


@dataclass(slots=True, eq=False)
class Attempt:
    """A request on its way through the backends that it may try; on the present one `until`.

    One that is `refused` was so by all replicas of one of them.
    """

    request: Request
    choices: Sequence[Choice] = ()
    tried: int = 0
    until: float = math.inf
    refused: bool = False


class Attempts(Protocol):
    """Who hears how attempts went."""

    def answered(self, attempt: Attempt) -> None: ...

    def failed(self, attempt: Attempt) -> None:
        """Try elsewhere."""

    def expired(self, attempt: Attempt) -> None: ...


@dataclass(slots=True, eq=False)
class _Sent(Call):
    """A call, which holds a slot until `release` and is waited for until `timeout`."""

    channel: Channel
    expected_ms: float
    began: float
    attempts: list[Attempt]
    release: Timer | None = None
    timeout: Timer | None = None


@dataclass(slots=True, eq=False)
class Backend:
    """The queue of requests for one model on one pool, and what is known of how it does.

    A request that finds a free slot leaves at once; those that wait leave together, by deadline, in calls that are
    worth it. `freest` names replicas, the one with the least to do for the model first; each has `calls` at a time.
    """

    clock: Clock
    model: Model
    pool: Pool
    pace: Pace
    contention: Contention
    freest: Callable[[Pool, Model], Sequence[Channel]]
    attempts: Attempts
    calls: int
    state: BackendState = field(init=False)
    _waiting: list[tuple[float, int, Attempt]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _waiting_rows: int = 0
    _under_way: int = 0
    _slots: int = 1
    _hold_s: float = HOLD_S
    _least_s: float = 0.0
    _left_at: float = 0.0
    _stayed: bool = False
    _row_ms: float = 0.0
    _row_known_at: float = -math.inf
    _failures: int = 0
    _probe_at: float = 0.0

    def __post_init__(self) -> None:
        engine, cell = self.pool
        accelerator = ACCELERATOR_OF[engine]
        self.state = BackendState(
            f"{engine}-{cell:02}",
            engine,
            accelerator,
            "fp32",
            "full",
            0,
            self.model.tables[engine],
            price=PRICE[accelerator],
            batch_rows=self.model.batch_rows[engine],
        )

    def update(self, replicas: int, nodes: frozenset[str], wait_ms: float) -> BackendState:
        """Take what is known of the pool by now; returns that with what this backend knows, but for what waits."""
        now = self.clock.now
        fails = "calls failed" if self._failures >= FAILURES and now <= self._probe_at else ""
        pace = self.pace.of(self.state.pool, now, self.contention.at(now))
        drain_ms = self._row_ms if now - self._row_known_at < KNOWN_S else 0.0
        self.state = state = self.state._replace(
            replicas=replicas, nodes=nodes, wait_ms=wait_ms, drain_ms=drain_ms, pace=pace, fails=fails
        )
        full_ms = state.compute_ms(state.batch_rows, None)
        self._slots = 1 if full_ms <= HOP_MS else replicas * self.calls
        self._hold_s = HOLD_S + full_ms / 1e3
        self._least_s = state.compute_ms(1, None) / 1e3
        return state

    def waiting_rows(self) -> int:
        """Rows of the requests that wait, but for those whose time is over."""
        while self._waiting and self._waiting[0][0] <= self.clock.now:
            self._drop()
        return self._waiting_rows

    def infer(self, attempt: Attempt) -> None:
        """Answer a request by `attempt.until`, in company."""
        if self._under_way < self._slots and not self._waiting:
            self._send([attempt])
        else:
            heapq.heappush(self._waiting, (attempt.until, next(self._numbers), attempt))
            self._waiting_rows += attempt.request.rows

    def answered(self, call: Call, compute_ms: float, rows: int) -> None:
        """Hears of a call."""
        assert isinstance(call, _Sent)
        if self._is_over(call):
            self._failures = 0
            call.channel.told(self.clock.now, self.model)
            table_ms = self.model.tables[self.pool[0]].predict_ms(rows)
            self.pace.note(self.state.pool, rows, compute_ms / table_ms, self.clock.now, self.contention)
        for attempt in call.attempts:
            self.attempts.answered(attempt)

    def expired(self, call: Call) -> None:
        """Hears of a call."""
        assert isinstance(call, _Sent)
        self._timed_out(call)
        for attempt in call.attempts:
            self.attempts.expired(attempt)

    def lost(self, call: Call) -> None:
        """Hears of a call."""
        assert isinstance(call, _Sent)
        if self._is_over(call):
            self._failed()
        for attempt in call.attempts:
            self.attempts.failed(attempt)

    def _send(self, group: list[Attempt]) -> None:
        if self._failures >= FAILURES:
            self._probe_at = self.clock.now + PROBE_S
        rows = sum(attempt.request.rows for attempt in group)
        until = max(attempt.until for attempt in group)
        channels = self.freest(self.pool, self.model)
        channel = next((known for known in channels if self._is_taken(known, until)), None)
        if channel is None:
            if not channels:
                self._failed()
            for attempt in group:
                attempt.refused |= bool(channels)
                self.attempts.failed(attempt)
            return
        expected_ms = self.state.compute_ms(rows, None)
        requests = [attempt.request for attempt in group]
        call = _Sent(self.model, requests, rows, until, self, channel, expected_ms, self.clock.now, group)
        self._under_way += 1
        channel.sent(self.model, expected_ms)
        call.release = self.clock.at(self.clock.now + self._hold_s, lambda: self._released(call))
        call.timeout = self.clock.at(until, lambda: self._timed_out(call))
        channel.replica.submit(call)

    def _is_taken(self, channel: Channel, until: float) -> bool:
        """Whether the replica takes a call: at once it refuses what would be late."""
        now = self.clock.now
        machine, engine = channel.replica.machine, channel.replica.engine(self.model)
        if machine.is_up and engine.backlog_ms() > (until - now) * 1e3:
            channel.told(now, self.model)
            return False
        return True

    def _timed_out(self, call: _Sent) -> None:
        """It is no longer waited for, nor is anything learned from it; who has time left goes on elsewhere."""
        if not self._is_over(call):
            return
        call.channel.ran_out(self.clock.now)
        elsewhere = [attempt for attempt in call.attempts if attempt.until < attempt.request.deadline]
        if elsewhere:
            if call.deadline - call.began >= attempt_s(call.expected_ms):
                self._failed()
            call.attempts = [attempt for attempt in call.attempts if attempt not in elsewhere]
            for attempt in elsewhere:
                self.attempts.failed(attempt)

    def _is_over(self, call: _Sent) -> bool:
        """Stop counting a call; False when it was before."""
        if call.timeout is None:
            return False
        call.timeout.cancel()
        call.timeout = None
        call.channel.over(self.model, call.expected_ms)
        self._released(call)
        return True

    def _released(self, call: _Sent) -> None:
        if call.release is not None:
            call.release.cancel()
            call.release = None
            self._under_way -= 1
            while self._under_way < self._slots and (group := self._next_group()):
                self._note_leaving(group)
                self._send(group)

    def _note_leaving(self, group: list[Attempt]) -> None:
        """Learn how long each row takes to get its turn while others have to stay behind."""
        now = self.clock.now
        if self._stayed:
            row_ms = (now - self._left_at) * 1e3 / sum(attempt.request.rows for attempt in group)
            known = now - self._row_known_at < KNOWN_S
            self._row_ms += (row_ms - self._row_ms) * (NEWEST if known else 1.0)
            self._row_known_at = now
        self._left_at = now
        self._stayed = self._waiting_rows > 0

    def _next_group(self) -> list[Attempt]:
        """The first request and, by deadline, those that fit beside it."""
        group: list[Attempt] = []
        others: list[tuple[float, int, Attempt]] = []
        rows, most = 0, self.state.batch_rows
        latest = self.clock.now + self._least_s
        while self._waiting and rows < most:
            until, _, attempt = self._waiting[0]
            if until < latest:
                self._drop()
            elif group and rows + attempt.request.rows > most:
                others.append(heapq.heappop(self._waiting))
            else:
                heapq.heappop(self._waiting)
                self._waiting_rows -= attempt.request.rows
                rows += attempt.request.rows
                group.append(attempt)
        for entry in others:
            heapq.heappush(self._waiting, entry)
        return group

    def _drop(self) -> None:
        _, _, attempt = heapq.heappop(self._waiting)
        self._waiting_rows -= attempt.request.rows
        if attempt.until < attempt.request.deadline:
            self.attempts.failed(attempt)
        else:
            self.attempts.expired(attempt)

    def _failed(self) -> None:
        self._failures += 1
        if self._failures == FAILURES:
            self._probe_at = self.clock.now + PROBE_S
