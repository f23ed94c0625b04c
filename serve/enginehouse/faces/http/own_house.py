"""Answers only what comes through this cluster's own HAProxy, where one adds a key to every request.

A router's port may have been another server's before: that one's HAProxy, and whoever asked it, would get answers of
models that he did not mean. Serve's health checks need the key as well, so such a router is down to the other HAProxy.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

#: The header, and the variable with what a local cluster's HAProxy writes into it: those of cluster/haproxy_wrapper.py,
#: which this module, imported by every process that listens for HTTP, does not import.
HEADER, KEY = "x-house-key", "ENGINEHOUSE_HOUSE_KEY"
_STRANGER = b'{"error": "this port belongs to another server than the one that was asked; send the request again"}'

Application = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class OwnHouse:
    """ASGI middleware: 503 for a request without the key."""

    def __init__(self, application: Application, key: str) -> None:
        self._application = application
        self._header = HEADER.encode(), key.encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or self._header in scope["headers"]:
            await self._application(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"application/json"), (b"retry-after", b"1"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": _STRANGER})
        else:
            await send({"type": "websocket.close"})


def key() -> str | None:
    """The key of this process's cluster; None where its HAProxy writes none."""
    return os.environ.get(KEY)
