"""Traffic: requests that are sent when they are due, whatever became of those before, each answer checked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import aiohttp
import numpy as np

from benchmarks.faults import model
from enginehouse.tools.bench.arrivals import poisson

#: Inputs that the model can bear.
GOOD = range(9, 200)
#: Longest stretch of traffic; it ends when its context does.
MOST_S = 600
#: A request that takes longer hangs.
HANGS_S = 40.0


class Kind(NamedTuple):
    """A share of the traffic: what it sends, so many rows each, and the deadline that it states (0: none)."""

    inputs: Sequence[int] = GOOD
    deadline_ms: float = 0.0
    backend: str = ""
    rows: Sequence[int] = (1,)


class Sent(NamedTuple):
    """One request, in seconds of `time.monotonic`. Its status is 0 where the connection broke."""

    kind: int
    due: float
    taken_s: float
    status: int
    backend: str
    attempts: int
    problem: str

    @property
    def ended(self) -> float:
        return self.due + self.taken_s


@dataclass
class Report:
    """What became of the requests so far."""

    sent: list[Sent] = field(default_factory=list)

    def failed(self, kind: int | None = None) -> list[Sent]:
        """Those that were not answered rightly."""
        return [one for one in self.sent if one.problem and kind in (None, one.kind)]

    def during(self, since: float, until: float, kind: int = 0) -> list[Sent]:
        """Those that were due between two times."""
        return [one for one in self.sent if since <= one.due < until and one.kind == kind]


def quantile_ms(sent: Sequence[Sent], percent: float) -> float:
    """Of the times that they took; 0 when there are none."""
    return round(float(np.percentile([one.taken_s for one in sent], percent)) * 1e3, 1) if sent else 0.0


#: Sends until it is told to stop.
Run = Callable[[aiohttp.ClientSession, Report, threading.Event], Awaitable[None]]


@contextlib.contextmanager
def traffic(urls: Sequence[str], rate: float, kinds: Sequence[tuple[Kind, float]], seed: int = 0) -> Iterator[Report]:
    """Send `rate` requests a second at random times, of each kind its share, to each url in its turn, until it ends."""
    shares = np.array([share for _, share in kinds])
    which = np.random.default_rng(seed).choice(len(kinds), round(rate * MOST_S * 1.5) + 20, p=shares / shares.sum())

    async def run(session: aiohttp.ClientSession, report: Report, stop: threading.Event) -> None:
        began = time.monotonic()
        tasks: set[asyncio.Task[None]] = set()
        for number, (due_s, kind) in enumerate(zip(poisson(rate, MOST_S, seed), which, strict=False)):
            await asyncio.sleep(max(0.0, began + due_s - time.monotonic()))
            if stop.is_set():
                break
            due = began + due_s
            url = urls[number % len(urls)]
            tasks.add(task := asyncio.create_task(_send(session, url, kinds[kind][0], int(kind), number, due, report)))
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    with _in_thread(run) as report:
        yield report


@contextlib.contextmanager
def callers(url: str, count: int, kind: Kind = Kind()) -> Iterator[Report]:  # noqa: B008
    """`count` callers with a connection each, which send the next request when they have the answer to the last."""

    async def run(_: aiohttp.ClientSession, report: Report, stop: threading.Event) -> None:
        async def call(seed: int) -> None:
            async with _session(1) as session:
                for number in itertools.count(seed):
                    if stop.is_set():
                        return
                    await _send(session, url, kind, seed, number, time.monotonic(), report)

        await asyncio.gather(*(call(seed) for seed in range(count)))

    with _in_thread(run) as report:
        yield report


def capacity(url: str, seconds: float = 8.0, backend: str = "") -> float:
    """Answers a second to 32 callers. Raises SystemExit when one was not right."""
    with callers(url, 32, Kind(backend=backend)) as report:
        time.sleep(seconds + 2)
        now = time.monotonic()
    if failed := report.failed():
        raise SystemExit(f"{len(failed)} requests failed before anything was broken: {failed[0].problem}")
    return round(len([one for one in report.sent if now - seconds <= one.ended < now]) / seconds, 1)


def _session(connections: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections), timeout=aiohttp.ClientTimeout(total=HANGS_S)
    )


@contextlib.contextmanager
def _in_thread(run: Run) -> Iterator[Report]:
    report, stop = Report(), threading.Event()

    async def work() -> None:
        async with _session(0) as session:
            await run(session, report, stop)

    thread = threading.Thread(target=lambda: asyncio.run(work()), daemon=True)
    thread.start()
    try:
        yield report
    finally:
        stop.set()
        thread.join(HANGS_S + 20)


async def _send(
    session: aiohttp.ClientSession, url: str, kind: Kind, label: int, number: int, due: float, report: Report
) -> None:
    rows = kind.rows[number % len(kind.rows)]
    xs = [kind.inputs[(number + row) % len(kind.inputs)] for row in range(rows)]
    headers = {"enginehouse-deadline-ms": f"{kind.deadline_ms:g}"} if kind.deadline_ms else {}
    headers |= {"enginehouse-backend": kind.backend} if kind.backend else {}
    status, backend, attempts, problem = 0, "", 0, ""
    try:
        body = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [rows, 1], "data": xs}]}
        async with session.post(f"http://{url}/v2/models/{model.NAME}/infer", json=body, headers=headers) as answer:
            status, backend = answer.status, answer.headers.get("enginehouse-backend", "")
            attempts = int(answer.headers.get("enginehouse-attempts", 0))
            if status != 200:
                problem = f"{status} {(await answer.text())[:300]}"
            elif (y := (await answer.json())["outputs"][0]["data"]) != [model.answer(x) for x in xs]:
                problem = f"wrong: {xs} gave {y}"
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        problem = f"{type(error).__name__}: {error}"
    report.sent.append(Sent(label, due, time.monotonic() - due, status, backend, attempts, problem))
