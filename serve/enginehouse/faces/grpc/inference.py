"""Inference over gRPC: one request, or a stream of them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, TypeAlias

import grpc
from tritonclient.grpc import service_pb2 as pb

from enginehouse.faces.grpc import asking, messages, wire
from enginehouse.faces.interleaved import interleaved
from enginehouse.faces.memory import made
from enginehouse.routing.counting.gathering import Gathering
from enginehouse.routing.data_plane import DataPlane
from enginehouse.routing.hints import Hints, headers_of
from enginehouse.routing.versions import LiveVersions

#: Requests of one stream that are computed at the same time.
STREAM_WINDOW = 64
#: Triton's parameters of a request that wants to be told which response is its last, and of that.
_FINAL_WANTED, _FINAL = "triton_enable_empty_final_response", "triton_final_response"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Ingress(Protocol):
    """What this face needs of the deployment that it belongs to."""

    plane: DataPlane
    versions: LiveVersions
    counts: Gathering
    limits: messages.Limits
    max_strings: int


async def infer(ingress: Ingress, data: bytes, context: Context) -> bytes:
    """ModelInfer: the serialized response to a serialized request. Raises EnginehouseError."""
    message, raw = messages.parsed(data, ingress.limits)
    return await _infer(ingress, message, raw, len(data), context)


async def stream(
    ingress: Ingress, requests: AsyncIterator[bytes], context: Context, told: Callable[[Exception], str]
) -> AsyncIterator[bytes]:
    """ModelStreamInfer: responses in the order of the requests, of which some are computed at the same time.

    A request that fails is answered by what is `told` of its error, and the stream goes on.
    """
    answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(STREAM_WINDOW)

    async def read() -> None:
        try:
            async for data in requests:
                await answers.put(asyncio.create_task(_streamed(ingress, data, context, told)))
        finally:
            await answers.put(None)

    reading = asyncio.create_task(read())
    answer: asyncio.Task[bytes] | None = None
    try:
        while (answer := await answers.get()) is not None:
            yield await answer
        await reading
    finally:
        # The client has gone: so has what it asked for.
        reading.cancel()
        while answer is not None or not answers.empty():
            if answer is not None:
                answer.cancel()
            answer = None if answers.empty() else answers.get_nowait()


async def _streamed(ingress: Ingress, data: bytes, context: Context, told: Callable[[Exception], str]) -> bytes:
    name = ""
    try:
        message, raw = messages.parsed(data, ingress.limits)
        name = message.id
        return wire.streamed(await _infer(ingress, message, raw, len(data), context))
    except Exception as error:
        failed = pb.ModelStreamInferResponse(error_message=told(error))
        failed.infer_response.id = name
        serialized: bytes = failed.SerializeToString()
        return serialized


async def _infer(
    ingress: Ingress, message: pb.ModelInferRequest, raw: list[memoryview], size: int, context: Context
) -> bytes:
    plane = ingress.plane
    metadata = context.invocation_metadata() or ()
    # For each message of a stream anew: a token may have been taken back since the last one.
    caller = asking.find(plane, metadata)
    given = headers_of((key.encode(), value.encode()) for key, value in metadata if isinstance(value, str))
    with plane.refusals("grpc", message.model_name, message.model_version or None):
        priority = Hints.of(given, {}).priority
    with plane.open(caller, "grpc", message.model_name, message.model_version or None, priority) as turn:
        turn.take(size)
        signature = turn.signature
        request = await interleaved(messages.decoding(message, raw, signature, ingress.max_strings))
        turn.take(made(request.inputs))
        hints = Hints.of(given, request.parameters)
        if hints.deadline_s is None and (left_s := context.time_remaining()) is not None:
            # After that, nobody is there to hear the answer.
            hints = dataclasses.replace(hints, deadline_s=max(left_s, 1e-3))
        answer = await turn.infer(request.inputs, request.rows, hints)
        facts = answer.origin()
        version = facts["version"]
        if request.parameters.get(_FINAL_WANTED):
            # Each request has one response, which is its last.
            facts = facts | {_FINAL: True}
        encoding = messages.encoding(message.model_name, version, request, answer.outputs, signature, facts)
        return await interleaved(encoding)
