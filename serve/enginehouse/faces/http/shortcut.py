"""Bypass for inference requests to an ingress replica: they skip Serve's own HTTP handling.

Serve wraps every request to a replica's own port in tasks, queues, metrics and log records: some 0.3 ms of CPU, more
than a small model costs (Ray Serve 2.60). Serve's documented hook for ASGI middlewares
(`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`) puts ours in front of that. Any other request, for instance one of another
application, continues to Serve; without the hook all requests do, and are answered the same, only slower.

Every process that listens for HTTP imports this module, Serve's proxies included, so it imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from enginehouse.faces.http import own_house

_INFER = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Any, Any], Awaitable[None]]


class Shortcut:
    """ASGI middleware: passes inference requests to the ingress replica of this process, if there is one."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._infer: Application | None = None

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        match = _INFER.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if match is None:
            await self._application(scope, receive, send)
            return
        self._infer = self._infer or _ingress_of_this_process()
        if self._infer is None:
            await self._application(scope, receive, send)
            return
        scope["path_params"] = match.groupdict()
        await self._infer(scope, receive, send)


def middlewares() -> list[Any]:
    """Serve's hook: the middlewares of a process that listens for HTTP."""
    from starlette.middleware import Middleware

    key = own_house.key()
    # Serve puts each around those before it.
    return [Middleware(Shortcut), *([Middleware(own_house.OwnHouse, key)] if key else [])]


def _ingress_of_this_process() -> Application | None:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        replica = serve.get_replica_context().servable_object
    except RayServeException:
        # A proxy of Serve, not a replica.
        return None
    infer: Application | None = getattr(replica, "enginehouse_infer", None)
    return infer
