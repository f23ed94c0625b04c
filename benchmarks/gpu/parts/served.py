"""A model served by a router and its backends, beside the engine alone; then the replica that answers is killed."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from benchmarks.gpu import models
from benchmarks.gpu.lab import Lab, NotRun, Row
from benchmarks.served import served
from enginehouse.contract.choice import choose_artifact
from enginehouse.contract.errors import EnginehouseError
from enginehouse.contract.parity import LIMITS, compare
from enginehouse.contract.tensors import Tensors
from enginehouse.tools.bench import closed_loop
from enginehouse.tools.bench.answers import decode, encode
from enginehouse.tools.bench.limit import Engines, Order

#: Rows of a request: several of them fill the engine's batch.
_ROWS = 8
_CALLERS = 4
#: Answers may come from any backend, in fp32 or fp16.
_ALLOWED = LIMITS["fp16"].relative_l2


def run(lab: Lab) -> Iterator[Row]:
    """The engine alone, the same served, and what became of the requests while a replica was lost."""
    bundle = models.bundle(lab, lab.main)
    choice = choose_artifact(bundle.manifest, (lab.kind,), "full")
    if choice is None:
        raise NotRun(f"{lab.main} has no artifact for {lab.kind}")
    kind, artifact = choice
    most = bundle.manifest.max_batch
    try:
        with Engines(Order(bundle.path, kind, artifact.name, lab.threads), 1) as engines:
            alone = engines.limit(models.request(lab.main, most), most, lab.sized(4.0, 1.0))
            expected = engines.infer(models.request(lab.main, _ROWS))
    except EnginehouseError as error:
        raise NotRun(f"{kind}: {error}") from None
    yield {"what": f"{kind} alone, {artifact.name}, calls of {most} rows", "rows/s": alone.rows_per_s}
    body, headers = encode(models.request(lab.main, _ROWS))
    port = _free_port()
    url = f"http://127.0.0.1:{port}/v2/models/{lab.main}/infer"
    with served(lab.store, port, options=["--models", lab.main]) as (process, seconds):
        yield {"what": "from `enginehouse serve` to the first answer", "s": seconds}
        asked = {**headers, "enginehouse-backend": kind}
        for connections in (1, 16, 64):
            closed_loop(url, body, asked, connections, 1, [process], rows=_ROWS)
            figure = closed_loop(url, body, asked, connections, lab.sized(4, 1), [process], rows=_ROWS)
            yield {
                "what": f"served by {kind}, {connections} connections, {_ROWS} rows a request",
                "rows/s": figure.rows_per_s,
                "share of alone": figure.rows_per_s / alone.rows_per_s,
                "p50 ms": figure.latency.p50,
                "p99 ms": figure.latency.p99,
                "errors": figure.errors,
            }
        yield from _loss(lab, port, process, body, headers, expected)


@dataclass
class _Seen:
    """What became of the requests of all callers."""

    taken_ms: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    backends: Counter[str] = field(default_factory=Counter)


def _loss(
    lab: Lab, port: int, process: psutil.Process, body: bytes, headers: dict[str, str], expected: Tensors
) -> Iterator[Row]:
    """`kill -9` of the replica that answers, under load; then until the pool answers again."""
    path, stop = f"/v2/models/{lab.main}/infer", threading.Event()
    before, after = _Seen(), _Seen()
    seen = before
    callers = [
        threading.Thread(target=_call, args=(port, path, body, headers, expected, stop, lambda: seen), daemon=True)
        for _ in range(_CALLERS)
    ]
    for caller in callers:
        caller.start()
    time.sleep(lab.sized(3.0, 2.0))
    first = before.backends.most_common(1)[0][0] if before.backends else ""
    victim = _replica(process, first)
    seen = after
    if victim is not None:
        victim.kill()
    killed, back_s = time.monotonic(), 0.0
    while victim is not None and not back_s and time.monotonic() - killed < lab.sized(20.0, 25.0):
        time.sleep(0.1)
        found = _replica(process, first)
        # It answers again once its model is loaded: only then is it back.
        if found is not None and found.pid != victim.pid and after.backends[first] > _CALLERS:
            back_s = time.monotonic() - killed
    stop.set()
    for caller in callers:
        caller.join(30)
    for name, part in (("before the loss", before), (f"after kill -9 of the {first} replica", after)):
        yield {
            "what": f"{_CALLERS} callers {name}",
            "requests": len(part.taken_ms),
            "lost or wrong": part.faults.total(),
            "worst ms": max(part.taken_ms, default=0.0),
            "answered by": ", ".join(f"{backend} {count}" for backend, count in part.backends.most_common()),
            "faults": "; ".join(part.faults),
        }
    if victim is None:
        raise NotRun(f"no replica of {first or 'any backend'} was found to lose")
    yield {"what": f"until {first} had a new replica and answered", "s": back_s or "not within the time"}


def _call(
    port: int, path: str, body: bytes, headers: dict[str, str], expected: Tensors, stop: threading.Event, seen: object
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while not stop.is_set():
        began = time.perf_counter()
        fault, backend = "", "none"
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            content, given = answer.read(), dict(answer.getheaders())
            backend = given.get("enginehouse-backend", "none")
            if answer.status != 200:
                fault = f"{answer.status} {content[:100].decode(errors='replace')}"
            elif (distance := compare(decode(content, given), expected).relative_l2) > _ALLOWED:
                fault = f"wrong by {distance:.1e}"
        except (OSError, http.client.HTTPException, EnginehouseError) as error:
            connection.close()
            fault = f"{type(error).__name__}: {error}"
        into = seen()  # type: ignore[operator]
        into.taken_ms.append((time.perf_counter() - began) * 1e3)
        into.backends[backend] += 1
        if fault:
            into.faults[fault] += 1


def _replica(process: psutil.Process, pool: str) -> psutil.Process | None:
    """The process of the pool's replica below the server."""
    for one in process.children(recursive=True):
        with suppress(psutil.Error):
            if any("ServeReplica" in word and pool in word for word in one.cmdline()[:1]):
                return one
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
