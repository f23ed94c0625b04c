"""Encoding of response bodies, and the protocol's other documents: metadata and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from enginehouse.contract.bounds import described
from enginehouse.contract.elements import to_bytes, to_json
from enginehouse.contract.errors import InferenceFailed
from enginehouse.contract.manifest import Artifact, TensorRecord
from enginehouse.contract.tensors import Signature, TensorSpec, datatype
from enginehouse.faces.oip.request import InferRequest

#: Extensions of the protocol that this package implements; others are not advertised.
EXTENSIONS = ("binary_tensor_data", "classification", "parameters")


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
    entries: list[dict[str, Any]] = []
    payloads: list[bytes | memoryview] = []
    for wanted in request.outputs:
        array = outputs.get(wanted.name)
        if array is None:
            raise InferenceFailed(f"the engine gave no output {wanted.name!r}; it gave {', '.join(outputs) or 'none'}")
        if wanted.classification:
            array = _classes(array, wanted.classification, signature.batched)
        entry: dict[str, Any] = {
            "name": wanted.name,
            "datatype": datatype(array.dtype),
            "shape": array.shape,
        }
        if wanted.binary:
            payload = to_bytes(array)
            entry["parameters"] = {"binary_data_size": len(payload)}
            payloads.append(payload)
        else:
            entry["data"] = to_json(wanted.name, array)
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    if parameters:
        document["parameters"] = dict(parameters)
    document["outputs"] = entries
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([text, *payloads]), len(text)) if payloads else (text, None)


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


def error_document(error: BaseException) -> dict[str, str]:
    """The document of an error: its message, or its class if it has none."""
    return {"error": str(error) or type(error).__name__}


def _classes(array: np.ndarray, count: int, batched: bool) -> np.ndarray:
    """The `count` largest values of each row as `value:index`, largest first, equal ones by index, NaN last.

    One line per row of a batched model, one line in all otherwise; `index` counts within the row as if it were flat.
    """
    rows = array.reshape(len(array) if batched else 1, -1)
    keys = rows.astype(np.float64) if rows.dtype.kind not in "iu" else rows
    if keys.dtype.kind == "f":
        keys = np.where(np.isnan(keys), -np.inf, keys)
    count = min(count, rows.shape[1])
    # Sorting backwards twice keeps the lower index first among equals, for unsigned integers too.
    order = rows.shape[1] - 1 - np.argsort(keys[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    lines = np.empty((len(rows), count), dtype=object)
    for row, indices in enumerate(order.tolist()):
        for place, index in enumerate(indices):
            lines[row, place] = f"{rows[row, index]}:{index}".encode()
    return lines if batched else lines[0]
