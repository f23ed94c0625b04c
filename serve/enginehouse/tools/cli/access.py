"""Who may ask what `enginehouse serve` serves, and its certificates; followed in their files while a server runs."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from enginehouse.cluster.haproxy.certificates import Certificates
from enginehouse.contract.config import Catalog, tokens_file
from enginehouse.contract.config.access import ROLES, CallerConfig, digest, is_loopback
from enginehouse.contract.errors import ConfigError, EnginehouseError
from enginehouse.tools.cli.console import out, say

#: Seconds between two looks at the files.
LOOK_S = 1.0

Callers = tuple[CallerConfig, ...]


def chosen(
    tokens: Path | None,
    no_auth: bool,
    is_reached: bool,
    show: Callable[[str], None],
    live: Catalog | None = None,
) -> Callers | None:
    """Who may ask, by `--tokens` and `--no-auth`; None: whoever reaches the server.

    With neither it is as it is `live`, or else, where other machines may reach the server, one token, which is made
    here, given to `show`, and kept nowhere.
    """
    if tokens is not None and no_auth:
        raise ConfigError("--tokens and --no-auth exclude each other")
    if tokens is not None:
        return tokens_file.read(tokens)
    if no_auth:
        if is_reached:
            say("--no-auth: whoever reaches this server may ask it everything; no token is wanted")
        return None
    if live is not None and live.callers is not None:
        say(f"tokens as before: {len(live.callers)} (--tokens for others, --no-auth for none)")
        return live.callers
    if not is_reached:
        return None
    token = secrets.token_hex(32)
    show(f"token, shown only this once: {token}")
    say("send it as `Authorization: Bearer TOKEN`; --tokens FILE has several, --no-auth wants none")
    return (CallerConfig(name="all", sha256=digest(token), roles=ROLES),)


def on_stdout(text: str) -> None:
    """Show a made token where results are."""
    out.print(text, highlight=False, soft_wrap=True)


def is_reached(host: str, grpc_port: int = 0, is_local: bool = True) -> bool:
    """Whether other machines may reach a server there: on clusters, routers listen for gRPC on all addresses."""
    return not is_loopback(host) or (bool(grpc_port) and not is_local)


def certificates(cert: Path | None, key: Path | None, client_ca: Path | None, address: str) -> Certificates | None:
    """By the options for TLS, None without. Raises ConfigError."""
    if cert is None and key is None and client_ca is None:
        return None
    if address != "local":
        raise ConfigError("TLS is for a local server; on a cluster put a load balancer with TLS before it")
    if cert is None or key is None:
        raise ConfigError("TLS needs both --tls-cert and --tls-key")
    return Certificates(cert, key, client_ca)


class Followed:
    """The files of a running server: `wait` until `stop`, and pass on what changes in them meanwhile.

    A file that cannot be used changes nothing, and is told once.
    """

    def __init__(self, tokens: Path | None, tls: Certificates | None) -> None:
        self._tokens, self._tls = tokens, tls
        # Before it is read for the first time.
        self._seen = tokens_file.signature(tokens) if tokens else ()
        self._told = ""

    def wait(self, stop: threading.Event, folder: Path) -> None:
        """`folder` is that of the server."""
        if self._tokens is None and self._tls is None:
            stop.wait()
        while not stop.wait(LOOK_S):
            self.look(folder)

    def look(self, folder: Path) -> None:
        """Once."""
        try:
            self._look_at_tokens()
            self._look_at_certificates(folder)
        except EnginehouseError as error:
            told = f"{type(error).__name__}: {error}; as it was before until that is put right"
            if told != self._told:
                say(told)
            self._told = told
        else:
            self._told = ""

    def _look_at_tokens(self) -> None:
        if self._tokens is None or (seen := tokens_file.signature(self._tokens)) == self._seen:
            return
        from enginehouse.cluster import deploy

        callers = tokens_file.read(self._tokens)
        deploy.set_callers(callers)
        self._seen = seen
        say(f"{self._tokens}: {len(callers)} tokens from now on")

    def _look_at_certificates(self, folder: Path) -> None:
        if self._tls is not None and self._tls.reload(folder):
            say("the certificates have changed: new connections get the new ones")
