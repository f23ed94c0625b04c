"""The command.

python -m benchmarks.hostile [KIND ...] [--seconds 60]
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, NamedTuple

import aiohttp
import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table
from tests.integration.cluster import adopt_orphans
from tests.integration.local_server import LocalServer

from benchmarks.hostile.clients import KINDS
from benchmarks.hostile.models import publish_all

#: Good requests a second, of which every second one has a connection of its own.
RATE = 50
#: How much later than without a hostile client one in a hundred may be answered.
WITHIN_MS = 50.0
RESULTS = Path(__file__).parent.parent / "results" / "hostile.jsonl"
console = Console(highlight=False)


class Good(NamedTuple):
    """What became of the good requests."""

    sent: int
    failed: Counter[str]
    p50_ms: float
    p99_ms: float
    worst_ms: float


def main(
    kinds: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(KINDS)}; all by default.")] = None,
    seconds: Annotated[float, typer.Option(help="Of each.")] = 60,
    output: Annotated[Path, typer.Option(help="Append the figures to this JSON lines file.")] = RESULTS,
) -> None:
    """Run each hostile client beside 50 good requests a second; exit 1 where those notice more than they may."""
    wanted = kinds or list(KINDS)
    if unknown := set(wanted) - set(KINDS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; the kinds are {', '.join(KINDS)}")
    adopt_orphans()
    table = Table(title=f"{seconds:g} s each, {RATE} good requests/s beside it", title_justify="left")
    for column in (
        "client",
        "",
        "failed",
        "p50 ms",
        "p99 ms",
        "worst ms",
        "p99 quiet",
        "routers",
        "peak MiB",
        "it saw",
    ):
        table.add_column(column, overflow="fold")
    reached = True
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        publish_all(Path(folder, "store"))
        server = LocalServer(Path(folder), Path(folder, "store"), TMPDIR="/tmp")
        try:
            server.wait_ready()
            asyncio.run(good(server.url, 5))
            for kind in wanted:
                row = _beside(server, kind, seconds)
                console.print(row)
                with output.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                reached = reached and bool(row["reached"])
                table.add_row(
                    kind,
                    "reached" if row["reached"] else "MISSED",
                    f"{row['failed']} of {row['sent']}",
                    *(f"{row[name]:.1f}" for name in ("p50_ms", "p99_ms", "worst_ms", "quiet_p99_ms")),
                    "stayed" if row["routers_stayed"] else "REPLACED",
                    f"{row['peak_mib']}, before {row['before_mib']}",
                    ", ".join(f"{what}: {count}" for what, count in row["it_saw"].items()),
                    end_section=True,
                )
        finally:
            server.stop()
    console.print(table)
    if not reached:
        raise typer.Exit(1)


def _beside(server: LocalServer, kind: str, seconds: float) -> dict[str, object]:
    """One hostile client, right after a quiet time to compare with."""
    quiet = asyncio.run(good(server.url, min(seconds, 20)))
    processes = _processes(server)
    routers = sorted(pid for pid, name in processes.items() if name == "Router")
    replicas = [place for pid, name in processes.items() if name.endswith("-cpu") for place in _listening(pid)]
    before, peak, stop = _memory(processes), Counter[str](), threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            for name, size in _memory(processes).items():
                peak[name] = max(peak[name], size)

    watching = threading.Thread(target=watch)
    watching.start()
    hostile = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.hostile.clients", kind, str(server.port), str(seconds + 5), *replicas],
        stdout=subprocess.PIPE,
        text=True,
    )
    # Until it has made what it sends.
    time.sleep(5)
    seen = asyncio.run(good(server.url, seconds))
    said, _ = hostile.communicate()
    stop.set()
    watching.join()
    stayed = sorted(pid for pid, name in _processes(server).items() if name == "Router") == routers
    return {
        "kind": kind,
        "seconds": seconds,
        "reached": not seen.failed.total() and seen.p99_ms <= quiet.p99_ms + WITHIN_MS and stayed,
        "sent": seen.sent,
        "failed": seen.failed.total(),
        "failures": dict(seen.failed),
        "p50_ms": seen.p50_ms,
        "p99_ms": seen.p99_ms,
        "worst_ms": seen.worst_ms,
        "quiet_p99_ms": quiet.p99_ms,
        "routers_stayed": stayed,
        "before_mib": _shown(before),
        "peak_mib": _shown(peak),
        "it_saw": json.loads(said or '{"nothing": 1}'),
    }


async def good(url: str, seconds: float) -> Good:
    """Send when it is due, whatever became of those before."""
    taken: list[float] = []
    failed: Counter[str] = Counter()

    async def send(session: aiohttp.ClientSession, x: int) -> None:
        began = time.monotonic()
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [x] * 4}]}
        # Every second one has a connection of its own.
        headers = {"connection": "close"} if x % 2 else {}
        try:
            async with session.post(f"{url}/v2/models/scale/infer", json=body, headers=headers) as answer:
                document = await answer.json()
                if answer.status != 200:
                    failed[f"{answer.status} {str(document)[:100]}"] += 1
                elif document["outputs"][0]["data"] != [2 * x] * 4:
                    failed["wrong"] += 1
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            failed[type(error).__name__] += 1
        taken.append((time.monotonic() - began) * 1e3)

    timeout = aiohttp.ClientTimeout(total=30)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session, asyncio.TaskGroup() as tasks:
        began = time.monotonic()
        for number in range(round(RATE * seconds)):
            await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
            tasks.create_task(send(session, number % 1000))
    p50, p99, worst = (round(float(np.percentile(taken, percent)), 1) for percent in (50, 99, 100))
    return Good(len(taken), failed, p50, p99, worst)


def _processes(server: LocalServer) -> dict[int, str]:
    """HAProxy, routers and pools, and what each is."""
    found = {}
    for process in server.left():
        name = process.name() if process.name() == "haproxy" else process.cmdline()[0].rpartition(":")[2]
        if name in ("haproxy", "Router") or name.endswith("-cpu"):
            found[process.pid] = name
    return found


def _listening(pid: int) -> list[str]:
    """All that a replica listens on, where routers reach it among others."""
    found = psutil.Process(pid).net_connections("tcp4")
    return sorted({f"{c.laddr.ip}:{c.laddr.port}" for c in found if c.status == psutil.CONN_LISTEN})


def _memory(processes: dict[int, str]) -> Counter[str]:
    """MiB of each kind; of several processes the largest."""
    found: Counter[str] = Counter()
    for pid, name in processes.items():
        try:
            found[name] = max(found[name], psutil.Process(pid).memory_info().rss >> 20)
        except psutil.NoSuchProcess:
            continue
    return found


def _shown(sizes: Counter[str]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sorted(sizes.items()))


if __name__ == "__main__":
    typer.run(main)
