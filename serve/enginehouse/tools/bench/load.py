"""Closed loops: so many connections, each of which sends its next request when it has the answer to the last.

wrk (C, one thread for every 8 logical CPUs) makes the load where it is installed; otherwise `generator`, which takes
about ten times its CPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from enginehouse.contract.errors import ConfigError, NoBackend
from enginehouse.tools.bench import generator, usage
from enginehouse.tools.bench.figure import Figure, Latency, Scenario, counted

WINDOWS = 5
#: What is said when wrk is not there.
NO_WRK = "wrk is not installed (Debian, Ubuntu: apt install wrk); Python makes the load, which costs CPU time"
_SCRIPT = Path(__file__).with_name("closed_loop.lua")
#: A request that takes longer is an error.
_TIMEOUT_S = 60


def has_wrk() -> bool:
    """Whether `closed_loop` will use wrk."""
    return shutil.which("wrk") is not None


def closed_loop(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    connections: int,
    seconds: float,
    processes: Sequence[psutil.Process],
    *,
    rows: int = 1,
    scenario: Scenario = "closed-loop",
) -> Figure:
    """POST `body` to `url` on `connections` connections for `seconds` seconds, and count what comes back.

    Nothing is warmed up here. `processes` are those that serve on this host, without what is below them: their CPU time
    is part of the figure. `rows` is how many one body has. Answers of a status above 399 are errors. Raises NoBackend
    when nothing was answered at all, ConfigError when wrk does not run.
    """
    measure = _by_wrk if has_wrk() else _by_python
    counts, used, threads = measure(url, body, headers, connections, seconds, processes)
    if not counts.answers and not counts.errors:
        raise NoBackend(f"{url} answered nothing within {seconds:g} s; is it the right address?")
    return Figure(
        scenario=scenario,
        generator="wrk" if has_wrk() else "python",
        connections=connections,
        seconds=counts.seconds,
        answers=counts.answers,
        rows=rows,
        errors=counts.errors,
        error=counts.error,
        latency=Latency.of(counts.latencies_ms),
        usage=used,
        generator_busy=used.own_s / used.seconds / threads,
        windows=counts.windows,
    )


class _Counts(NamedTuple):
    seconds: float
    answers: int
    errors: int
    error: str
    latencies_ms: Mapping[float, int]
    windows: tuple[float, ...]


def _by_wrk(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    connections: int,
    seconds: float,
    processes: Sequence[psutil.Process],
) -> tuple[_Counts, usage.Usage, int]:
    threads = min(connections, max(1, (os.cpu_count() or 1) // 8))
    # wrk wants whole seconds, and as many connections for each thread.
    duration, connections = max(1, round(seconds)), connections // threads * threads
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        command = [
            *("wrk", "--threads", str(threads), "--connections", str(connections), "--duration", f"{duration}s"),
            *("--timeout", f"{_TIMEOUT_S}s", "--script", str(_SCRIPT)),
            *(part for name, value in headers.items() for part in ("--header", f"{name}: {value}")),
            *(url, "--", file.name, str(duration / WINDOWS)),
        ]
        before = usage.read(processes)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        used = before.until(usage.read(processes))
    if done.returncode != 0 or "requests" not in done.stdout:
        raise ConfigError(f"wrk did not run: {(done.stderr or done.stdout).strip()[-300:]}")
    return counts_of(done.stdout, connections, duration), used, threads


def counts_of(printed: str, connections: int, duration: float) -> _Counts:
    """What `closed_loop.lua` printed after a run of `duration` seconds."""
    numbers: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    sent: Counter[int] = Counter()
    latencies: Counter[int] = Counter()
    for line in printed.splitlines():
        match line.split():
            case ["requests" | "microseconds" as name, value]:
                numbers[name] = int(value)
            case ["errors", kind, count]:
                errors[kind] = int(count)
            case ["sent", index, count]:
                sent[int(index)] += int(count)
            case ["latency", microseconds, count]:
                latencies[int(microseconds)] += int(count)
    # The first request of every connection follows no answer.
    sent[1] -= connections
    found = [kind for kind, count in errors.items() if count]
    return _Counts(
        seconds=numbers["microseconds"] * 1e-6,
        answers=numbers["requests"] - errors["status"],
        errors=errors.total(),
        error=", ".join(f"{errors[kind]} x {kind}" for kind in found),
        latencies_ms={
            microseconds * 1e-3: count for microseconds, count in _uncorrected(latencies, numbers, connections).items()
        },
        windows=tuple(max(0, sent[index + 1]) / duration * WINDOWS for index in range(WINDOWS)),
    )


def _uncorrected(latencies: Counter[int], numbers: Mapping[str, int], connections: int) -> Counter[int]:
    """The latencies that were measured: wrk 4 adds some that it thinks a closed loop omitted (`stats_correct`).

    For each latency of more than twice the mean it adds that latency less one mean, less two means, and so on.
    """
    if latencies.total() <= numbers["requests"]:
        return latencies
    mean = numbers["microseconds"] // max(1, numbers["requests"] // connections)
    measured = Counter(latencies)
    for value in sorted(latencies, reverse=True):
        for added in range(value - mean, mean, -mean) if value >= 2 * mean else ():
            measured[added] -= measured[value]
    if min(measured.values()) < 0 or measured.total() > numbers["requests"]:
        raise ConfigError(
            f"wrk reports {latencies.total()} latencies of {numbers['requests']} requests; use wrk 4.1 or 4.2"
        )
    return +measured


def _by_python(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    connections: int,
    seconds: float,
    processes: Sequence[psutil.Process],
) -> tuple[_Counts, usage.Usage, int]:
    order = generator.Order(url, headers, [body], connections=connections, seconds=seconds)
    result, used = generator.run(order, processes)
    ended = [0] * WINDOWS
    for request in result.requests:
        at = request.due_s + request.latency_s
        if request.error is None and at < seconds:
            ended[int(at / seconds * WINDOWS)] += 1
    # What was under way at the end is answered after it, and does not count.
    failed = [request.error for request in result.requests if request.error is not None]
    in_time = [request for request in result.requests if request.error is None and request.ended_s <= seconds]
    counts = _Counts(
        seconds=seconds,
        answers=len(in_time),
        errors=len(failed),
        error=failed[0] if failed else "",
        latencies_ms=counted(request.latency_s * 1e3 for request in in_time),
        windows=tuple(count / seconds * WINDOWS for count in ended),
    )
    return counts, used, 1
