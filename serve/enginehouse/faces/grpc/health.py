"""`grpc.health.v1`: whether this server, or one of its models, answers.

The service "" and the inference service are the server; any other name is a model's, as KServe's probes ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2

from enginehouse.contract.errors import ModelNotFound, NoBackend
from enginehouse.faces.grpc.asking import SERVER
from enginehouse.faces.grpc.inference import Context, Ingress

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
Request, Response = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
#: Seconds between two looks of who watches.
WATCH_S = 1.0


def is_ready(ingress: Ingress) -> bool:
    """Whether every model of the catalog is ready, and the server stays."""
    if ingress.plane.is_ending:
        return False
    models: list[dict[str, Any]] = ingress.versions.status(ingress.plane.answers)["models"]
    return all(model["ready"] for model in models)


async def check(ingress: Ingress, request: Any, _: Context) -> Any:
    """Check. Raises ModelNotFound for the name of neither."""
    return Response(status=_status(ingress, request.service))


async def watch(ingress: Ingress, request: Any) -> AsyncIterator[Any]:
    """Watch: the status now and whenever it has changed, for as long as the client listens."""
    known = None
    while True:
        try:
            status = _status(ingress, request.service)
        except ModelNotFound:
            # It may come: whoever watches goes on.
            status = Response.SERVICE_UNKNOWN
        if status != known:
            known = status
            yield Response(status=status)
        await asyncio.sleep(WATCH_S)


def _status(ingress: Ingress, service: str) -> Any:
    if service in SERVER:
        ready = is_ready(ingress)
    else:
        try:
            ingress.versions.get(service)
            ready = ingress.plane.is_ready(service)
        except NoBackend:
            ready = False
    return Response.SERVING if ready else Response.NOT_SERVING
