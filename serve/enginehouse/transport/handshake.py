"""The handshake of a connection: each end proves that it has the replica's key before any call is made.

    replica -> router    HELLO      [frames.VERSION, replica's nonce]
    router -> replica    PROOF      [HMAC of "router" and both nonces, router's nonce]
    replica -> router    WELCOME    HMAC of "replica" and both nonces

HMAC is HMAC-SHA256 with the replica's key over the role, the replica's nonce and the router's; nonces and HMACs travel
as hexadecimal text. The role keeps apart who proves what: whoever takes the address of a dead replica may pass on one
router's nonce to another, but what that one answers is a router's proof, never a replica's.

A replica makes a new key when it starts and publishes it with its address through Serve's routing stats, so only
processes of the cluster have it.
"""

from __future__ import annotations

import hmac
import os
import secrets
import ssl
from collections.abc import Mapping
from typing import Any

from enginehouse.transport.frames import VERSION, WireError

#: Bytes of a key and of a nonce.
KEY_BYTES, NONCE_BYTES = 32, 16
_ROUTER, _REPLICA = b"router", b"replica"


class ReplicaHandshake:
    """The replica's part in one connection."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._nonce = secrets.token_bytes(NONCE_BYTES)

    def hello(self) -> list[Any]:
        """Content of HELLO."""
        return [VERSION, self._nonce.hex()]

    def welcome(self, proof: Any) -> str:
        """Content of WELCOME, given the content of PROOF. Raises WireError unless it proves the key."""
        mac, nonce = _pair(proof)
        nonces = self._nonce + _nonce(nonce)
        _check(self._key, _ROUTER + nonces, mac)
        return _mac(self._key, _REPLICA + nonces).hex()


class RouterHandshake:
    """The router's part in one connection; `key` is that of the replica's address."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._nonces = b""

    def proof(self, hello: Any) -> list[Any]:
        """Content of PROOF, given the content of HELLO. Raises WireError when the replica has another version."""
        version, nonce = _pair(hello)
        if version != VERSION:
            raise WireError(f"the replica speaks version {version}, this router {VERSION}")
        self._nonces = _nonce(nonce) + self._nonce
        return [_mac(self._key, _ROUTER + self._nonces).hex(), self._nonce.hex()]

    def check(self, welcome: Any) -> None:
        """Raise WireError unless this content of WELCOME proves the key. Call `proof` before."""
        if not self._nonces:
            raise WireError("WELCOME before HELLO")
        _check(self._key, _REPLICA + self._nonces, welcome)


def tls(is_server: bool, env: Mapping[str, str] = os.environ) -> ssl.SSLContext | None:
    """TLS context of one end, in which both ends must show a certificate; None unless `RAY_USE_TLS` is on.

    Files come from the variables that Ray itself reads (`RAY_TLS_*`). Raises KeyError or OSError for missing ones.
    """
    if env.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    # Nodes are addressed by IP, which a cluster's certificates seldom name: one of the cluster's authority suffices.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(env["RAY_TLS_CA_CERT"])
    context.load_cert_chain(env["RAY_TLS_SERVER_CERT"], env["RAY_TLS_SERVER_KEY"])
    return context


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


def _check(key: bytes, text: bytes, mac: Any) -> None:
    if not hmac.compare_digest(_mac(key, text), _bytes(mac)):
        raise WireError("the other end does not have the replica's key")


def _pair(content: Any) -> tuple[Any, Any]:
    if not isinstance(content, list) or len(content) != 2:
        raise WireError("not a message of the handshake")
    return content[0], content[1]


def _nonce(text: Any) -> bytes:
    nonce = _bytes(text)
    # Of any other length, it could be taken for a part of its neighbour.
    if len(nonce) != NONCE_BYTES:
        raise WireError(f"a nonce of {len(nonce)} bytes")
    return nonce


def _bytes(text: Any) -> bytes:
    try:
        return bytes.fromhex(text)
    except (TypeError, ValueError):
        raise WireError("not hexadecimal text") from None
