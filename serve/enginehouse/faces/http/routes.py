"""The HTTP face: Open Inference Protocol v2 over the data plane. Errors become a document `{"error": message}`."""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import orjson
from ray import serve
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from enginehouse.contract.errors import BodyTimeout, EnginehouseError, Overloaded, Unauthenticated
from enginehouse.contract.shown import OneLine
from enginehouse.faces import counted, oip, outward
from enginehouse.faces.http import asking, body
from enginehouse.faces.http.foreign_paths import not_supported
from enginehouse.faces.http.one_write import cycle_of, written
from enginehouse.faces.http.responses import AtOnce, InParts, answer_early
from enginehouse.faces.interleaved import interleaved
from enginehouse.faces.memory import made
from enginehouse.routing import timers
from enginehouse.routing.admission.callers import ANYBODY, Caller
from enginehouse.routing.counting.gathering import Gathering
from enginehouse.routing.data_plane import DataPlane, Turn
from enginehouse.routing.hints import PREFIX, Hints, headers_of
from enginehouse.routing.versions import LiveVersions

logger = logging.getLogger("ray.serve")
# Serve logs paths as they were sent, and both of us what stores say.
logger.addFilter(OneLine())

#: Seconds after the body was read until a request is watched for the disconnect of its client.
WATCH_AFTER_S = 0.05
#: Up to so many bytes, an answer is sent in one piece.
AT_ONCE_BYTES = 1 << 18
_ENDING = "not ready: this server is ending"


class Ingress(Protocol):
    """What the routes need of the deployment that they belong to."""

    plane: DataPlane
    versions: LiveVersions
    counts: Gathering
    limits: body.Limits
    max_strings: int


def _ingress() -> Ingress:
    ingress: Ingress = serve.get_replica_context().servable_object
    return ingress


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(document), status, headers, media_type="application/json")


async def live(_: Request) -> Response:
    return Response(status_code=200)


async def ready(_: Request) -> Response:
    """200 when every model of the catalog is ready (Triton's strict readiness), else 400; 503 when the server ends."""
    if _ingress().plane.is_ending:
        return _json({"error": _ENDING}, 503)
    waiting = [model["name"] for model in _models() if not model["ready"]]
    if waiting:
        return _json({"error": f"not ready: {asking.without_names(_ingress().plane, waiting)}"}, 400)
    return Response(status_code=200)


async def server(_: Request) -> Response:
    return _json(oip.server_metadata(importlib.metadata.version("enginehouse")))


async def model(request: Request) -> Response:
    version = _ingress().versions.get(*_model_of(request))
    name, number = version.config.name, version.config.version
    artifacts = version.manifest.artifacts
    return _json(oip.model_metadata(name, [number], "enginehouse", version.signature, artifacts))


async def model_ready(request: Request) -> Response:
    name, version = _model_of(request)
    if _ingress().plane.is_ready(name, version):
        return _json({"name": name, "ready": True})
    if _ingress().plane.is_ending:
        return _json({"error": _ENDING}, 503)
    return _json({"error": f"model {name!r} has no live backend; see `enginehouse status`"}, 400)


async def infer(request: Request) -> Response:
    return await _infer(_ingress(), request)


async def answer(ingress: Ingress, scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI application for inference requests that bypass Serve and Starlette (see shortcut.py).

    Errors become the same responses as by Starlette's exception handlers below.
    """
    request = Request(scope, receive)
    watch = _Watch(request)
    try:
        response = await _infer(ingress, request, watch.start)
    except EnginehouseError as error:
        response = await _our_error(request, error)
    except HTTPException as error:
        response = await _http_error(request, error)
    except ClientDisconnect as error:
        response = await _disconnected(request, error)
    except asyncio.CancelledError:
        if not watch.is_disconnected:
            raise
        return
    except Exception as error:
        response = await _any_error(request, error)
    finally:
        watch.stop()
    cycle = cycle_of(send)
    if cycle is not None and cycle.more_body and not cycle.disconnected:
        if response.status_code != BodyTimeout.status:
            is_stranger = response.status_code == Unauthenticated.status
            arriving = body.STRANGERS if is_stranger else ingress.limits.arriving
            most_s = body.STRANGERS_S if is_stranger else body.BODY_TIMEOUT_S
            await answer_early(response, receive, send, arriving, most_s)
            return
        # It will not come.
        cycle.keep_alive = False
    if isinstance(response, InParts) or not written(send, response.status_code, response.raw_headers, response.body):
        await response(scope, receive, send)


class _Watch:
    """Cancels the task that created it when the client disconnects while the answer is computed.

    Watching takes a task of its own, so it starts only `WATCH_AFTER_S` after `start`: most requests are done by then.
    """

    def __init__(self, request: Request) -> None:
        self.is_disconnected = False
        self._request = request
        self._task = asyncio.current_task()
        self._timer: timers.Timer | None = None
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Call once the body is read: the next ASGI message is then the disconnect."""
        self._timer = timers.call_about(WATCH_AFTER_S, self._begin)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _begin(self) -> None:
        self._watcher = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        message = await self._request.receive()
        if message["type"] == "http.disconnect" and self._task is not None:
            self.is_disconnected = True
            self._task.cancel()


async def _infer(ingress: Ingress, request: Request, on_body: Callable[[], None] = lambda: None) -> Response:
    headers = headers_of(request.scope["headers"])
    name, version = _model_of(request)
    caller = asking.find(ingress.plane, request.scope)
    with ingress.plane.refusals("http", name, version):
        priority = Hints.of(headers, {}).priority
    with ingress.plane.open(caller, "http", name, version, priority) as turn:
        head = body.Head.of(request.scope["headers"])
        content = await body.read(request, head, ingress.limits, turn.take)
        on_body()
        return await _respond(turn, name, content, head.json_length, headers, ingress)


async def _respond(
    turn: Turn, name: str, content: bytes | memoryview, length: int | None, hints: Mapping[str, str], ingress: Ingress
) -> Response:
    signature = turn.signature
    json_bytes = len(content) if length is None else length
    decoding = oip.decoding(content, length, signature, ingress.max_strings)
    # Python's objects take many times the memory of the text, which is not counted: there is one such text at a time.
    wanted = await interleaved(decoding, alone=json_bytes > oip.AT_ONCE_BYTES)
    turn.take(made(wanted.inputs))
    answer = await turn.infer(wanted.inputs, wanted.rows, Hints.of(hints, wanted.parameters))
    origin = answer.origin()
    encoded = await interleaved(oip.encoding(name, origin["version"], wanted, answer.outputs, signature, origin))
    headers = [(_header(fact), str(value).encode("latin-1")) for fact, value in origin.items()]
    if encoded.json_length is None:
        headers.append((b"content-type", b"application/json"))
    else:
        headers += [
            (body.RAW_BINARY_HEADER, b"%d" % encoded.json_length),
            (b"content-type", b"application/octet-stream"),
        ]
    if sum(map(len, encoded.parts)) <= AT_ONCE_BYTES:
        return AtOnce(b"".join(encoded.parts), headers)
    return InParts(encoded.parts, headers, ingress.limits.leaving)


@functools.cache
def _header(fact: str) -> bytes:
    return (PREFIX + fact.replace("_", "-")).encode()


async def index(request: Request) -> Response:
    """Triton's repository index: every model with its version, state and reason."""
    return _json(oip.repository_index(_models(asking.caller_of(request))))


async def config(request: Request) -> Response:
    version = _ingress().versions.get(*_model_of(request))
    return _json(oip.model_config(version.config.name, version.signature, version.max_batch))


async def models(request: Request) -> Response:
    """The models of the catalog: OpenVINO Model Server and KServe have such a list."""
    return _json({"models": [model["name"] for model in _models(asking.caller_of(request))]})


async def all_stats(_: Request) -> Response:
    return _json(await counted.statistics(_ingress()))


async def stats(request: Request) -> Response:
    return _json(await counted.statistics(_ingress(), *_model_of(request)))


async def metrics(_: Request) -> Response:
    text = await counted.metrics(_ingress())
    return Response(text, media_type=counted.TEXT)


def _models(caller: Caller = ANYBODY) -> list[dict[str, Any]]:
    ingress = _ingress()
    found: list[dict[str, Any]] = ingress.versions.status(ingress.plane.answers)["models"]
    return [model for model in found if caller.sees(model["name"])]


def _model_of(request: Request) -> tuple[str, str | None]:
    return request.path_params["model"], request.path_params.get("version")


async def _our_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EnginehouseError)
    headers = None
    # Who is late need not wait: it is the deadline that was too short.
    if error.retryable and error.status != 504:
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)) if isinstance(error, Overloaded) else 1)}
    elif isinstance(error, Unauthenticated):
        headers = {"WWW-Authenticate": "Bearer"}
    return _json({"error": _told(request, error)}, error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == 404:
        detail = not_supported(request.url.path) or (
            f"{request.url.path!r} is not a path of this server; inference is at /v2/models/<model>/infer"
        )
    elif error.status_code == 405:
        detail = f"{request.method} is not allowed on {request.url.path!r}"
    return _json({"error": detail}, error.status_code, dict(error.headers or {}))


async def _disconnected(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


async def _any_error(request: Request, error: Exception) -> Response:
    return _json({"error": _told(request, error)}, 500)


def _told(request: Request, error: Exception) -> str:
    return outward.told(error, request.headers.get("x-request-id", ""), request.url.path, asking.caller_of(request))


Endpoint = Callable[[Request], Awaitable[Response]]


def _model_routes(suffix: str, endpoint: Endpoint, method: str) -> list[Route]:
    paths = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    return [Route(path + suffix, endpoint, methods=[method]) for path in paths]


http = Starlette(
    routes=[
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2", server),
        Route("/v2/", server),
        Route("/v2/repository/index", index, methods=["POST"]),
        Route("/v2/models", models),
        Route("/v2/models/stats", all_stats),
        *_model_routes("", model, "GET"),
        *_model_routes("/config", config, "GET"),
        *_model_routes("/ready", model_ready, "GET"),
        *_model_routes("/stats", stats, "GET"),
        Route("/metrics", metrics),
        *_model_routes("/infer", infer, "POST"),
    ],
    exception_handlers={
        EnginehouseError: _our_error,
        HTTPException: _http_error,
        ClientDisconnect: _disconnected,
        Exception: _any_error,
    },
    middleware=[Middleware(asking.WhoAsks, plane=lambda: _ingress().plane, refuse=_our_error)],
)
