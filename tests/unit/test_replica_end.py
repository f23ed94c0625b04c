"""Connections without the key are closed, and garbage after the handshake costs only its own connection."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import secrets
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from tests.unit.connections import Run, connected, echo, pool

from enginehouse.contract.errors import EngineUnavailable
from enginehouse.transport import frames
from enginehouse.transport.replica_end import MAX_UNPROVEN, Listener
from enginehouse.transport.router_end import Channel


def frame(kind: int, content: bytes, tensors: bytes = b"", call: int = 0) -> bytes:
    return struct.pack("<BxxxIQQ", kind, len(content), call, len(tensors)) + content + tensors


STRANGERS = {
    "wrong key": frame(frames.Kind.PROOF, b'["00","00"]'),
    "no text": frame(frames.Kind.PROOF, b"7"),
    "no JSON": frame(frames.Kind.PROOF, b"{"),
    "a call": frame(frames.Kind.CALL, b'["m@1",1,1.0,[]]'),
    "unknown kind": frame(77, b"null"),
    "too much": frame(frames.Kind.PROOF, b"x" * 1000),
    "endless": struct.pack("<BxxxIQQ", 2, 2**32 - 1, 0, 2**64 - 1),
    "HTTP": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
}


@pytest.mark.parametrize("sent", STRANGERS.values(), ids=STRANGERS)
def test_a_connection_without_proof_is_closed_and_others_go_on(run: Run, sent: bytes) -> None:
    async def work() -> None:
        async with connected() as (listener, channel), pool() as (_, __):
            assert listener._server is not None
            reader, writer = await asyncio.open_connection(*listener._server.sockets[0].getsockname())
            writer.write(sent)
            hello = await reader.read(1 << 16)
            # Nothing is sent to it but HELLO.
            assert len(hello) == 24 + 64
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            await channel.infer("m@1", [{"x": np.zeros(1)}], 1, 10)
            assert len(listener.connections) == 1

    run(work())


IMPOSTORS = {
    "another key": [[frames.VERSION, "00" * 16], "00" * 32],
    "another version": [[frames.VERSION + 1, "00" * 16], None],
    "no list": [7, None],
}


@pytest.mark.parametrize(("hello", "welcome"), IMPOSTORS.values(), ids=IMPOSTORS)
def test_a_router_does_not_take_an_impostor_for_a_replica(run: Run, hello: object, welcome: object) -> None:
    async def work() -> None:
        async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(frame(frames.Kind.HELLO, orjson.dumps(hello)))
            with contextlib.suppress(ConnectionError):
                await reader.read(1000)
                writer.write(frame(frames.Kind.WELCOME, orjson.dumps(welcome)))
                await reader.read()
            writer.close()

        server = await asyncio.start_server(impostor, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        channel = Channel("pool")
        with pytest.raises(EngineUnavailable, match="no connection to"):
            await channel.open({"host": host, "port": port, "key": "11" * 32})
        assert not channel.is_open
        server.close()

    run(work())


def test_a_connection_that_sends_nothing_is_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginehouse.transport.replica_end.CONNECT_S", 0.1)

    async def work() -> None:
        async with pool() as (_, address):
            reader, writer = await asyncio.open_connection(address["host"], address["port"])
            with contextlib.suppress(ConnectionError):
                assert len(await reader.read()) == 24 + 64
            writer.close()

    run(work())


def test_connections_without_proof_are_bounded_and_routers_still_come_in(run: Run) -> None:
    async def work() -> None:
        async with pool() as (listener, address):
            idle = [await asyncio.open_connection(address["host"], address["port"]) for _ in range(MAX_UNPROVEN + 40)]
            channel = Channel("pool")
            await channel.open(address)
            assert len(listener.strangers) <= MAX_UNPROVEN
            await channel.infer("m@1", [{"x": np.zeros(1)}], 1, 10)
            for reader, _ in idle[:40]:
                with contextlib.suppress(ConnectionError):
                    await asyncio.wait_for(reader.read(), 1)
            channel.close()
            for _, writer in idle:
                writer.close()

    run(work())


@pytest.mark.parametrize("seed", range(4))
def test_fuzzed_handshakes_leave_no_connection(run: Run, seed: int) -> None:
    async def work() -> None:
        rng = np.random.default_rng(seed)
        async with pool() as (listener, address):
            for _ in range(50):
                proof = bytearray(frame(frames.Kind.PROOF, orjson.dumps(["00" * 32, "00" * 16])))
                for _ in range(int(rng.integers(0, 8))):
                    proof[int(rng.integers(0, len(proof)))] = int(rng.integers(0, 256))
                reader, writer = await asyncio.open_connection(address["host"], address["port"])
                writer.write(bytes(proof[: int(rng.integers(0, len(proof) + 1))]))
                writer.write_eof()
                with contextlib.suppress(ConnectionError):
                    await asyncio.wait_for(reader.read(), 5)
                writer.close()
            await asyncio.sleep(0.05)
            assert not listener.strangers
            assert not listener.connections

    run(work())


def test_where_a_node_has_an_address_of_another_machine_it_listens_on_all_interfaces_and_says_so(run: Run) -> None:
    async def work() -> None:
        for host, is_everywhere in (("127.0.0.1", False), ("192.0.2.1", True)):
            listener = Listener("pool", echo, 8)
            address = await listener.start(host)
            assert (address["host"], listener.is_everywhere) == (host, is_everywhere)
            channel = Channel("pool")
            await channel.open(address | {"host": "127.0.0.1"})
            channel.close()
            await listener.stop(0)

    run(work())


@pytest.mark.parametrize("seed", range(20))
def test_garbage_after_the_handshake_costs_only_its_own_connection(run: Run, seed: int) -> None:
    async def work() -> None:
        rng = np.random.default_rng(seed)
        async with pool() as (listener, address):
            stranger, friend = Channel("pool"), Channel("pool")
            await stranger.open(address)
            await friend.open(address)
            metas, buffers = frames.encode([{"x": np.arange(40, dtype=np.float32)}])
            call = bytearray(frame(frames.Kind.CALL, orjson.dumps(["m", 1, 1.0, metas]), b"".join(buffers), 5))
            for _ in range(int(rng.integers(1, 6))):
                call[int(rng.integers(0, len(call)))] = int(rng.integers(0, 256))
            assert stranger.transport is not None
            stranger.transport.write(bytes(call) + secrets.token_bytes(200))
            await asyncio.sleep(0.02)
            answer, _ = await friend.infer("m@1", [{"x": np.arange(3)}], 1, 5)
            assert answer["x"].tolist() == [0, 1, 2]
            stranger.close()
            friend.close()
            assert listener.calls == set()

    run(work())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """Ray's TLS variables, with a certificate of the authority that is named."""
    folder = tmp_path_factory.mktemp("tls")
    day, now = datetime.timedelta(days=1), datetime.datetime.now(datetime.UTC)
    made: dict[str, dict[str, str]] = {}

    def signed(subject: str, key: Any, issuer: str, by: Any) -> Any:
        name = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, part)]) for part in (subject, issuer)]
        certificate = x509.CertificateBuilder(name[1], name[0], key.public_key(), x509.random_serial_number())
        certificate = certificate.not_valid_before(now - day).not_valid_after(now + day)
        return certificate.add_extension(x509.BasicConstraints(subject == issuer, None), True).sign(by, hashes.SHA256())

    def of(authority: str) -> dict[str, str]:
        if authority not in made:
            root, node = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
            contents = {
                "RAY_TLS_CA_CERT": signed(authority, root, authority, root).public_bytes(Encoding.PEM),
                "RAY_TLS_SERVER_CERT": signed("node", node, authority, root).public_bytes(Encoding.PEM),
                "RAY_TLS_SERVER_KEY": node.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            }
            for variable, content in contents.items():
                (folder / f"{authority}-{variable}").write_bytes(content)
            made[authority] = {name: str(folder / f"{authority}-{name}") for name in contents} | {"RAY_USE_TLS": "1"}
        return made[authority]

    return of


def test_on_a_cluster_with_tls_both_ends_prove_its_certificates(
    run: Run, certificates: Callable[[str], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        for name, value in certificates("ours").items():
            monkeypatch.setenv(name, value)
        x = np.arange(3_000_000, dtype=np.float32)
        async with connected() as (_, channel), pool() as (__, address):
            assert channel.transport is not None
            assert channel.transport.get_extra_info("cipher")
            answer, ___ = await channel.infer("m@1", [{"x": x}], 1, 10)
            np.testing.assert_array_equal(answer["x"], x)
            for name, value in certificates("theirs").items():
                monkeypatch.setenv(name, value)
            with pytest.raises(EngineUnavailable):
                await Channel("pool").open(address)
            monkeypatch.delenv("RAY_USE_TLS")
            monkeypatch.setattr("enginehouse.transport.router_end.CONNECT_S", 0.5)
            with pytest.raises(EngineUnavailable):
                await Channel("pool").open(address)

    run(work())
