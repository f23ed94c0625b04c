"""The replica's end of connections: a Listener accepts them and runs the calls that routers send."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from enginehouse.contract.config import LAST
from enginehouse.contract.errors import EnginehouseError, InferenceFailed
from enginehouse.contract.tensors import Computed, Tensors
from enginehouse.transport import frames
from enginehouse.transport.frames import Connection, Isolated, Kind, Message
from enginehouse.transport.handshake import KEY_BYTES, ReplicaHandshake, tls
from enginehouse.transport.router_end import CONNECT_S, PING_S, Address

#: Calls of the last priority have a place for each so many of the others'.
LAST_TIMES = 4
#: Connections that may be between HELLO and their proof; with one more, the oldest is ended.
MAX_UNPROVEN = 128

#: Computes requests: model key, requests, their rows together, seconds left until the deadline.
Infer = Callable[[str, Sequence[Tensors], int, float], Awaitable[Computed]]
#: As Infer, with nothing else in the process, or with the last argument nothing that could be waited for; calls the one
#: before, on the event loop, right before it computes, with whether it is alone.
InferIsolated = Callable[[str, Sequence[Tensors], int, float, Callable[[bool], None], bool], Awaitable[Computed]]


class Listener:
    """Server of one replica: passes calls to `infer`, at most `max_calls` at a time, and refuses the rest (FULL).

    Calls of the last priority go to `infer_last` if there is one, and have places of their own: they take none of the
    others'.

    Only routers that prove `key` can call; it is random and part of the address. `backlog_ms` gives the milliseconds
    of computing that a model still holds: every answer carries it. Errors that `infer` raises go to the router; other
    than EnginehouseError they arrive as InferenceFailed, naming `pool`. `counted` gives the counts of its node.
    """

    def __init__(
        self,
        pool: str,
        infer: Infer,
        max_calls: int,
        infer_isolated: InferIsolated | None = None,
        backlog_ms: Callable[[str], float] = lambda _: 0.0,
        infer_last: Infer | None = None,
        counted: Callable[[], Awaitable[list[Any]]] | None = None,
    ) -> None:
        self.pool = pool
        self.infer = infer
        self.infer_isolated = infer_isolated
        self.infer_last = infer_last or infer
        self.counted = counted
        self.max_calls = max_calls
        self.backlog_ms = backlog_ms
        #: Demand that routers reported with their calls since the start, in engine milliseconds.
        self.demand_ms = 0.0
        self.is_draining = False
        #: Whether it listens on all interfaces of its machine.
        self.is_everywhere = False
        self.calls: set[asyncio.Task[None]] = set()
        #: Those of them that are of the last priority.
        self.last_calls: set[asyncio.Task[None]] = set()
        self.connections: set[Accepted] = set()
        #: Those that have not proven the key yet, oldest first.
        self.strangers: dict[Accepted, None] = {}
        self.key = secrets.token_bytes(KEY_BYTES)
        self._server: asyncio.Server | None = None

    async def start(self, host: str) -> Address:
        """Listen on a free port of `host`, this node's address as other nodes reach it."""
        try:
            self._server = await self._listen(host)
        except OSError:
            # Not an address of this machine, for instance that of a container's host: listen on all interfaces.
            # One family, of which routers know the address: each would have a port of its own.
            self._server = await self._listen("::" if ":" in host else "0.0.0.0")
            self.is_everywhere = True
        port = self._server.sockets[0].getsockname()[1]
        return Address(host=host, port=port, key=self.key.hex(), takes_last=True, tells_counts=True)

    def places(self, is_last: bool) -> int:
        """How many calls there may be at a time, of the last priority or of all others."""
        return -(-self.max_calls // LAST_TIMES) if is_last else self.max_calls

    def is_full(self, is_last: bool) -> bool:
        """Whether there is no place for another one."""
        taken = len(self.last_calls) if is_last else len(self.calls) - len(self.last_calls)
        return taken >= self.places(is_last)

    def _listen(self, host: str) -> asyncio.Task[asyncio.Server]:
        loop = asyncio.get_running_loop()
        # An empty context: else all work of connections would count as part of the Serve request that runs now.
        return loop.create_task(
            loop.create_server(lambda: Accepted(self), host, 0, family=socket.AF_UNSPEC, ssl=tls(is_server=True)),
            context=contextvars.Context(),
        )

    async def stop(self, within_s: float) -> None:
        """Drain for at most `within_s` seconds: refuse new calls and answer those in flight. Then stop listening."""
        self.is_draining = True
        for connection in self.connections:
            connection.send(Kind.DRAINING)
        give_up = time.monotonic() + within_s
        # A call sent before the router received DRAINING is refused; the router makes it elsewhere.
        while self.calls and time.monotonic() < give_up:
            await asyncio.wait(self.calls, timeout=give_up - time.monotonic())
        # Their answers may not be on the network yet.
        while any(connection.unsent for connection in self.connections) and time.monotonic() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if self._server is not None:
            self._server.close()


class Accepted(Connection):
    """The replica's end of one connection."""

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self._listener = listener
        self._handshake = ReplicaHandshake(listener.key)
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._proof_timeout: asyncio.TimerHandle | None = None
        self._pong_sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        listener = self._listener
        listener.connections.add(self)
        listener.strangers[self] = None
        if len(listener.strangers) > MAX_UNPROVEN:
            next(iter(listener.strangers)).end("too many connections without proof")
        self._proof_timeout = asyncio.get_running_loop().call_later(CONNECT_S, self.end, "no proof in time")
        self.send(Kind.HELLO, 0, self._handshake.hello())

    @property
    def unsent(self) -> int:
        """Bytes in the write buffer."""
        return self.transport.get_write_buffer_size() if self.transport else 0

    def buffer_updated(self, count: int) -> None:
        super().buffer_updated(count)
        # PINGs queue behind a message that takes long to receive: answer them unasked.
        if self._body is not None and self.is_proven and self.last_received - self._pong_sent_at > PING_S:
            self._pong_sent_at = self.last_received
            self.send(Kind.PONG)

    def received(self, message: Message) -> None:
        if not self.is_proven:
            if message.kind != Kind.PROOF:
                raise frames.WireError(f"{message.kind.name} before the proof")
            welcome = self._handshake.welcome(message.content)
            self.is_proven = True
            self._listener.strangers.pop(self, None)
            self.send(Kind.WELCOME, 0, welcome)
            if self._proof_timeout is not None:
                self._proof_timeout.cancel()
            if self._listener.is_draining:
                self.send(Kind.DRAINING)
        elif message.kind == Kind.PING:
            self.send(Kind.PONG)
        elif message.kind == Kind.CANCEL:
            if task := self._calls.get(message.call):
                task.cancel()
        elif message.kind == Kind.CALL:
            self._start(message)
        elif message.kind == Kind.COUNTS:
            telling = asyncio.create_task(self._tell_counts(message.call), context=contextvars.Context())
            self._calls[message.call] = telling
            telling.add_done_callback(lambda _: self._calls.pop(message.call, None))

    def lost(self, _: str) -> None:
        self._listener.connections.discard(self)
        self._listener.strangers.pop(self, None)
        if self._proof_timeout is not None:
            self._proof_timeout.cancel()
        for task in self._calls.values():
            # The router that waited for it is disconnected.
            task.cancel()

    def _start(self, message: Message) -> None:
        listener = self._listener
        is_last = LAST in message.content[6:]
        if listener.is_draining or listener.is_full(is_last):
            reason = "it is draining" if listener.is_draining else f"{listener.places(is_last)} are in flight"
            self.send(Kind.FULL, message.call, reason)
            return
        task = asyncio.create_task(self._answer(message), context=contextvars.Context())
        self._calls[message.call] = task
        listener.calls.add(task)
        if is_last:
            listener.last_calls.add(task)
        task.add_done_callback(lambda done: self._done(message.call, done))

    def _done(self, call: int, task: asyncio.Task[None]) -> None:
        self._calls.pop(call, None)
        self._listener.calls.discard(task)
        self._listener.last_calls.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # The answer could not be sent: closing the connection fails the call at the router.
            self.end(f"{type(error).__name__}: {error}")

    async def _tell_counts(self, call: int) -> None:
        counts = None
        # Whoever asks has what was counted until the last time.
        with contextlib.suppress(Exception):
            counts = await self._listener.counted() if self._listener.counted else None
        self.send(Kind.COUNTS, call, counts)

    async def _answer(self, message: Message) -> None:
        model_key, rows, budget_s, isolated, demand_ms, metas, *more = message.content
        try:
            self._listener.demand_ms += demand_ms
            inputs = await frames.decode_async(metas, message.tensors)
            if isolated and self._listener.infer_isolated:
                begun = functools.partial(self.send, Kind.BEGUN, message.call)
                outputs, timing = await self._listener.infer_isolated(
                    model_key, [inputs], rows, budget_s, begun, isolated == Isolated.IF_POSSIBLE
                )
            else:
                infer = self._listener.infer_last if LAST in more else self._listener.infer
                outputs, timing = await infer(model_key, [inputs], rows, budget_s)
            output_metas, buffers = await frames.encode_async([outputs])
        except EnginehouseError as error:
            self._fail(message.call, model_key, error)
        except Exception as error:
            self._fail(
                message.call, model_key, InferenceFailed(f"{self._listener.pool}: {type(error).__name__}: {error}")
            )
        else:
            self.send(Kind.ANSWER, message.call, [timing, output_metas, self._backlog_ms(model_key)], buffers)

    def _fail(self, call: int, model_key: str, error: EnginehouseError) -> None:
        arguments = [_plain(argument) for argument in error.args]
        self.send(Kind.FAILURE, call, [type(error).__name__, arguments, self._backlog_ms(model_key)])

    def _backlog_ms(self, model_key: str) -> float:
        return round(self._listener.backlog_ms(model_key), 3)


def _plain(argument: object) -> object:
    """An error's argument as JSON can carry it: anything but numbers, None and lists becomes text."""
    if argument is None or isinstance(argument, int | float):
        return argument
    if isinstance(argument, list | tuple):
        return [_plain(part) for part in argument]
    return str(argument).encode("utf-8", "replace").decode()
