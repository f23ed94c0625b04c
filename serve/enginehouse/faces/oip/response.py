"""Encoding of response bodies, and the protocol's other documents: metadata and errors."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from enginehouse.contract import elements
from enginehouse.contract.bounds import described
from enginehouse.contract.elements import ELEMENTS, Work, finished
from enginehouse.contract.errors import InferenceFailed
from enginehouse.contract.manifest import Artifact, TensorRecord
from enginehouse.contract.shown import placeless
from enginehouse.contract.tensors import Signature, TensorSpec, datatype
from enginehouse.faces.oip.classes import classes
from enginehouse.faces.oip.request import InferRequest, RequestedOutput

#: Extensions of the protocol that this package implements; others are not advertised.
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "parameters")
#: Where the text of a long output goes into that of the document; no JSON has this byte.
_PLACE = b"\0"


def encode_response(
    model: str,
    version: str,
    request: InferRequest,
    outputs: Mapping[str, np.ndarray],
    signature: Signature,
    parameters: Mapping[str, str | int | float] | None = None,
) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON if binary tensors follow, else None.

    Each output is encoded as requested: as JSON or binary, whole or as top-k classes. `parameters` go into the JSON for
    clients that do not see HTTP headers (tritonclient). Raises InferenceFailed when `outputs` lack a requested one, and
    InvalidInput when JSON was requested and cannot represent the values.
    """
    encoded = finished(encoding(model, version, request, outputs, signature, parameters))
    return b"".join(encoded.parts), encoded.json_length


class Encoded(NamedTuple):
    """The body of a response in parts, and what `encode_response` returns of the length of its JSON."""

    parts: list[bytes | memoryview]
    json_length: int | None


def encoding(
    model: str,
    version: str,
    request: InferRequest,
    outputs: Mapping[str, np.ndarray],
    signature: Signature,
    parameters: Mapping[str, str | int | float] | None = None,
) -> Work[Encoded]:
    """`encode_response` in pieces, and as pieces."""
    entries: list[dict[str, Any]] = []
    payloads: list[bytes | memoryview] = []
    texts: list[list[bytes | memoryview]] = []
    for wanted in request.outputs:
        array = output(wanted, outputs)
        kind = datatype(array.dtype)
        shape: Sequence[int] = array.shape
        pieces: list[bytes | memoryview] = []
        if wanted.binary:
            kind, shape, pieces = yield from in_bytes(wanted, array, signature)
        elif wanted.classification:
            write = functools.partial(elements.json_items, wanted.name)
            kind = "BYTES"
            shape, pieces = yield from classes(array, wanted.classification, signature.batched, write)
        elif array.size > ELEMENTS:
            pieces = yield from elements.writing(wanted.name, array)
        entry: dict[str, Any] = {"name": wanted.name, "datatype": kind, "shape": shape}
        if wanted.binary:
            entry["parameters"] = {"binary_data_size": sum(map(len, pieces))}
            payloads += pieces
        elif pieces or wanted.classification:
            entry["data"] = orjson.Fragment(_PLACE)
            texts.append(elements.listed(pieces))
        else:
            entry["data"] = elements.to_json(wanted.name, array)
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    if parameters:
        document["parameters"] = dict(parameters)
    document["outputs"] = entries
    parts: list[bytes | memoryview] = []
    for text, data in zip(_texts_around(document), [*texts, []], strict=True):
        parts += [text, *data]
    has_binary = any(wanted.binary for wanted in request.outputs)
    return Encoded(parts + payloads, sum(map(len, parts)) if has_binary else None)


def output(wanted: RequestedOutput, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The engine's output that is wanted. Raises InferenceFailed."""
    array = outputs.get(wanted.name)
    if array is None:
        raise InferenceFailed(f"the engine gave no output {wanted.name!r}; it gave {', '.join(outputs) or 'none'}")
    return array


def in_bytes(
    wanted: RequestedOutput, array: np.ndarray, signature: Signature
) -> Work[tuple[str, Sequence[int], list[bytes | memoryview]]]:
    """Datatype, shape and the bytes of an output, or of its classes."""
    if wanted.classification:
        shape, pieces = yield from classes(array, wanted.classification, signature.batched, elements.to_bytes)
        return "BYTES", shape, pieces
    return datatype(array.dtype), array.shape, (yield from elements.encoding(array))


def _texts_around(document: dict[str, Any]) -> list[bytes]:
    """The JSON of `document`, apart where the long outputs go."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY).split(_PLACE)


def model_metadata(
    name: str, versions: Sequence[str], platform: str, signature: Signature, artifacts: Sequence[Artifact] = ()
) -> dict[str, Any]:
    """The document of `GET /v2/models/{name}`; -1 stands for a free dimension.

    What the protocol has no place for is in `parameters`, as elsewhere in it: of an input, `dimension_1` is the name of
    its free dimension 1, `min_value` and `max_value` are the ends of its domain; of the model, `NAME_min` and
    `NAME_max` are the extents that the dimension NAME may have, declared or verified, and `ARTIFACT_on_ENGINE`, of
    those that have bounds, for which values that one answers.
    """
    document = {
        "name": name,
        "versions": list(versions),
        "platform": platform,
        "inputs": [_described(spec, signature) for spec in signature.inputs],
        "outputs": [_described(spec, signature) for spec in signature.outputs],
    }
    ranges: dict[str, int | str] = {
        f"{free.name}_{end}": extent
        for free in signature.free
        if free.range is not None
        for end, extent in zip(("min", "max"), free.range, strict=True)
    }
    limited = {
        f"{artifact.name}_on_{kind}": f"{described(bounds)} only"
        for artifact in artifacts
        for kind, bounds in artifact.inputs_only.items()
    }
    parameters = ranges | limited
    return document | {"parameters": parameters} if parameters else document


def _described(spec: TensorSpec, signature: Signature) -> dict[str, Any]:
    record = TensorRecord.of(spec).model_dump(mode="json", exclude={"domain"})
    parameters: dict[str, str | int] = {
        f"dimension_{dim}": free.name for free in signature.free for name, dim in free.dims if name == spec.name
    }
    if spec.domain is not None:
        parameters |= {"min_value": spec.domain.low, "max_value": spec.domain.high - 1}
    return record | {"parameters": parameters} if parameters else record


def server_metadata(version: str) -> dict[str, Any]:
    """The document of `GET /v2`."""
    return {"name": "enginehouse", "version": version, "extensions": list(EXTENSIONS)}


def repository_index(models: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The document of Triton's repository index, of what `LiveVersions.status` says of models."""
    return [
        {
            "name": model["name"],
            "version": model["serving"] or model["wanted"],
            "state": "READY" if model["ready"] else "UNAVAILABLE",
            "reason": placeless(model["reason"] or ("" if model["ready"] else _why_not(model))),
        }
        for model in models
    ]


def _why_not(model: Mapping[str, Any]) -> str:
    return "; ".join(f"{backend['pool']}: {backend['reason'] or backend['state']}" for backend in model["backends"])
