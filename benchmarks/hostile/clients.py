"""The hostile clients, each a process: `python -m benchmarks.hostile.clients KIND PORT SECONDS [HOST:PORT ...]`.

Each does its worst with two connections at a time where the requests cost work, and with as many as the row says where
it is the connections that cost. At its end it prints, as JSON, what became of its connections or requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import os
import resource
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import numpy as np

from benchmarks.hostile.models import CLASSES

Seen = Counter[str]

#: How many connections hang, by kind.
OPEN_BODIES, HALF_HEADS, SLOW_READERS, HALF_HANDSHAKES = 2048, 4100, 256, 1000
_HOST = "127.0.0.1"
_BINARY = "inference-header-content-length"


def _post(model: str, body: bytes, length: int | None = None, **headers: object) -> bytes:
    lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "host: a", f"content-length: {length or len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _tensor(kind: str, shape: list[int], data: bytes) -> bytes:
    return b'{"inputs":[{"name":"x","datatype":"%s","shape":%s,"data":[%s]}]}' % (
        kind.encode(),
        json.dumps(shape).encode(),
        data,
    )


def _binary(model: str, kind: str, shape: list[int], data: bytes, **output: object) -> bytes:
    document = {
        "inputs": [{"name": "x", "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}],
        "outputs": [{"name": "y", "parameters": output}],
    }
    head = json.dumps(document).encode()
    return _post(model, head + data, inference_header_content_length=len(head))


def large_json() -> list[bytes]:
    """240 MiB of JSON; as many numbers, as many arrays and as many pixels as are let in."""
    return [
        _post("scale", _tensor("FP32", [1, 28_000_000], b",".join([b"0.123456"] * 28_000_000))),
        _post("wide", _tensor("FP32", [460, CLASSES], b",".join([b"0.123456"] * 460 * CLASSES))),
        _post("scale", b'{"inputs":[' + b"{}," * 131_000 + b"{}]}"),
        _post("scale", _tensor("UINT8", [1, 2_000_000], b",".join([b"7"] * 2_000_000))),
    ]


def strings() -> list[bytes]:
    """As many strings as are let in, as bytes and as JSON, and forty times as many."""
    return [
        *(_binary("text", "BYTES", [n, CLASSES], b"\1\0\0\0a" * n * CLASSES, binary_data=True) for n in (131, 5000)),
        _post("text", _tensor("BYTES", [131, CLASSES], b",".join([b'"a"'] * 131 * CLASSES))),
    ]


def numbers() -> list[bytes]:
    """Answers of 15 MB of JSON."""
    rows = 1500
    data = np.full((rows, CLASSES), 0.1234567, np.float32).tobytes()
    return [_binary("wide", "FP32", [rows, CLASSES], data, binary_data=False)]


def classes() -> list[bytes]:
    """All classes of 256 and of 16,384 rows."""
    rng = np.random.default_rng(0)
    return [
        _binary("wide", "FP32", [n, CLASSES], rng.standard_normal((n, CLASSES), np.float32).tobytes(),
                binary_data=True, classification=CLASSES)
        for n in (256, 16_384)
    ]  # fmt: skip


def bombs() -> list[bytes]:
    """47 KiB of gzip that are 48 MiB of `{}`, as JSON and as what is before binary data."""
    text = b'{"inputs": [' + b"{}," * (16 << 20) + b"{}]}"
    packed = gzip.compress(text)
    return [
        _post("scale", packed, content_encoding="gzip"),
        _post("scale", packed, content_encoding="gzip", inference_header_content_length=len(text)),
    ]


async def work(requests: list[bytes], port: int, seen: Seen) -> None:
    """Send one after the other over two connections, and take the answers."""

    async def one(turns: Iterator[bytes]) -> None:
        for request in turns:
            with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError):
                seen[await _answer_to(request, port)] += 1

    await asyncio.gather(*(one(itertools.cycle(requests)) for _ in range(2)))


async def _answer_to(request: bytes, port: int) -> str:
    reader, writer = await asyncio.open_connection(_HOST, port)
    try:
        with contextlib.suppress(OSError):
            writer.write(request)
            await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        await reader.readexactly(length)
        return head.split()[1].decode()
    except (OSError, asyncio.IncompleteReadError):
        return "connection lost"
    finally:
        writer.close()


async def hang(
    begin: bytes, port: int, count: int, seen: Seen, every_s: float = 0, more: bytes = b"", host: str = _HOST
) -> None:
    """Keep `count` connections open that have said `begin` and say `more` from time to time; one that is lost anew."""

    async def one(number: int) -> None:
        # Not all in one moment: the client itself could not open them.
        await asyncio.sleep(number / 2000)
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, port, limit=1 << 12)
            except OSError as error:
                seen[f"refused: {type(error).__name__}"] += 1
                await asyncio.sleep(1)
                continue
            seen["opened"] += 1
            seen["open"] += 1
            try:
                writer.write(begin.replace(b"NUMBER", b"%d" % number))
                said = asyncio.create_task(reader.read(4096))
                while not (await asyncio.wait([said], timeout=every_s or None))[0]:
                    writer.write(more)
                text = said.result()
                seen[text.split()[1].decode() if text.startswith(b"HTTP") else "answered" if text else "closed"] += 1
                # Who is answered stays until he is sent away.
                while await reader.read(4096):
                    pass
            except OSError:
                seen["connection lost"] += 1
            finally:
                seen["open"] -= 1
                writer.close()

    await asyncio.gather(*(one(number) for number in range(count)))


async def slow_readers(port: int, seen: Seen) -> None:
    """Ask for answers of 16 MB with 64 KiB, and take nothing of them."""
    rows = 4096
    request = _binary("grow", "FP32", [rows, 4], np.ones((rows, 4), np.float32).tobytes(), binary_data=True)

    async def one() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(_HOST, port, limit=1024)
                seen["opened"] += 1
                seen["open"] += 1
                try:
                    writer.write(request)
                    await writer.drain()
                    head = await reader.readuntil(b"\r\n\r\n")
                    status = head.split()[1].decode()
                    seen[status] += 1
                    if status != "200":
                        await asyncio.sleep(1)
                        continue
                    # asyncio has stopped to read; it notices the end only when it would write.
                    while True:
                        await asyncio.sleep(1)
                        writer.write(b"\r\n")
                        await writer.drain()
                except (OSError, asyncio.IncompleteReadError):
                    seen["connection lost"] += 1
                finally:
                    seen["open"] -= 1
                    writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(SLOW_READERS)))


async def half_handshakes(replicas: list[str], seen: Seen) -> None:
    """Connect to replicas, and say half a proof, or nothing."""
    halves = [b"", b"\3\0\0\0\x66\0\0\0"]
    each = HALF_HANDSHAKES // len(replicas) // len(halves)
    places = [replica.rpartition(":") for replica in replicas]
    await asyncio.gather(*(hang(half, int(port), each, seen, host=host) for host, _, port in places for half in halves))


_HEAD = b"POST /v2/models/%s/infer HTTP/1.1\r\nhost: a\r\n"
_OPEN = b"content-length: 1000\r\n\r\n{"
KINDS: dict[str, Callable[[int, list[str], Seen], Awaitable[None]]] = {
    "large-json": lambda port, _, seen: work(large_json(), port, seen),
    "strings": lambda port, _, seen: work(strings(), port, seen),
    "classes": lambda port, _, seen: work(classes(), port, seen),
    "long-answers": lambda port, _, seen: work(numbers(), port, seen),
    "gzip": lambda port, _, seen: work(bombs(), port, seen),
    "open-invented": lambda port, _, seen: hang(_HEAD % b"no-NUMBER" + _OPEN, port, OPEN_BODIES, seen),
    "open-bodies": lambda port, _, seen: hang(_HEAD % b"scale" + _OPEN, port, OPEN_BODIES, seen),
    "trickled-bodies": lambda port, _, seen: hang(_HEAD % b"scale" + _OPEN, port, OPEN_BODIES, seen, 1.0, b"1"),
    "half-heads": lambda port, _, seen: hang(_HEAD % b"scale", port, HALF_HEADS, seen),
    "trickled-heads": lambda port, _, seen: hang(_HEAD % b"scale" + b"a", port, HALF_HEADS, seen, 2.0, b"a"),
    "slow-readers": lambda port, _, seen: slow_readers(port, seen),
    "half-handshakes": lambda _, replicas, seen: half_handshakes(replicas, seen),
}


async def main(kind: str, port: int, seconds: float, *replicas: str) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Whoever is hostile has a machine of his own.
    os.nice(10)
    seen: Seen = Counter()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(KINDS[kind](port, list(replicas), seen), seconds)
    print(json.dumps(+seen))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:]))
