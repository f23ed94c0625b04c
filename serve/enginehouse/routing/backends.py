"""Backends as one router sees them: the queues of its requests, the recent pace, and failures in a row."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from enginehouse.contract.config import LAST, USUAL
from enginehouse.contract.errors import DeadlineExceeded, EnginehouseError, InferenceFailed
from enginehouse.contract.manifest import ACCELERATOR_OF
from enginehouse.contract.tensors import Computed, Tensors, Timing
from enginehouse.engines.padding import Padder
from enginehouse.routing.coalescing import HOLD_S, Coalescer
from enginehouse.routing.pace import Contention, Contentions, Pace
from enginehouse.routing.policy import HOP_MS, BackendState
from enginehouse.routing.view import ModelVersion

#: Most bytes of inputs in one coalesced call (a single request may be larger): handling a call of this size blocks the
#: event loop of either side for some 10 ms.
MAX_CALL_BYTES = 16 << 20
#: Failed calls in a row after which a backend is tried last, and seconds between the requests that probe it.
FAILURES, PROBE_S = 3, 1.0
#: Seconds, or multiple of the predicted time if longer, after which the next backend is tried.
ATTEMPT_S, PATIENCE = 2.0, 5.0
#: Seconds after which an unused backend is forgotten.
FORGET_AFTER_S = 60.0


class Sender(Protocol):
    """Sends requests to a backend as one call."""

    async def __call__(
        self, requests: Sequence[Tensors], rows: int, budget_s: float, isolated: bool = False, priority: int = USUAL
    ) -> Computed:
        """The outputs of all `requests`, of `rows` rows together, within `budget_s` seconds.

        `isolated`: alone in its process, as far as that can be; a resident engine refuses it.
        """
        ...


class Backend:
    """One model version on one pool, with the queues of this router's requests for it.

    Those of the last priority have a queue of their own: they take no slot, and no part of a call, from the others.

    A circuit breaker: after `FAILURES` failed calls in a row it is ranked last, except that one request every `PROBE_S`
    seconds probes it; an answer closes the circuit.
    """

    def __init__(
        self,
        version: ModelVersion,
        state: BackendState,
        pace: Pace,
        contention: Contention,
        call: Callable[[Backend], Sender],
    ) -> None:
        self.version = version
        self.state = state
        self.seen_at = 0.0
        most_rows = _most_rows(version, state)
        self.queue = Coalescer(self._timed, most_rows, MAX_CALL_BYTES)
        self.last_queue = Coalescer(functools.partial(self._timed, priority=LAST), most_rows, MAX_CALL_BYTES)
        self.queue.padder = self.last_queue.padder = _padder(version, state)
        self._call = call(self)
        self._pace = pace
        #: Of the hardware that it runs on.
        self.contention = contention
        # Requests that may have killed a replica are sent one at a time.
        self._isolated = asyncio.Lock()
        self._demand_ms = 0.0
        self._failures = 0
        self._error = ""
        self._probe_at = 0.0

    @property
    def failed_repeatedly(self) -> bool:
        """Whether the last two calls failed: then the backend may be at fault rather than a request."""
        return self._failures > 1

    def count_demand(self, rows: int, size: int | None) -> None:
        """Count a request as demand, answered or not: its rows' share of the engine milliseconds of a full batch."""
        most = max(rows, self.queue.max_rows)
        self._demand_ms += self.expected_ms(most, size) * rows / most / self.state.lanes

    def take_demand_ms(self) -> float:
        """The demand since this was last called, in engine milliseconds."""
        demand_ms, self._demand_ms = self._demand_ms, 0.0
        return demand_ms

    def update(self, version: ModelVersion, state: BackendState, routers: int, now: float) -> BackendState:
        """Take the view's state; returns it with what this router knows, except `queued_rows`."""
        if version is not self.version:
            self.queue.max_rows = self.last_queue.max_rows = _most_rows(version, state)
        if version is not self.version or state.pads != self.state.pads:
            self.queue.padder = self.last_queue.padder = _padder(version, state)
        self.version = version
        self.seen_at = now
        rows, pace = self.queue.max_rows, self._pace.of(state.pool, now, self.contention.at(now))
        drain_ms = self.queue.drain_ms(now)
        self.state = state = state._replace(batch_rows=rows, drain_ms=drain_ms, pace=pace, fails=self._fails(now))
        full_ms = self.expected_ms(rows)
        slots = _slots(version, state, rows, full_ms, routers)
        least_ms = self.expected_ms(1, state.table.sizes[0] if state.table and state.table.sizes else None)
        for queue in (self.queue, self.last_queue):
            queue.slots, queue.hold_s, queue.least_s = slots, HOLD_S + full_ms / 1e3, least_ms / 1e3
        # Jobs ask for many rows at once, and their calls hold up none of the others': lanes need not wait for a hop.
        self.last_queue.slots = max(slots, 2 * state.replicas * state.lanes)
        return state

    def expected_ms(self, rows: int, size: int | None = None) -> float:
        """Predicted milliseconds of an engine call, of the largest size if none is given; 0 when never measured."""
        return self.state.compute_ms(rows, size) if self.state.table else 0.0

    def call_ms(self, requests: Sequence[Tensors], rows: int) -> float:
        """Predicted milliseconds of one engine call with all `requests`, which have the same size."""
        return self.expected_ms(rows, self.version.manifest.size_of(requests[0]))

    def delay_ms(self, requests: Sequence[Tensors], rows: int) -> float:
        """Predicted milliseconds by which such a call delays those after it: it may have a share of the cores only."""
        return self.call_ms(requests, rows) / self.state.lanes

    async def infer(self, inputs: Tensors, rows: int, deadline: float, priority: int) -> Computed:
        """Answer one request, coalesced with others. Raises what a call to the pool raises, and Recalled."""
        queue = self.last_queue if priority == LAST else self.queue
        return await queue.infer(inputs, rows, deadline, priority)

    async def infer_isolated(self, inputs: Tensors, rows: int, deadline: float) -> Computed:
        """As `infer`, in a call of its own, one such call at a time."""
        async with self._isolated:
            return await self._timed([inputs], rows, deadline - time.monotonic(), isolated=True)

    @property
    def has_waiting(self) -> bool:
        """Whether requests of any priority wait."""
        return self.queue.waiting_rows > 0 or self.last_queue.waiting_rows > 0

    def waiting_before(self, priority: int) -> int:
        """Rows of this router that a new request of this priority would be sent after, or together with."""
        before = self.queue.waiting_before(priority)
        return before + self.last_queue.waiting_rows if priority == LAST else before

    async def _timed(
        self,
        requests: Sequence[Tensors],
        rows: int,
        budget_s: float,
        isolated: bool = False,
        priority: int = USUAL,
    ) -> Computed:
        """Make a call and learn from it: failures for the circuit breaker, times for the pace."""
        if self._failures >= FAILURES:
            self._probe_at = time.monotonic() + PROBE_S
        try:
            answer = await self._call(requests, rows, budget_s, isolated, priority)
        except EnginehouseError as error:
            # One of the last priority may have waited for others all its time.
            if priority != LAST and self._counts(error, requests, rows, budget_s, isolated):
                self._failures += 1
                self._error = str(error)
                if self._failures == FAILURES:
                    self._probe_at = time.monotonic() + PROBE_S
            raise
        self._failures = 0
        # Large requests are computed in slices, whose times are not those of one call.
        if rows <= answer[1].batch_rows:
            self._note(requests[0], rows, answer[1])
        return answer

    def _note(self, request: Tensors, rows: int, timing: Timing) -> None:
        table = self.state.table
        if table is None or timing.compute_ms <= 0:
            return
        if self.state.pads and rows < timing.batch_rows:
            # The others of its call were longer, and nobody tells how much.
            return
        now, pool, rows = time.monotonic(), self.state.pool, timing.batch_rows
        ratio = timing.compute_ms / table.predict_ms(rows, self.version.manifest.size_of(request))
        self._pace.note(pool, rows, ratio, now, self.contention)

    def _counts(
        self, error: EnginehouseError, requests: Sequence[Tensors], rows: int, budget_s: float, isolated: bool
    ) -> bool:
        """Whether a failed call says something of the backend."""
        if isinstance(error, DeadlineExceeded):
            # Only if the call had the time of a whole attempt: a request that came late proves nothing, nor does one
            # that has waited to be alone.
            return not isolated and budget_s >= 0.9 * attempt_s(self.call_ms(requests, rows))
        if isinstance(error, InferenceFailed):
            # Any of several requests may be at fault: they are halved, and one alone counts.
            return len(requests) == 1
        # What is full, or lacks the model just now, is well; and so is what refuses a request.
        return error.status >= 500

    def _fails(self, now: float) -> str:
        if self._failures < FAILURES or now > self._probe_at:
            return ""
        return f"{self._failures} calls in a row failed, at last: {self._error}"


class Backends:
    """The backends that this router uses, and their states for the policy. `call` makes the sender of a backend."""

    def __init__(self, call: Callable[[Backend], Sender], routers: int) -> None:
        self._call = call
        self._routers = routers
        self._backends: dict[tuple[str, str], Backend] = {}
        self._paces: dict[tuple[str, str], Pace] = {}
        self._contentions = Contentions()
        self._seen: dict[str, tuple[Sequence[BackendState], list[tuple[BackendState, Backend]]]] = {}

    def states(self, version: ModelVersion, live: Sequence[BackendState], priority: int = USUAL) -> list[BackendState]:
        """The view's states `live`, completed with what this router knows, for a request of this priority.

        On the path of every request: everything but the queues is kept while `live` is the same object.
        """
        seen = self._seen.get(version.key)
        if seen is None or seen[0] is not live:
            now = time.monotonic()
            known = []
            for state in live:
                backend = self._of(version, state)
                backend.contention = self._contention(state)
                known.append((backend.update(version, state, self._routers, now), backend))
            if seen is not None and _has_gained(seen[0], live):
                # Requests that wait for another backend may be answered sooner by the new one.
                for _, backend in known:
                    backend.queue.recall()
                    backend.last_queue.recall()
            seen = self._seen[version.key] = live, known
        return [
            state.queued(backend.waiting_before(priority)) if backend.has_waiting else state
            for state, backend in seen[1]
        ]

    def get(self, version: ModelVersion, state: BackendState) -> Backend:
        """The backend of one of the `states`."""
        return self._of(version, state)

    def _of(self, version: ModelVersion, state: BackendState) -> Backend:
        key = state.pool, version.key
        backend = self._backends.get(key)
        if backend is None:
            self._forget(time.monotonic() - FORGET_AFTER_S)
            pace = self._paces.setdefault((version.key, ACCELERATOR_OF[state.engine]), Pace())
            backend = self._backends[key] = Backend(version, state, pace, self._contention(state), self._call)
        return backend

    def _contention(self, state: BackendState) -> Contention:
        return self._contentions.of(ACCELERATOR_OF[state.engine], state.nodes)

    def _forget(self, unused_since: float) -> None:
        """Forget backends that were not used since then: those of versions that were replaced, for example."""
        kept = {
            key: known
            for key, known in self._backends.items()
            if known.seen_at > unused_since or not (known.queue.is_unused and known.last_queue.is_unused)
        }
        self._backends = kept
        ids = {model_key for _, model_key in kept}
        self._seen = {model_key: seen for model_key, seen in self._seen.items() if model_key in ids}
        self._paces = {key: pace for key, pace in self._paces.items() if key[0] in ids}


def attempt_s(expected_ms: float) -> float:
    """Seconds that an attempt may take when another backend could be tried."""
    return max(ATTEMPT_S, PATIENCE * expected_ms / 1e3)


def _has_gained(before: Sequence[BackendState], now: Sequence[BackendState]) -> bool:
    """Whether some backend has more replicas than before."""
    had = {state.pool: state.replicas for state in before}
    return any(state.replicas > had.get(state.pool, 0) for state in now)


def _most_rows(version: ModelVersion, backend: BackendState) -> int:
    """Most rows of a coalesced call: `max_batch_size`, else one efficient batch."""
    if not version.signature.batched:
        return 1
    return version.manifest.rows_of_a_call(backend.engine, backend.artifact, version.config.max_batch_size)


def _padder(version: ModelVersion, backend: BackendState) -> Padder | None:
    """What pads requests of several lengths, where the engines take that."""
    if not backend.pads:
        return None
    manifest = version.manifest
    padder = Padder.of(manifest, manifest.artifact(backend.artifact), backend.engine, backend.table)
    if padder is not None:
        padder.is_limited = version.config.max_batch_size is not None
    return padder


def _slots(version: ModelVersion, backend: BackendState, max_rows: int, full_ms: float, routers: int) -> int:
    """How many calls to a backend may be in flight. More would only be smaller ones, and each call has its cost.

    `full_ms` is the predicted time of a call of `max_rows` rows.
    """
    if version.config.batch_wait_ms:
        # Replicas are to wait for larger batches, from all routers, so nothing is held back here.
        return backend.replicas * max_rows
    if full_ms <= HOP_MS:
        # Faster than a hop, or never measured: more calls would be smaller ones.
        return 1
    # One for each lane of a replica: while it is on its way, the replica computes another router's. The only router
    # needs two.
    is_alone = backend.resident or routers == 1
    return backend.replicas * backend.lanes * (2 if is_alone else 1)
