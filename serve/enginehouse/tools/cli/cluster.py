"""The cluster of a command, which says which one that is where it was not named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from enginehouse.cluster import connect
from enginehouse.tools.cli.console import say


@contextlib.contextmanager
def on_cluster(address: str) -> Iterator[str]:
    """As `connect.connected`."""
    with connect.connected(address) as found:
        if address == "auto":
            say(f"on the cluster at {found}")
        yield found
