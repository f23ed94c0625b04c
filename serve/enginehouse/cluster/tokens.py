"""Clusters that ask for a token: who sends none is told so at once. Ray tries for 20 s, and then gives no reason.

This imports Ray, and so comes after its environment is set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import ray

from enginehouse.cluster import ray_private
from enginehouse.cluster.home import has_token
from enginehouse.contract.errors import ConfigError

#: A call that every cluster answers, and seconds that it has.
_CALL, ASK_S = "/ray.rpc.NodeInfoGcsService/CheckAlive", 2.0


def check(address: str) -> None:
    """Raise ConfigError when the cluster at `host:port` asks for a token and this process would send it none."""
    if ray_private.sends_token() or not is_asked(address):
        return
    token = "" if has_token() else ", and its token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
    raise ConfigError(
        f"the Ray cluster at {address} asks for a token: set RAY_AUTH_MODE=token before Ray is imported{token}"
    )


def check_usual() -> None:
    """As `check` of the cluster that Ray would find by itself; nothing once this process is connected to one."""
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    if not address and has_token() and "RAY_AUTH_MODE" not in os.environ:
        # To one that it finds on this machine Ray sends it.
        return
    check(address or ray_private.found_address())


def check_sent(address: str) -> None:
    """Raise ConfigError when the cluster at `host:port` refuses the token that this process sends it."""
    if ray_private.sends_token() and is_asked(address, ray_private.token_headers()):
        raise ConfigError(
            f"the Ray cluster at {address} asks for another token than the one in RAY_AUTH_TOKEN, the file "
            "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        )


def is_asked(address: str, headers: Mapping[str, str] | None = None) -> bool:
    """Whether the cluster at `host:port` refuses a call with these headers, by default without a token.

    Not where nobody answers, or only with TLS.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return False
    # Here: it is seldom asked, and importing this takes as long as most commands have.
    import grpc

    sent = tuple((name.lower(), value) for name, value in (headers or {}).items())
    # A proxy for the web knows no way to a cluster.
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_CALL)(b"", timeout=ASK_S, metadata=sent)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False
