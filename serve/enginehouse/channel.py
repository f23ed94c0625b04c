"""Channel: a router's connection to one replica of a pool, on which calls are made and cancelled.

A replica that is killed closes it, which fails its calls at once. One that no longer answers, because it or its node is
frozen or cut off, is given up after `SILENT_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import time
from collections.abc import Sequence
from typing import TypedDict

from enginehouse import errors, wire
from enginehouse.errors import EnginehouseError, EngineUnavailable, InferenceFailed
from enginehouse.tensors import Answer, Tensors, Timing
from enginehouse.wire import Connection, Kind, Message

#: Seconds to connect and to be let in.
CONNECT_S = 2.0
#: While calls are under way the replica is asked this often whether it is there, and given up when it has been silent
#: for so long.
PING_S, SILENT_S = 0.4, 2.0


class Address(TypedDict):
    """Where a replica listens, and what lets one in."""

    host: str
    port: int
    key: str


class Channel(Connection):
    """The router's end. `pool` is what errors name."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        #: Requests' rows that were sent and not answered.
        self.rows_under_way = 0
        #: Whether calls can be made.
        self.is_open = False
        #: Whether the replica has asked for no more calls.
        self.is_going = False
        self._pool = pool
        self._key = b""
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._let_in: asyncio.Future[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._unsent = 0

    async def open(self, address: Address) -> None:
        """Connect. Raises EngineUnavailable."""
        loop = asyncio.get_running_loop()
        self._key = bytes.fromhex(address["key"])
        self._let_in = loop.create_future()
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(
                    lambda: self, address["host"], address["port"], ssl=wire.tls(is_server=False)
                )
                await self._let_in
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError | TimeoutError):
                raise
            where = f"{address['host']}:{address['port']}"
            raise EngineUnavailable(self._pool, f"no connection to {where}: {str(error) or 'no answer'}") from None

    def close(self) -> None:
        """Give the connection up; calls under way fail."""
        self.end("the connection was closed")

    async def infer(self, model_id: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Answer:
        """Answer requests of `rows` rows in all, as one. Raises what the pool raises, or EngineUnavailable."""
        if not self.is_open:
            raise EngineUnavailable(self._pool, "its replica is gone")
        metas, buffers = wire.encode(requests)
        number = next(self._numbers)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        self.rows_under_way += rows
        if self._watch is None:
            # Silence counts from the first call.
            self.heard = time.monotonic()
            self._look_again(self.heard)
        try:
            self.send(Kind.CALL, number, [model_id, rows, budget_s, metas], buffers)
            return await answer
        finally:
            self.rows_under_way -= rows
            del self._calls[number]
            if answer.cancelled():
                self.send(Kind.CANCEL, number)

    def received(self, message: Message) -> None:
        if message.kind == Kind.HELLO and self._let_in is not None and not self._let_in.done():
            nonce = bytes.fromhex(message.content)
            self.send(Kind.PROOF, 0, hmac.digest(self._key, nonce, "sha256").hex())
            self.is_proven = self.is_open = True
            self._let_in.set_result(None)
        elif message.kind == Kind.GOING:
            self.is_going = True
        elif message.kind in (Kind.ANSWER, Kind.FAILURE):
            # One that is no longer waited for was cancelled.
            answer = self._calls.get(message.call)
            if answer is None or answer.done():
                return
            if message.kind == Kind.FAILURE:
                answer.set_exception(_error(*message.content))
            else:
                timing, metas = message.content
                answer.set_result((wire.decode(metas, message.tensors), Timing(**timing)))

    def lost(self, reason: str) -> None:
        self.is_open = False
        if self._watch is not None:
            self._watch.cancel()
        if self._let_in is not None and not self._let_in.done():
            self._let_in.set_exception(ConnectionError(reason))
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(EngineUnavailable(self._pool, f"its replica is gone: {reason}"))

    def _look_again(self, now: float) -> None:
        self._looked = now
        self._watch = asyncio.get_running_loop().call_later(PING_S, self._look)

    def _look(self) -> None:
        if not self._calls:
            self._watch = None
            return
        now = time.monotonic()
        unsent = self.transport.get_write_buffer_size() if self.transport else 0
        if now - self._looked > 2 * PING_S or unsent < self._unsent:
            # This process was held up, or a large message is on its way: silence says nothing.
            self.heard = now
        self._unsent = unsent
        silent_s = now - self.heard
        if silent_s > SILENT_S:
            self.end(f"silent for {silent_s:.1f} s")
            return
        if silent_s > PING_S / 2:
            self.send(Kind.PING)
        self._look_again(now)


def _error(name: str, arguments: list[object]) -> EnginehouseError:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, EnginehouseError):
        with contextlib.suppress(TypeError):
            return kind(*arguments)
    return InferenceFailed(f"{name}: {' '.join(map(str, arguments))}")
