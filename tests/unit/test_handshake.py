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


def test_the_layout_on_the_wire_is_that_of_version_3(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, router = ReplicaHandshake(KEY), RouterHandshake(KEY)
    version, nonce = replica.hello()
    assert (version, len(nonce)) == (3, 32)
    assert [len(part) for part in router.proof([VERSION, nonce])] == [64, 32]
    # HMAC-SHA256, computed with `openssl dgst -sha256 -mac HMAC`, of "router" and 32 zero bytes with this key.
    known = "2efab7163ff3c2631b56038f5a6f41e3da8cb8524ca2b51f1889e940bdcefd48"
    monkeypatch.setattr("secrets.token_bytes", bytes)
    assert RouterHandshake(KEY).proof([VERSION, "00" * 16])[0] == known


def test_a_router_with_another_key_is_refused() -> None:
    replica, router = ReplicaHandshake(KEY), RouterHandshake(OTHER)
    with pytest.raises(WireError, match="does not have the replica's key"):
        replica.welcome(router.proof(replica.hello()))


def test_a_replica_with_another_key_is_refused() -> None:
    router = RouterHandshake(KEY)
    hello = ReplicaHandshake(KEY).hello()
    _, nonce = router.proof(hello)
    welcome = hmac.digest(OTHER, b"replica" + bytes.fromhex(hello[1] + nonce), "sha256").hex()
    with pytest.raises(WireError, match="does not have the replica's key"):
        router.check(welcome)


def test_a_proof_of_another_connection_is_refused() -> None:
    router, first, second = RouterHandshake(KEY), ReplicaHandshake(KEY), ReplicaHandshake(KEY)
    overheard = router.proof(first.hello())
    welcome = first.welcome(overheard)
    with pytest.raises(WireError, match="does not have the replica's key"):
        second.welcome(overheard)
    later = RouterHandshake(KEY)
    with pytest.raises(WireError, match="WELCOME before HELLO"):
        later.check(welcome)
    later.proof(second.hello())
    with pytest.raises(WireError, match="does not have the replica's key"):
        later.check(welcome)


def test_what_one_router_proves_is_no_proof_of_a_replica_to_another() -> None:
    # Whoever took the address of a dead replica passes on the nonce of one router to the next.
    victim, other = RouterHandshake(KEY), RouterHandshake(KEY)
    mac, nonce = victim.proof([VERSION, "00" * handshake.NONCE_BYTES])
    reflected, _ = other.proof([VERSION, nonce])
    for forged in (reflected, mac):
        with pytest.raises(WireError, match="does not have the replica's key"):
            victim.check(forged)


def test_a_replica_does_not_take_what_another_replica_proved_for_a_router() -> None:
    router, first, second = RouterHandshake(KEY), ReplicaHandshake(KEY), ReplicaHandshake(KEY)
    welcome = first.welcome(router.proof(first.hello()))
    with pytest.raises(WireError, match="does not have the replica's key"):
        second.welcome([welcome, second.hello()[1]])


@pytest.mark.parametrize("bytes_", [0, handshake.NONCE_BYTES - 1, handshake.NONCE_BYTES + 1, 1000])
def test_a_nonce_of_another_length_is_refused(bytes_: int) -> None:
    nonce = "00" * bytes_
    with pytest.raises(WireError, match=f"a nonce of {bytes_} bytes"):
        RouterHandshake(KEY).proof([VERSION, nonce])
    with pytest.raises(WireError, match=f"a nonce of {bytes_} bytes"):
        ReplicaHandshake(KEY).welcome(["00" * 32, nonce])


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
