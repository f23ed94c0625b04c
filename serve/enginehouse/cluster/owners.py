"""Whose the Ray clusters are that run on this machine: whoever is sent a token may run code with it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil

from enginehouse.contract.errors import ConfigError

_FLAG = "--gcs-address="


def clusters_of_this_machine() -> dict[str, set[int]]:
    """The address of each cluster whose node runs here, and the users that such nodes run as."""
    found: dict[str, set[int]] = {}
    for process in psutil.process_iter(["name", "cmdline", "uids"]):
        facts = process.info
        if facts["name"] != "raylet" or not facts["uids"]:
            continue
        # Commands that it starts are single arguments of it, with the same flag.
        for word in " ".join(facts["cmdline"] or ()).split():
            if word.startswith(_FLAG):
                found.setdefault(word.removeprefix(_FLAG), set()).add(facts["uids"].effective)
    return found


def cluster_of_this_user(clusters: Mapping[str, set[int]]) -> str | None:
    """The address of the one cluster among those of this machine that is this user's, or root's; None without any.

    Raises ConfigError where there are several, and where all are of other users: they would have our token.
    """
    trusted = {os.getuid(), 0}
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
