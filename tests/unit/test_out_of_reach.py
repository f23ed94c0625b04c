"""Replicas that run, but that a router cannot connect to: status and refusals say why. Real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import io
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.unit.catalogs import POOLS, answers, catalog, entry, until
from tests.unit.connections import connected, pool

from enginehouse.contract.config import APP_NAME
from enginehouse.contract.errors import NoBackend
from enginehouse.pools import nodes
from enginehouse.routing import replicas, versions
from enginehouse.routing.replicas import KnownReplicas
from enginehouse.routing.versions import LiveVersions
from enginehouse.routing.view import View
from enginehouse.tools.cli import status as command
from enginehouse.transport import handshake
from enginehouse.transport.router_end import Address

WARM: dict[str, dict[str, Any]] = {
    "m@1": {"state": "ready", "reason": "", "engine": "onnxruntime-cpu", "artifact": "onnx-fp32", "precision": "fp32"}
    | {"measured": []}
}


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Iterator[KnownReplicas]:
    """What Serve lists of pool `ort`; there is no other pool."""
    known = KnownReplicas("ort")
    monkeypatch.setitem(replicas._pools, (APP_NAME, "ort"), known)
    monkeypatch.setattr(replicas, "RETRY_AFTER_S", 0.02)
    monkeypatch.setattr(nodes, "count_with", lambda _: 1)
    for period in ("PERIOD_S", "REST_S", "CONNECT_S"):
        monkeypatch.setattr(versions, period, 0.005)
    yield known


@contextlib.asynccontextmanager
async def of_another_version(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Address]:
    async with pool() as (_, address):
        monkeypatch.setattr(handshake.ReplicaHandshake, "hello", lambda _: [2, "00" * handshake.NONCE_BYTES])
        yield address
        monkeypatch.undo()


@contextlib.asynccontextmanager
async def of_another_key(__: pytest.MonkeyPatch) -> AsyncIterator[Address]:
    async with pool() as (_, address):
        yield Address(host=address["host"], port=address["port"], key=secrets.token_hex(32))


@contextlib.asynccontextmanager
async def that_does_not_listen(_: pytest.MonkeyPatch) -> AsyncIterator[Address]:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        yield Address(host="127.0.0.1", port=line.getsockname()[1], key="00" * 32)


@contextlib.asynccontextmanager
async def behind_tls_without_certificates(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Address]:
    async with pool() as (_, address):
        monkeypatch.setenv("RAY_USE_TLS", "1")
        yield address


@pytest.mark.parametrize(
    ("replica", "reason"),
    [
        (of_another_version, "the replica speaks version 2, this router 3"),
        (of_another_key, "no connection to 127.0.0.1:"),
        (that_does_not_listen, "Connect call failed"),
        (behind_tls_without_certificates, "RAY_TLS_CA_CERT"),
    ],
)
async def test_why_a_router_has_no_connection_is_told(
    listed: KnownReplicas, store: Path, replica: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = LiveVersions(View({"ort": POOLS["ort"]}, None, "here"))
    with pytest.MonkeyPatch.context() as patch:
        async with replica(patch) as address:
            listed.update({f"r{number}": {"models": WARM, "address": address, "node": "here"} for number in range(2)})
            models.apply(catalog(store, "1"))

            def told() -> str:
                (backend,) = entry(models)["backends"] or [{"reason": ""}]
                return str(backend["reason"])

            await until(lambda: "2 of its replicas cannot be reached" in told())
            assert reason in told()
            assert entry(models)["backends"][0]["replicas"] == 2
            with pytest.raises(NoBackend, match="is not warm yet") as refused:
                models.get("m")
            assert reason in str(refused.value)
            console = Console(record=True, width=300, file=io.StringIO())
            monkeypatch.setattr(command, "out", console)
            command.show(models.status(lambda _: False) | {"missing_flags": []})
            shown = console.export_text()
            assert "0/2" in shown and reason in shown
    # Once they can be reached nothing is told any more.
    async with connected() as (_, channel):
        for known in listed.by_id.values():
            await until(lambda known=known: known.id not in replicas._connecting)  # type: ignore[misc]
            known.channel = channel
        await until(lambda: answers(models) == "1")
        assert told() == ""


async def test_one_of_two_that_cannot_be_reached_is_told_beside_a_live_one(listed: KnownReplicas, store: Path) -> None:
    async with pool() as (_, address):
        lost = Address(host=address["host"], port=address["port"], key="00" * 32)
        listed.update(
            {
                "a": {"models": WARM, "address": address, "node": "here"},
                "b": {"models": WARM, "address": lost, "node": "here"},
            }
        )
        models = LiveVersions(View({"ort": POOLS["ort"]}, None, "here"))
        models.apply(catalog(store, "1"))
        await until(lambda: answers(models) == "1")
        await until(lambda: "1 of its replicas cannot be reached" in entry(models)["backends"][0]["reason"])
        backend = entry(models)["backends"][0]
        assert (backend["state"], backend["ready"], backend["replicas"]) == ("live", 1, 2)
        # One that Serve no longer lists is gone, and no fault.
        listed.update({"a": {"models": WARM, "address": address, "node": "here"}})
        await until(lambda: entry(models)["backends"][0]["reason"] == "")
        await asyncio.sleep(0)
        for replica in listed.by_id.values():
            replica.channel.close()
