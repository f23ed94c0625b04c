"""The gRPC services of a router, registered on the server that Serve starts in its process.

Serve puts a handler of its own in the place of each method of a service, unless the service is named as one to pass
through, as its own reflection is (Ray Serve 2.60): requests then come straight here, on the event loop of the router.
HAProxy spreads them over the routers, and Serve checks their health.

    serve.start(grpc_options={"grpc_servicer_functions": ["enginehouse.faces.grpc.serving:add_to_server"], ...})
"""

from __future__ import annotations

import functools
import hmac
import importlib.metadata
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as pb

from enginehouse.cluster.haproxy_wrapper import HEADER, KEY
from enginehouse.contract.errors import EnginehouseError, ModelNotFound, NoBackend, Overloaded, Unauthenticated
from enginehouse.faces import counted, oip, outward
from enginehouse.faces.grpc import asking, health, inference
from enginehouse.faces.grpc.inference import Context, Ingress
from enginehouse.routing.admission.callers import ANYBODY, Caller

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
#: Characters of an error: HTTP/2 has it in a header, of which HAProxy takes 16 KiB with all others.
MOST_TEXT = 2000

#: Answers one request, given the ingress of this process.
Unary = Callable[[Ingress, Any, Context], Awaitable[Any]]


def add_to_server(_: object, server: Any) -> None:
    """Register the services: what Serve calls, in routers and in its own proxies, which have none of ours to ask."""
    methods = {name: _handler(name, answer) for name, answer in _METHODS.items()}
    methods["ModelInfer"] = grpc.unary_unary_rpc_method_handler(_guarded("ModelInfer", inference.infer))
    methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(_stream)
    checks = {
        "Check": grpc.unary_unary_rpc_method_handler(
            _guarded("Check", health.check), health.Request.FromString, health.Response.SerializeToString
        ),
        "Watch": grpc.unary_stream_rpc_method_handler(
            _watch, health.Request.FromString, health.Response.SerializeToString
        ),
    }
    for service, handlers in ((SERVICE, methods), (health.SERVICE, checks)):
        server.add_passthrough_service(service)
        server.add_generic_rpc_handlers((asking.Asked(service, handlers, _of_this_process, _refuse_unread),))
        # Not as registered handlers, of which grpc asks no service: it would read a message before anybody looks at it.


def _handler(name: str, answer: Unary) -> grpc.RpcMethodHandler:
    method = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[name]
    request = getattr(pb, method.input_type.name)
    return grpc.unary_unary_rpc_method_handler(
        _guarded(name, answer), request.FromString, lambda response: response.SerializeToString()
    )


def _guarded(name: str, answer: Unary) -> Callable[[Any, Context], Awaitable[Any]]:
    """`answer` for who may ask; an error is told by the one table."""

    async def guarded(request: Any, context: Context) -> Any:
        try:
            ingress = await _ingress(context)
            asking.check(ingress.plane, name, request, context)
            return await answer(ingress, request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _refuse(error, name, context)

    return guarded


async def _stream(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    ingress = await _ingress(context)
    told = functools.partial(_told, where="ModelStreamInfer", context=context)
    async for response in inference.stream(ingress, requests, context, told):
        yield response


async def _watch(request: Any, context: Context) -> AsyncIterator[Any]:
    ingress = await _ingress(context)
    try:
        asking.check(ingress.plane, "Watch", request, context)
    except EnginehouseError as error:
        await _refuse(error, "Watch", context)
    async for response in health.watch(ingress, request):
        yield response


async def _ingress(context: Context) -> Ingress:
    """The ingress of this process, for requests that came through this cluster's own HAProxy."""
    if (key := _key()) is not None:
        given = next((value for name, value in context.invocation_metadata() or () if name == HEADER), "")
        if not (isinstance(given, str) and hmac.compare_digest(given, key)):
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "this port belongs to another server than the one that was asked"
            )
    ingress = _of_this_process()
    if ingress is None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "no router is there yet; try again")
    assert ingress is not None
    return ingress


@functools.cache
def _key() -> str | None:
    return os.environ.get(KEY)


def _of_this_process() -> Ingress | None:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        replica = serve.get_replica_context().servable_object
    except RayServeException:
        # A proxy of Serve, not a replica.
        return None
    return replica if hasattr(replica, "plane") else None


async def _refuse_unread(error: Exception, name: str, context: Context) -> None:
    # Whoever meant another server is told that first.
    await _ingress(context)
    await _refuse(error, name, context)


async def _refuse(error: Exception, name: str, context: Context) -> None:
    text = _told(error, name, context)
    if not isinstance(error, EnginehouseError):
        await context.abort(grpc.StatusCode.INTERNAL, text)
    assert isinstance(error, EnginehouseError)
    trailing = (("retry-after", f"{error.retry_after_s:g}"),) if isinstance(error, Overloaded) else ()
    await context.abort(grpc.StatusCode[error.fault.grpc], text, trailing)


def _told(error: Exception, where: str, context: Context) -> str:
    metadata = dict(context.invocation_metadata() or ())
    text = outward.told(error, str(metadata.get("x-request-id", "")), where, _caller(context))
    return text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 1]}…"


def _caller(context: Context) -> Caller:
    """Who calls; ANYBODY where that is what the error is about."""
    ingress = _of_this_process()
    try:
        return asking.find(ingress.plane, context.invocation_metadata()) if ingress else ANYBODY
    except Unauthenticated:
        return ANYBODY


async def _live(_: Ingress, __: Any, ___: Context) -> Any:
    return pb.ServerLiveResponse(live=True)


async def _ready(ingress: Ingress, _: Any, __: Context) -> Any:
    return pb.ServerReadyResponse(ready=health.is_ready(ingress))


async def _model_ready(ingress: Ingress, request: Any, _: Context) -> Any:
    try:
        ready = ingress.plane.is_ready(request.name, request.version or None)
    except (ModelNotFound, NoBackend):
        # As Triton says of a model that it does not have.
        ready = False
    return pb.ModelReadyResponse(ready=ready)


async def _server(_: Ingress, __: Any, ___: Context) -> Any:
    return pb.ServerMetadataResponse(**oip.server_metadata(importlib.metadata.version("enginehouse")))


async def _model(ingress: Ingress, request: Any, _: Context) -> Any:
    version = ingress.versions.get(request.name, request.version or None)
    document = oip.model_metadata(
        version.config.name, [version.config.version], "enginehouse", version.signature, version.manifest.artifacts
    )
    # The message has no place for parameters.
    return json_format.ParseDict(document, pb.ModelMetadataResponse(), ignore_unknown_fields=True)


async def _config(ingress: Ingress, request: Any, _: Context) -> Any:
    version = ingress.versions.get(request.name, request.version or None)
    document = oip.model_config(version.config.name, version.signature, version.max_batch)
    return json_format.ParseDict({"config": document}, pb.ModelConfigResponse())


async def _statistics(ingress: Ingress, request: Any, _: Context) -> Any:
    document = await counted.statistics(ingress, request.name, request.version or None)
    return json_format.ParseDict(document, pb.ModelStatisticsResponse())


async def _index(ingress: Ingress, request: Any, context: Context) -> Any:
    models = oip.repository_index(ingress.versions.status(ingress.plane.answers)["models"])
    caller = asking.find(ingress.plane, context.invocation_metadata())
    listed = [
        entry for entry in models if caller.sees(entry["name"]) and (entry["state"] == "READY" or not request.ready)
    ]
    return json_format.ParseDict({"models": listed}, pb.RepositoryIndexResponse())


_METHODS: dict[str, Unary] = {
    "ServerLive": _live,
    "ServerReady": _ready,
    "ModelReady": _model_ready,
    "ServerMetadata": _server,
    "ModelMetadata": _model,
    "ModelConfig": _config,
    "ModelStatistics": _statistics,
    "RepositoryIndex": _index,
}
