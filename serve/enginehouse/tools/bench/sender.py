"""The process of the load generator in Python: asyncio and aiohttp, one thread.

python -m enginehouse.tools.bench.sender ...       takes one Order, answers with a Result
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from typing import TYPE_CHECKING, Any

from enginehouse.contract.config.access import own_token
from enginehouse.engines.worker_process import Parent, serve
from enginehouse.tools.bench import answers
from enginehouse.tools.bench.generator import Order, Result, Sent

if TYPE_CHECKING:
    import aiohttp

_TIMEOUT_S = 60.0
#: Timers of event loops are a millisecond apart and fire late, on average by this.
_TIMER_S = 0.0005


def _work(parent: Parent) -> None:
    loop = _Loop(parent.receive())
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(loop.open())
        parent.send("ready")
        parent.receive()
        runner.run(loop.run())
        parent.send("done")
        parent.send(loop.result)
        runner.run(loop.close())


def _loop_factory() -> Any:
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None


class _Loop:
    def __init__(self, order: Order) -> None:
        self.result = Result()
        self._order = order
        self._session: aiohttp.ClientSession
        self._start = 0.0
        self._waiting = 0

    async def open(self) -> None:
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
            headers=own_token(),
        )

    async def close(self) -> None:
        await self._session.close()

    async def run(self) -> None:
        self._start = time.perf_counter()
        if self._order.due_s:
            await self._open_loop()
        else:
            await asyncio.gather(*(self._connection(number) for number in range(self._order.connections)))

    async def _open_loop(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        for number, (due, body) in enumerate(zip(self._order.due_s, self._order.which, strict=True)):
            await self._until(due)
            if self._waiting >= self._order.most_waiting:
                self.result.unsent = len(self._order.due_s) - number
                break
            task = asyncio.create_task(self._send(body, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            self._waiting += 1
        await asyncio.gather(*tasks)

    async def _until(self, due: float) -> None:
        # Also when it is due already: what is late must not keep the answers from being read.
        await asyncio.sleep(max(0.0, due - self._now() - _TIMER_S))

    async def _connection(self, number: int) -> None:
        for turn in itertools.count(number, self._order.connections):
            at = self._now()
            if at >= self._order.seconds:
                return
            await self._send(turn % len(self._order.bodies), at)

    async def _send(self, body: int, due: float) -> None:
        now = self._now()
        late, due = max(0.0, now - due), min(due, now)
        error: str | None = None
        content, headers = b"", {}
        try:
            async with self._session.post(
                self._order.url_of(body), data=self._order.bodies[body], headers=self._order.headers_of(body)
            ) as response:
                content, headers = await response.read(), dict(response.headers)
                if response.status > 399:
                    error = f"status {response.status}: {content[:200].decode(errors='replace')}"
        except Exception as failure:
            # aiohttp's own classes, and those of sockets.
            error = f"{type(failure).__name__}: {failure}"
        self.result.requests.append(Sent(body, due, late, self._now() - due, error))
        self._waiting -= 1
        if error is None and self._order.expected:
            self.result.checked += 1
            if fault := answers.fault(content, headers, self._order.expected[body]):
                self.result.wrong.append(f"sample {body}: {fault}")

    def _now(self) -> float:
        return time.perf_counter() - self._start


if __name__ == "__main__":
    serve(_work)
