"""The router's end of a connection: a Channel makes calls to one replica of a pool and cancels them.

A replica that is killed closes the connection, which fails its calls at once. One that stops responding, because its
process or node is frozen or cut off from the network, is found by heartbeat: after a PING without reply for `SUSPECT_S`
it is suspected, and routers prefer others; after `SILENT_S` without a byte the connection is closed. This holds for
idle connections too.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from enginehouse.contract import errors
from enginehouse.contract.config import LAST, USUAL
from enginehouse.contract.errors import EnginehouseError, EngineUnavailable, InferenceFailed, Overloaded, ReplicaLost
from enginehouse.contract.tensors import Computed, Tensors, Timing
from enginehouse.transport import frames
from enginehouse.transport.frames import Connection, Isolated, Kind, Message, WireError
from enginehouse.transport.handshake import RouterHandshake, tls

#: Timeout in seconds for connecting and the handshake.
CONNECT_S = 2.0
#: Seconds between two liveness checks, and seconds of silence after which a check sends a PING; `PING_S` / 2 of
#: silence while calls are in flight.
PING_S, QUIET_S = 0.4, 0.7
#: Seconds a PING may stay unanswered before the replica is suspected, and of silence before the connection is closed.
SUSPECT_S, SILENT_S = 0.7, 2.0
#: Seconds for which a replica that refused a call counts as full.
FULL_S = 0.1
#: `ReplicaLost.stage` of a call that was lost somewhere on its way, or computed beside any others; while the engine
#: computed it and nothing else in its process; and while it did beside what could not be waited for, such as a load.
UNDER_WAY, ISOLATED, IN_COMPANY = "under way", "isolated in the engine", "in the engine beside what takes long there"
#: As ISOLATED, where it is known that a fatal signal ended the process.
CRASHED = "isolated in the engine, by a fatal signal"
#: Limit of bytes in the write buffer, above which calls are refused.
MAX_UNSENT_BYTES = 32 << 20


class Address(TypedDict):
    """Where a replica listens, and the key that its callers must prove, as hexadecimal text.

    Those of the release before, which a running application may still have, do not say `takes_last` nor `tells_counts`,
    and can do neither.
    """

    host: str
    port: int
    key: str
    takes_last: NotRequired[bool]
    tells_counts: NotRequired[bool]


@dataclass(slots=True)
class _Load:
    """A model's backlog on the replica: this router's calls, and those of other routers as of `received_at`.

    `last_ms` are this router's calls of the last priority, which no other waits for.
    """

    sent_ms: float = 0.0
    others_ms: float = 0.0
    received_at: float = 0.0
    last_ms: float = 0.0

    def wait_ms(self, now: float) -> float:
        others_ms = self.others_ms - (now - self.received_at) * 1e3
        return self.sent_ms + others_ms if others_ms > 0 else self.sent_ms


class Channel(Connection):
    """Connection to one replica of `pool`: `open` it, call `infer` any number of times, `close` it."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        #: Whether the handshake is done and the connection not lost.
        self.is_open = False
        #: Whether the replica is stopping and refuses new calls.
        self.is_draining = False
        self._pool = pool
        self._takes_last = self._tells_counts = False
        self._handshake: RouterHandshake | None = None
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Message]] = {}
        # Of these, the stages of the isolated calls that the engine computes now.
        self._begun: dict[int, str] = {}
        # Of calls of the last priority, and of all others.
        self._full_until = {True: 0.0, False: 0.0}
        self._loads: defaultdict[str, _Load] = defaultdict(_Load)
        # Times of the last PING and of the last suspicion; anything received later settles both.
        self._pinged_at = self._suspected_at = 0.0
        self._handshaken: asyncio.Future[None] | None = None
        self._check_timer: asyncio.TimerHandle | None = None
        self._checked_at = 0.0
        # Whether this end closed the connection for silence.
        self._is_silent = False

    async def open(self, address: Address) -> None:
        """Connect and shake hands within `CONNECT_S`. Raises EngineUnavailable."""
        loop = asyncio.get_running_loop()
        self._handshake = RouterHandshake(bytes.fromhex(address["key"]))
        self._handshaken = loop.create_future()
        self._takes_last = address.get("takes_last", False)
        self._tells_counts = address.get("tells_counts", False)
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(lambda: self, address["host"], address["port"], ssl=tls(is_server=False))
                await self._handshaken
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError | TimeoutError):
                raise
            where = f"{address['host']}:{address['port']}"
            raise EngineUnavailable(self._pool, f"no connection to {where}: {str(error) or 'no answer'}") from None

    def is_full(self, now: float, priority: int = USUAL) -> bool:
        """Whether the replica refused such a call within the last `FULL_S`; `now` is `time.monotonic()`, also below."""
        return now < self._full_until[priority == LAST]

    def wait_ms(self, now: float, model_key: str, priority: int = USUAL) -> float:
        """Predicted milliseconds until the replica has computed its backlog of a model, from all routers.

        Calls of the last priority count for those of their own only.

        Backlogs of other models do not count: each model has its own queue, and contention shows in how long its calls
        take. A suspected replica gets `SILENT_S` on top, so that others are preferred.
        """
        load = self._loads.get(model_key)
        wait_ms = load.wait_ms(now) if load else 0.0
        if load and priority == LAST:
            wait_ms += load.last_ms
        return wait_ms + SILENT_S * 1e3 if self._is_suspected else wait_ms

    def load_ms(self, now: float) -> float:
        """Predicted milliseconds of computing in the backlogs of all models together."""
        busy_ms = 0.0
        for load in self._loads.values():
            busy_ms += load.wait_ms(now)
        return busy_ms

    @property
    def _is_suspected(self) -> bool:
        return self._suspected_at > self.last_received

    def close(self) -> None:
        """Close the connection; calls in flight fail."""
        self.end("the connection was closed")

    async def infer(
        self,
        model_key: str,
        requests: Sequence[Tensors],
        rows: int,
        budget_s: float,
        expected_ms: float = 0.0,
        isolated: Isolated = Isolated.NO,
        demand_ms: float = 0.0,
        priority: int = USUAL,
    ) -> Computed:
        """Outputs of `requests`, concatenated along dim 0, and their timing.

        `rows` is the number of rows together, `budget_s` the seconds until the deadline, which the caller enforces by
        cancelling, and `expected_ms` the predicted time of the engine call. If an `isolated` call is lost in the
        engine, `ReplicaLost.stage` is `ISOLATED` or `IN_COMPANY`. `demand_ms` is the engine time demanded of the pool
        at this router since the last call to any of its replicas, for autoscaling.

        Raises EngineUnavailable if the connection was gone before or silent, ReplicaLost if it ended otherwise,
        Overloaded when it refuses the call or its write buffer is full, and whatever the replica answers with.
        """
        metas, buffers = await frames.encode_async(requests)
        if self.transport is None or not self.is_open:
            raise EngineUnavailable(self._pool, "its replica is gone")
        if (unsent := self.transport.get_write_buffer_size()) > MAX_UNSENT_BYTES:
            raise Overloaded(f"{self._pool}: {unsent} bytes are still on their way to its replica")
        number = next(self._numbers)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        load = self._loads[model_key]
        sent_ms, last_ms = (0.0, expected_ms) if priority == LAST else (expected_ms, 0.0)
        load.sent_ms += sent_ms
        load.last_ms += last_ms
        sent_at = time.monotonic()
        try:
            last = [LAST] if priority == LAST and self._takes_last else []
            self.send(Kind.CALL, number, [model_key, rows, budget_s, isolated, demand_ms, metas, *last], buffers)
            message = await answer
        finally:
            del self._calls[number]
            self._begun.pop(number, None)
            load.sent_ms = load.sent_ms - sent_ms if self._calls else 0.0
            load.last_ms = load.last_ms - last_ms if self._calls else 0.0
            if answer.cancelled():
                self.send(Kind.CANCEL, number)
                if self.last_received < sent_at:
                    # Nothing arrived during the call: suspect it now; the PONG of a live replica soon clears it.
                    self._suspected_at = time.monotonic()
                    self._ping(self._suspected_at)
        if message.kind == Kind.FULL:
            self._full_until[priority == LAST] = time.monotonic() + FULL_S
            raise Overloaded(f"{self._pool}: its replica takes no more calls: {message.content}")
        if message.kind == Kind.FAILURE:
            name, arguments, backlog_ms = message.content
            _receive_backlog(load, backlog_ms)
            raise _error(name, arguments)
        try:
            timing, output_metas, backlog_ms = message.content
            _receive_backlog(load, backlog_ms)
            return await frames.decode_async(output_metas, message.tensors), Timing(**timing)
        except Exception as error:
            raise InferenceFailed(f"{self._pool}: its answer cannot be read: {error}") from None

    async def counts(self) -> Any:
        """What the replica's node has counted, as plain data; None where it cannot tell.

        The caller bounds the wait. Raises EngineUnavailable and ReplicaLost when the connection is or gets lost.
        """
        if not self._tells_counts:
            return None
        if not self.is_open:
            raise EngineUnavailable(self._pool, "its replica is gone")
        number = next(self._numbers)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            self.send(Kind.COUNTS, number)
            return (await answer).content
        finally:
            del self._calls[number]

    def received(self, message: Message) -> None:
        if self._handshake is None or self._handshaken is None:
            raise WireError("a message before open()")
        match message.kind:
            case Kind.HELLO:
                self.send(Kind.PROOF, 0, self._handshake.proof(message.content))
            case Kind.WELCOME:
                self._handshake.check(message.content)
                self.is_proven = self.is_open = True
                self._schedule_check(time.monotonic())
                if not self._handshaken.done():
                    self._handshaken.set_result(None)
            case Kind.DRAINING:
                self.is_draining = True
            case Kind.BEGUN:
                # A replica of the release before sends nothing with it, and computes alone only.
                self._begun[message.call] = IN_COMPANY if message.content is False else ISOLATED
            case Kind.ANSWER | Kind.FAILURE | Kind.FULL | Kind.COUNTS:
                self._resolve(message)

    def _resolve(self, message: Message) -> None:
        # There is none for a call that was cancelled.
        answer = self._calls.get(message.call)
        if not self.is_proven or answer is None or answer.done():
            return
        answer.set_result(message)

    def lost(self, reason: str) -> None:
        self.is_open = False
        if self._check_timer is not None:
            self._check_timer.cancel()
        if self._handshaken is not None and not self._handshaken.done():
            self._handshaken.set_exception(ConnectionError(reason))
        for number, answer in self._calls.items():
            if answer.done():
                continue
            if self._is_silent:
                # Not ReplicaLost, which blames the request: a node that is cut off from the network is silent too.
                answer.set_exception(EngineUnavailable(self._pool, f"its replica is gone: {reason}"))
            else:
                answer.set_exception(ReplicaLost(self._pool, reason, self._begun.get(number, UNDER_WAY)))

    def _ping(self, now: float) -> None:
        self._pinged_at = now
        self.send(Kind.PING)

    def _schedule_check(self, now: float) -> None:
        self._checked_at = now
        self._check_timer = asyncio.get_running_loop().call_later(PING_S, self._check)

    def _check(self) -> None:
        now = time.monotonic()
        if now - self._checked_at > 2 * PING_S:
            # This process was blocked, so bytes that arrived meanwhile are still unread: start counting anew.
            self.last_received = now
        silent_s = now - self.last_received
        if silent_s > SILENT_S:
            self._is_silent = True
            self.end(f"silent for {silent_s:.1f} s")
            return
        if self._pinged_at <= self.last_received:
            if silent_s > (PING_S / 2 if self._calls else QUIET_S):
                self._ping(now)
        elif now - self._pinged_at > SUSPECT_S:
            self._suspected_at = now
        self._schedule_check(now)


def _receive_backlog(load: _Load, backlog_ms: float) -> None:
    load.received_at = time.monotonic()
    load.others_ms = max(0.0, backlog_ms - load.sent_ms)


def _error(name: str, arguments: list[object]) -> EnginehouseError:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, EnginehouseError):
        with contextlib.suppress(TypeError):
            return kind(*arguments)
    return InferenceFailed(f"{name}: {' '.join(map(str, arguments))}")
