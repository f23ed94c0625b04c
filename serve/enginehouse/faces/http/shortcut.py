"""The short way for inference requests through an ingress replica, past what Serve does for any HTTP application.

Serve wraps every request to a replica's own port in tasks, queues, metrics and log records: some 0.3 ms of CPU, more
than a small model costs (Ray Serve 2.60). Serve's documented hook for ASGI middlewares
(`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`) lets ours see the request first. What it does not know, a request of
another application say, goes on as always; without the hook everything does, and works the same, only slower.

Imported by every process that listens for HTTP, Serve's proxies too: it imports nothing of weight.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

_INFER = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Any, Any], Awaitable[None]]


class Shortcut:
    """ASGI middleware: hands inference requests to the Router of this process, when there is one."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._infer: Application | None = None

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        match = _INFER.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if match is None:
            await self._application(scope, receive, send)
            return
        self._infer = self._infer or _router_of_this_process()
        if self._infer is None:
            await self._application(scope, receive, send)
            return
        scope["path_params"] = match.groupdict()
        await self._infer(scope, receive, send)


def middlewares() -> list[Any]:
    """What Serve's hook asks for."""
    from starlette.middleware import Middleware

    return [Middleware(Shortcut)]


def _router_of_this_process() -> Application | None:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        replica = serve.get_replica_context().servable_object
    except RayServeException:
        # A proxy.
        return None
    infer: Application | None = getattr(replica, "enginehouse_infer", None)
    return infer
