"""The proof of the key: ends that have it accept each other, and nothing else passes."""

from __future__ import annotations

import hmac
from typing import Any

import pytest

from enginehouse.transport import handshake
from enginehouse.transport.frames import VERSION, WireError
from enginehouse.transport.handshake import ReplicaHandshake, RouterHandshake

KEY, OTHER = b"k" * handshake.KEY_BYTES, b"o" * handshake.KEY_BYTES


def test_ends_with_the_same_key_accept_each_other() -> None:
    replica, router = ReplicaHandshake(KEY), RouterHandshake(KEY)
    router.check(replica.welcome(router.proof(replica.hello())))


def test_the_layout_on_the_wire_is_that_of_version_2() -> None:
    replica, router = ReplicaHandshake(KEY), RouterHandshake(KEY)
    version, nonce = replica.hello()
    assert (version, len(nonce)) == (2, 32)
    assert [len(part) for part in router.proof([VERSION, nonce])] == [64, 32]
    # HMAC-SHA256, computed with `openssl dgst -sha256 -mac HMAC`, of 16 zero bytes with this key.
    known = "e5efd94234c76048c680716f3f15ef16e814080821430a2bebfd8c987fa166c8"
    assert router.proof([VERSION, "00" * 16])[0] == known


def test_a_router_with_another_key_is_refused() -> None:
    replica, router = ReplicaHandshake(KEY), RouterHandshake(OTHER)
    with pytest.raises(WireError, match="does not have the replica's key"):
        replica.welcome(router.proof(replica.hello()))


def test_a_replica_with_another_key_is_refused() -> None:
    router = RouterHandshake(KEY)
    _, nonce = router.proof(ReplicaHandshake(KEY).hello())
    welcome = hmac.digest(OTHER, bytes.fromhex(nonce), "sha256").hex()
    with pytest.raises(WireError, match="does not have the replica's key"):
        router.check(welcome)


def test_a_proof_of_another_connection_is_refused() -> None:
    router, first, second = RouterHandshake(KEY), ReplicaHandshake(KEY), ReplicaHandshake(KEY)
    overheard = router.proof(first.hello())
    welcome = first.welcome(overheard)
    with pytest.raises(WireError, match="does not have the replica's key"):
        second.welcome(overheard)
    with pytest.raises(WireError, match="does not have the replica's key"):
        RouterHandshake(KEY).check(welcome)


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1, None, str(VERSION)])
def test_another_version_is_named(version: object) -> None:
    with pytest.raises(WireError, match=f"the replica speaks version {version}, this router {VERSION}"):
        RouterHandshake(KEY).proof([version, "00" * handshake.NONCE_BYTES])


GARBAGE: list[Any] = [None, 7, "", "text", [], [VERSION], [VERSION, "00", "00"], {"a": 1, "b": 2}, [VERSION, 7]]


@pytest.mark.parametrize("content", [*GARBAGE, [VERSION, "no hexadecimals"]], ids=repr)
def test_garbage_is_refused_by_both_ends(content: Any) -> None:
    router = RouterHandshake(KEY)
    with pytest.raises(WireError):
        router.proof(content)
    with pytest.raises(WireError):
        router.check(content)
    with pytest.raises(WireError):
        ReplicaHandshake(KEY).welcome(content)
