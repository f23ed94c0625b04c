"""Local servers that end under load, many times: `python -m benchmarks.hostile.ends [WAY ...] [--times 10]`.

`kill`, `term` and `ctrl-c` end one server in that way: who was under way, and what is left on the machine. `two` kills
and restarts one of two servers of this machine while both are asked: whose answers come.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import aiohttp
import typer
from tests.integration.bundles import publish
from tests.integration.cluster import adopt_orphans
from tests.integration.local_server import LocalServer

RATE = 50
#: Seconds of load before the end.
CALM_S = 2.0
WAYS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "ctrl-c": signal.SIGINT}


@contextlib.contextmanager
def load(url: str, factor: int) -> Iterator[Counter[str]]:
    """50 requests a second, each over a connection of its own, until the context ends; what became of them."""
    seen: Counter[str] = Counter()
    stop = threading.Event()

    async def send(session: aiohttp.ClientSession) -> None:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1] * 4}]}
        try:
            async with session.post(f"{url}/v2/models/scale/infer", json=body) as answer:
                text = await answer.text()
                if answer.status == 200:
                    is_right = json.loads(text)["outputs"][0]["data"] == [factor] * 4
                    seen["answered" if is_right else f"WRONG {text}"] += 1
                else:
                    seen[f"{answer.status} {json.loads(text)['error'][:60]}"] += 1
        except aiohttp.ClientConnectorError:
            seen["not connected"] += 1
        except Exception as error:
            seen[f"LOST {type(error).__name__} {error}"] += 1

    async def run() -> None:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=20)
        session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        async with session, asyncio.TaskGroup() as tasks:
            began = time.monotonic()
            number = 0
            while not stop.is_set():
                number += 1
                await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
                tasks.create_task(send(session))

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


class Place:
    """A folder with a store and all that servers leave."""

    def __init__(self, name: str, factor: int) -> None:
        self.factor = factor
        # As long as it may be for the sockets in it.
        self.folder = Path(tempfile.mkdtemp(prefix=f"e{name}", dir="/tmp"))
        publish(self.folder / "store", "scale", "1", factor)

    def start(self) -> LocalServer:
        server = LocalServer(self.folder, self.folder / "store", TMPDIR=str(self.folder))
        server.wait_ready()
        return server

    def folders(self) -> set[Path]:
        """Those of servers that run, or did."""
        return set(self.folder.glob("eh-*"))


def ended(way: str, times: int) -> bool:
    """End a server so many times; whether nothing was left and, but for `kill`, nobody lost."""
    place, good, left_over = Place(way[:1], 2), True, set[Path]()
    try:
        for number in range(1, times + 1):
            server = place.start()
            # Those of the one before are gone with this start.
            stayed = left_over & place.folders()
            began = time.monotonic()
            with load(server.url, place.factor) as seen:
                time.sleep(CALM_S)
                server.signal(WAYS[way]) if way != "kill" else os.kill(server.process.pid, signal.SIGKILL)
                signalled = time.monotonic()
                server.process.wait(60)
                ended_s = time.monotonic() - signalled
                gone_s = server.gone_after(10)
            left_over = place.folders()
            lost = sum(count for what, count in seen.items() if what.startswith(("LOST", "500")))
            wrong = sum(count for what, count in seen.items() if what.startswith("WRONG"))
            good = good and not stayed and not wrong and (way == "kill" or not (lost or left_over))
            print(
                f"{way} {number}: ended after {ended_s:.1f} s, nothing left {gone_s:.1f} s later; lost {lost}, "
                f"wrong {wrong}, folders of the one before {len(stayed)}, left now {len(left_over)}; "
                f"{dict(seen)} in {time.monotonic() - began:.1f} s",
                flush=True,
            )
            server.stop()
        server = place.start()
        print(f"{way}: folders after the next start: {len(left_over & place.folders())}", flush=True)
        good = good and not left_over & place.folders()
        server.stop()
    finally:
        shutil.rmtree(place.folder, ignore_errors=True)
    return good


def two(times: int) -> bool:
    """Kill and restart one of two servers so many times; whether each answer came from the one that was asked."""
    stays, dies = Place("s", 2), Place("d", 3)
    seen = dict[str, Counter[str]]()
    server = stays.start()
    try:
        with load(server.url, stays.factor) as seen["the one that stays"]:
            victim = dies.start()
            for number in range(1, times + 1):
                with load(victim.url, dies.factor) as seen[f"killed {number}"]:
                    time.sleep(CALM_S)
                    os.kill(victim.process.pid, signal.SIGKILL)
                    # Its port is asked on while another one starts.
                    victim = dies.start()
                print(f"two {number}: {dict(seen[f'killed {number}'])}", flush=True)
            victim.stop()
    finally:
        server.stop()
        for place in (stays, dies):
            shutil.rmtree(place.folder, ignore_errors=True)
    print(f"two: the one that stays: {dict(seen['the one that stays'])}", flush=True)
    wrong = sum(count for each in seen.values() for what, count in each.items() if what.startswith("WRONG"))
    return not wrong and set(seen["the one that stays"]) == {"answered"}


def main(
    ways: Annotated[list[str] | None, typer.Argument(help="Of kill, term, ctrl-c, two; all by default.")] = None,
    times: Annotated[int, typer.Option(help="Of each.")] = 10,
) -> None:
    adopt_orphans()
    results = {way: two(times) if way == "two" else ended(way, times) for way in ways or [*WAYS, "two"]}
    print(", ".join(f"{way}: {'reached' if good else 'MISSED'}" for way, good in results.items()))
    if not all(results.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
