"""Whose the Ray clusters of this machine are, and which token they have: whoever is sent one may run code with it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

import psutil

from enginehouse.contract.errors import ConfigError

_FLAG = "--gcs-address="
#: Of a node's environment, where its token comes from.
TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def clusters_of_this_machine() -> dict[str, set[int]]:
    """The address of each cluster whose node runs here, and the users that such nodes run as."""
    found: dict[str, set[int]] = {}
    for process, address in _nodes():
        found.setdefault(address, set()).add(process.info["uids"].effective)
    return found


def token_variables(address: str) -> dict[str, str] | None:
    """Which of `TOKEN_VARIABLES` a node here of the cluster at `address` was started with; None where none is ours.

    Ours are this user's and root's, of which only root can read them.
    """
    for process, own in _nodes():
        if own == address and process.info["uids"].effective in _trusted():
            environment: dict[str, str] = {}
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
            return {name: environment[name] for name in TOKEN_VARIABLES if environment.get(name)}
    return None


def _nodes() -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter(["name", "cmdline", "uids"]):
        facts = process.info
        if facts["name"] != "raylet" or not facts["uids"]:
            continue
        # Commands that it starts are single arguments of it, with the same flag.
        for word in " ".join(facts["cmdline"] or ()).split():
            if word.startswith(_FLAG):
                yield process, word.removeprefix(_FLAG)


def _trusted() -> set[int]:
    return {os.getuid(), 0}


def cluster_of_this_user(clusters: Mapping[str, set[int]]) -> str | None:
    """The address of the one cluster among those of this machine that is this user's, or root's; None without any.

    Raises ConfigError where there are several, and where all are of other users: they would have our token.
    """
    trusted = _trusted()
    ours = sorted(address for address, users in clusters.items() if users & trusted)
    if len(ours) > 1:
        raise ConfigError(f"{len(ours)} Ray clusters run on this machine: {', '.join(ours)}; name one with --address")
    if not ours and clusters:
        theirs = ", ".join(
            f"{address} (uid {', '.join(map(str, sorted(users - trusted)))})" for address, users in clusters.items()
        )
        raise ConfigError(
            f"the Ray clusters of this machine are other users': {theirs}; they would be sent your token; "
            "start one with `enginehouse serve`, or name theirs with --address"
        )
    return ours[0] if ours else None
