"""Who asks over gRPC: the metadata `authorization: Bearer TOKEN`, looked at before anything of the message is read.

A method that is not listed here needs the role `read`, so that what is new is not open by mistake. What a request asks
about is known once it is read; `check` looks at that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from enginehouse.contract.config.access import Role
from enginehouse.contract.errors import EnginehouseError
from enginehouse.routing.admission.callers import ANYBODY, Caller
from enginehouse.routing.data_plane import DataPlane

if TYPE_CHECKING:
    from enginehouse.faces.grpc.inference import Context, Ingress

#: Services that health is asked of, as which the server as a whole is meant; any other one is a model.
SERVER = frozenset({"", "inference.GRPCInferenceService"})
#: What load balancers and clients ask before they have a token; of health checks, those of the server.
OPEN = frozenset({"ServerLive", "ServerReady", "ServerMetadata"})
_HEALTH = frozenset({"Check", "Watch"})
#: Methods whose model is the data plane's to look at, and those whose answer has what a caller sees.
_INFER, _LISTS = frozenset({"ModelInfer", "ModelStreamInfer"}), frozenset({"RepositoryIndex"})
_ADMIN = frozenset({"RepositoryModelLoad", "RepositoryModelUnload"})

#: Answers an error as the status of a call: of this method, in this context.
Refuse: TypeAlias = "Callable[[Exception, str, Context], Awaitable[None]]"


def find(plane: DataPlane, metadata: Iterable[tuple[str, str | bytes]] | None) -> Caller:
    """Who sends a call with this metadata. Raises Unauthenticated."""
    if not plane.callers.are_asked:
        return ANYBODY
    # Of a repeated one the first counts, as over HTTP.
    given = next((value for name, value in metadata or () if name == "authorization"), None)
    with plane.refusals("grpc"):
        return plane.callers.find(given)


def check(plane: DataPlane, method: str, request: Any, context: Context) -> None:
    """Whether who calls may call this method with this request. Raises Unauthenticated, PermissionDenied."""
    if not plane.callers.are_asked or method in OPEN or method in _INFER:
        return
    model = getattr(request, "name", "") or getattr(request, "model_name", "")
    if method in _HEALTH:
        if request.service in SERVER:
            return
        model = request.service
    caller = find(plane, context.invocation_metadata())
    with plane.refusals("grpc"):
        if method in _LISTS:
            caller.check_role(_role(method))
        else:
            caller.check(_role(method), model or None)


def _role(method: str) -> Role:
    if method in _INFER:
        return "infer"
    return "admin" if method in _ADMIN else "read"


class Asked(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The handlers of a service, for calls whose token has the role; others are refused with nothing of them read.

    `ingress` is that of this process, if there is one.
    """

    def __init__(
        self,
        service: str,
        handlers: Mapping[str, grpc.RpcMethodHandler],
        ingress: Callable[[], Ingress | None],
        refuse: Refuse,
    ) -> None:
        # By this name Serve finds which service it is (2.60).
        self._method_handlers = {f"/{service}/{method}": handler for method, handler in handlers.items()}
        self._ingress = ingress
        self._refuse = refuse

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a call."""
        handler = self._method_handlers.get(details.method)
        method = details.method.rpartition("/")[2]
        if handler is None or method in OPEN or method in _HEALTH or (ingress := self._ingress()) is None:
            return handler
        try:
            caller = find(ingress.plane, details.invocation_metadata)
            with ingress.plane.refusals("grpc"):
                caller.check_role(_role(method))
        except EnginehouseError as error:
            return self._refusing(error, method)
        return handler

    def _refusing(self, error: EnginehouseError, method: str) -> grpc.RpcMethodHandler:
        async def refuse(_: Any, context: Context) -> None:
            await self._refuse(error, method, context)

        # As a stream, whatever the method is: of one request all would be read first.
        return grpc.stream_stream_rpc_method_handler(refuse)
