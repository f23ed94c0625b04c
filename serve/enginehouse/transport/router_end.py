"""Channel: a router's connection to one replica of a pool, on which calls are made and cancelled.

A replica that is killed closes it, which fails its calls at once. One that no longer answers, because it or its node is
frozen or cut off, comes last after `SUSPECT_S` and is given up after `SILENT_S`, whether or not it has calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from enginehouse.contract import errors
from enginehouse.contract.errors import EnginehouseError, EngineUnavailable, InferenceFailed, Overloaded, ReplicaLost
from enginehouse.contract.tensors import Computed, Tensors, Timing
from enginehouse.transport import frames
from enginehouse.transport.frames import Connection, Kind, Message, WireError
from enginehouse.transport.handshake import RouterHandshake, tls

#: Seconds to connect and to be let in.
CONNECT_S = 2.0
#: Seconds between two looks at when something was last received. While calls are under way a silent replica is asked
#: whether it is there; while none is, only after `QUIET_S` of silence.
PING_S, QUIET_S = 0.4, 0.7
#: Seconds for which it may leave that open before it is doubted, and be silent in all before it is given up.
SUSPECT_S, SILENT_S = 0.7, 2.0
#: Seconds for which a replica that refused a call is not asked again.
FULL_S = 0.1
#: The stage at which a request is lost when nothing else was in the engine.
ALONE = "alone in the engine"
#: Bytes that wait to be sent, above which no more are added.
MAX_UNSENT_BYTES = 32 << 20


class Address(TypedDict):
    """Where a replica listens, and what lets one in."""

    host: str
    port: int
    key: str


@dataclass(slots=True)
class _Load:
    """What a model has to do on the replica: what this end sent, and at `received_at` what others had sent."""

    sent_ms: float = 0.0
    others_ms: float = 0.0
    received_at: float = 0.0

    def wait_ms(self, now: float) -> float:
        others_ms = self.others_ms - (now - self.received_at) * 1e3
        return self.sent_ms + others_ms if others_ms > 0 else self.sent_ms


class Channel(Connection):
    """The router's end. `pool` is what errors name."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        #: Whether calls can be made.
        self.is_open = False
        #: Whether the replica has asked for no more calls.
        self.is_draining = False
        self._pool = pool
        self._handshake: RouterHandshake | None = None
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Message]] = {}
        # Of them, those that are alone in the engine now.
        self._begun: set[int] = set()
        self._full_until = 0.0
        self._loads: defaultdict[str, _Load] = defaultdict(_Load)
        # When it was last asked, and when it was last found not to answer.
        self._asked_at = self._suspected_at = 0.0
        self._let_in: asyncio.Future[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._is_silent = False

    async def open(self, address: Address) -> None:
        """Connect. Raises EngineUnavailable."""
        loop = asyncio.get_running_loop()
        self._handshake = RouterHandshake(bytes.fromhex(address["key"]))
        self._let_in = loop.create_future()
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(lambda: self, address["host"], address["port"], ssl=tls(is_server=False))
                await self._let_in
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError | TimeoutError):
                raise
            where = f"{address['host']}:{address['port']}"
            raise EngineUnavailable(self._pool, f"no connection to {where}: {str(error) or 'no answer'}") from None

    def is_full(self, now: float) -> bool:
        """Whether the replica has just refused a call."""
        return now < self._full_until

    def wait_ms(self, now: float, model_key: str) -> float:
        """Predicted time until the replica is done with what it was sent for a model, by whomever.

        Models do not wait for each other: what they cost each other is in how long their calls take. A replica that is
        doubted may be gone: it comes last.
        """
        load = self._loads.get(model_key)
        wait_ms = load.wait_ms(now) if load else 0.0
        return wait_ms + SILENT_S * 1e3 if self._is_suspected else wait_ms

    def load_ms(self, now: float) -> float:
        """The same for all models together."""
        busy_ms = 0.0
        for load in self._loads.values():
            busy_ms += load.wait_ms(now)
        return busy_ms

    @property
    def _is_suspected(self) -> bool:
        return self._suspected_at > self.last_received

    def close(self) -> None:
        """Give the connection up; calls under way fail."""
        self.end("the connection was closed")

    async def infer(
        self,
        model_key: str,
        requests: Sequence[Tensors],
        rows: int,
        budget_s: float,
        expected_ms: float = 0.0,
        alone: bool = False,
        demand_ms: float = 0.0,
    ) -> Computed:
        """Answer requests of `rows` rows in all, as one; the engine is expected to take `expected_ms`.

        What is `alone` shares no batch, and when it is lost in the engine, the error says so. `demand_ms` is what the
        router was asked for since the last call to any replica of the pool.
        Raises what the pool raises, EngineUnavailable, ReplicaLost or Overloaded.
        """
        metas, buffers = await frames.encode_aside(requests)
        if self.transport is None or not self.is_open:
            raise EngineUnavailable(self._pool, "its replica is gone")
        if (unsent := self.transport.get_write_buffer_size()) > MAX_UNSENT_BYTES:
            raise Overloaded(f"{self._pool}: {unsent} bytes are still on their way to its replica")
        number = next(self._numbers)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        load = self._loads[model_key]
        load.sent_ms += expected_ms
        sent_at = time.monotonic()
        try:
            self.send(Kind.CALL, number, [model_key, rows, budget_s, alone, demand_ms, metas], buffers)
            message = await answer
        finally:
            del self._calls[number]
            self._begun.discard(number)
            load.sent_ms = load.sent_ms - expected_ms if self._calls else 0.0
            if answer.cancelled():
                self.send(Kind.CANCEL, number)
                if self.last_received < sent_at:
                    # If it is there, the doubt lasts as long as the way to it and back.
                    self._suspected_at = time.monotonic()
                    self._ask(self._suspected_at)
        if message.kind == Kind.FAILURE:
            name, arguments, backlog_ms = message.content
            _receive_backlog(load, backlog_ms)
            raise _error(name, arguments)
        try:
            timing, made, backlog_ms = message.content
            _receive_backlog(load, backlog_ms)
            return await frames.decode_aside(made, message.tensors), Timing(**timing)
        except Exception as error:
            raise InferenceFailed(f"{self._pool}: its answer cannot be read: {error}") from None

    def received(self, message: Message) -> None:
        if self._handshake is None or self._let_in is None:
            raise WireError("a message before open()")
        match message.kind:
            case Kind.HELLO:
                self.send(Kind.PROOF, 0, self._handshake.proof(message.content))
            case Kind.WELCOME:
                self._handshake.check(message.content)
                self.is_proven = self.is_open = True
                self._look_again(time.monotonic())
                if not self._let_in.done():
                    self._let_in.set_result(None)
            case Kind.DRAINING:
                self.is_draining = True
            case Kind.BEGUN:
                self._begun.add(message.call)
            case Kind.ANSWER | Kind.FAILURE | Kind.FULL:
                self._answered(message)

    def _answered(self, message: Message) -> None:
        # One that is no longer waited for was cancelled.
        answer = self._calls.get(message.call)
        if not self.is_proven or answer is None or answer.done():
            return
        if message.kind == Kind.FULL:
            self._full_until = time.monotonic() + FULL_S
            answer.set_exception(Overloaded(f"{self._pool}: its replica takes no more calls: {message.content}"))
        else:
            answer.set_result(message)

    def lost(self, reason: str) -> None:
        self.is_open = False
        if self._watch is not None:
            self._watch.cancel()
        if self._let_in is not None and not self._let_in.done():
            self._let_in.set_exception(ConnectionError(reason))
        for number, answer in self._calls.items():
            if answer.done():
                continue
            if self._is_silent:
                # Nobody is suspected of that: a node that is cut off is silent too.
                answer.set_exception(EngineUnavailable(self._pool, f"its replica is gone: {reason}"))
            else:
                stage = ALONE if number in self._begun else "under way"
                answer.set_exception(ReplicaLost(self._pool, reason, stage))

    def _ask(self, now: float) -> None:
        self._asked_at = now
        self.send(Kind.PING)

    def _look_again(self, now: float) -> None:
        self._looked = now
        self._watch = asyncio.get_running_loop().call_later(PING_S, self._look)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked > 2 * PING_S:
            # This process itself was held up: what was said meanwhile is not read yet.
            self.last_received = now
        silent_s = now - self.last_received
        if silent_s > SILENT_S:
            self._is_silent = True
            self.end(f"silent for {silent_s:.1f} s")
            return
        if self._asked_at <= self.last_received:
            if silent_s > (PING_S / 2 if self._calls else QUIET_S):
                self._ask(now)
        elif now - self._asked_at > SUSPECT_S:
            self._suspected_at = now
        self._look_again(now)


def _receive_backlog(load: _Load, backlog_ms: float) -> None:
    load.received_at = time.monotonic()
    load.others_ms = max(0.0, backlog_ms - load.sent_ms)


def _error(name: str, arguments: list[object]) -> EnginehouseError:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, EnginehouseError):
        with contextlib.suppress(TypeError):
            return kind(*arguments)
    return InferenceFailed(f"{name}: {' '.join(map(str, arguments))}")
