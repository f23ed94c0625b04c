"""Fuzzed handshakes with one replica, and what they leave: `python -m benchmarks.hostile.handshakes [--count N]`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import orjson
import typer
from tests.unit.connections import echo

from enginehouse.transport import frames
from enginehouse.transport.replica_end import Listener
from enginehouse.transport.router_end import Address, Channel

TOGETHER = 50
#: What is kept of the memory after the first tenth, which fills allocators.
MOST_MIB = 4.0


def _proof(rng: np.random.Generator) -> bytes:
    """A proof, a call or any bytes, of which some are changed, some are missing, or more follow."""
    kind = int(rng.integers(3))
    if kind == 0:
        content = orjson.dumps(["00" * 32, "00" * 16])
        said = struct.pack("<BxxxIQQ", frames.Kind.PROOF, len(content), 0, 0) + content
    elif kind == 1:
        said = struct.pack("<BxxxIQQ", int(rng.integers(256)), *rng.integers(0, 2**31, 3)) + rng.bytes(40)
    else:
        said = rng.bytes(int(rng.integers(400)))
    changed = bytearray(said)
    for _ in range(int(rng.integers(8)) if changed else 0):
        changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
    return bytes(changed[: int(rng.integers(len(changed) + 1))]) + rng.bytes(int(rng.choice([0, 0, 5000])))


async def _say(address: Address, said: bytes, waits: bool) -> str:
    reader, writer = await asyncio.open_connection(address["host"], address["port"])
    try:
        writer.write(said)
        if not waits:
            return "left"
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 5)
        return "sent away"
    except TimeoutError:
        return "HELD"
    except OSError:
        return "sent away"
    finally:
        writer.close()


async def _run(count: int) -> bool:
    listener = Listener("pool", echo, 8)
    address = await listener.start("127.0.0.1")
    rng, seen, marks = np.random.default_rng(0), Counter[str](), list[float]()
    files = _files()
    began = time.monotonic()
    for number in range(count // TOGETHER):
        seen.update(await asyncio.gather(*(_say(address, _proof(rng), bool(rng.integers(4))) for _ in range(TOGETHER))))
        if number % max(1, count // TOGETHER // 10) == 0:
            gc.collect()
            marks.append(_mib())
    await asyncio.sleep(3)
    gc.collect()
    left = len(listener.connections), len(listener.strangers), _files() - files
    channel = Channel("pool")
    await channel.open(address)
    outputs, _ = await channel.infer("m@1", [{"x": np.ones(2)}], 1, 5)
    channel.close()
    await listener.stop(0)
    grown = _mib() - marks[1]
    print(f"{count} in {time.monotonic() - began:.0f} s: {dict(seen)}")
    print(f"left: {left[0]} connections, {left[1]} unproven, {left[2]} files; memory {marks} MiB, then {grown:+.1f}")
    print(f"a router that has the key: {outputs}")
    return left == (0, 0, 0) and not seen["HELD"] and grown <= MOST_MIB and bool((outputs["x"] == 1).all())


def _files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / (1 << 20), 1)


def main(count: Annotated[int, typer.Option(help="How many.")] = 100_000) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        if not asyncio.run(_run(count)):
            raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
