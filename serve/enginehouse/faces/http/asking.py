"""Who asks over HTTP: `Authorization: Bearer TOKEN`, looked at before anything of the body is read.

Inference finds its caller with `caller_of`, and the data plane does the rest. All else passes `WhoAsks`: a path that is
not listed here needs the role `read` and a token for all models, so that what is new is not open by mistake.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from enginehouse.contract.config.access import Role
from enginehouse.contract.errors import EnginehouseError
from enginehouse.routing.admission.callers import ANYBODY, Caller
from enginehouse.routing.data_plane import DataPlane

#: What load balancers and clients ask before they have a token; none of it names a model.
OPEN = frozenset({"/v2", "/v2/", "/v2/health/live", "/v2/health/ready"})
#: Lists, of which a caller sees the models that are for it.
_LISTS = frozenset({"/v2/models", "/v2/repository/index"})
#: About all models, though it looks as about one.
_OF_ALL = frozenset({"/v2/models/stats"})
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/.*)?")
_INFER = re.compile(r"/v2/models/[^/]+(?:/versions/[^/]+)?/infer")
_LOADS = re.compile(r"/v2/repository(?:/[^/]+)?/models/([^/]+)/(?:load|unload)")
#: Where a scope has its caller.
_CALLER = "caller"


def find(plane: DataPlane, scope: Scope) -> Caller:
    """Who sends a request, which remembers it. Raises Unauthenticated."""
    if not plane.callers.are_asked:
        return ANYBODY
    with plane.refusals("http"):
        # Of a repeated one the first counts.
        given = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        caller = scope[_CALLER] = plane.callers.find(given)
    return caller


def caller_of(request: Request) -> Caller:
    """Who sent a request whose caller was found; ANYBODY where nobody was."""
    caller: Caller = request.scope.get(_CALLER, ANYBODY)
    return caller


class WhoAsks:
    """ASGI middleware: only who may ask for a path gets to its route; others get what `refuse` makes of the error."""

    def __init__(
        self,
        application: ASGIApp,
        plane: Callable[[], DataPlane],
        refuse: Callable[[Request, Exception], Awaitable[Response]],
    ) -> None:
        self._application = application
        self._plane = plane
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN and not _INFER.fullmatch(scope["path"]):
            plane = self._plane()
            try:
                caller = find(plane, scope)
                with plane.refusals("http"):
                    _check(caller, scope["path"])
            except EnginehouseError as error:
                response = await self._refuse(Request(scope, receive), error)
                await response(scope, receive, send)
                return
        await self._application(scope, receive, send)


def _check(caller: Caller, path: str) -> None:
    role: Role = "read"
    model: str | None = None
    if loads := _LOADS.fullmatch(path):
        role, model = "admin", loads[1]
    elif path in _LISTS:
        caller.check_role(role)
        return
    elif path not in _OF_ALL and (one := _MODEL.fullmatch(path)):
        model = one[1]
    caller.check(role, model)


def without_names(plane: DataPlane, waiting: list[Any]) -> str:
    """What whoever asks without a token is told of models that are not ready."""
    return f"{len(waiting)} of the models" if plane.callers.are_asked else ", ".join(waiting)
