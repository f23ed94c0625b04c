"""Requests and answers of the Open Inference Protocol as a benchmark has them: ready bodies, and right values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import orjson

from enginehouse.contract.elements import from_bytes, from_json, to_bytes, to_json
from enginehouse.contract.errors import EnginehouseError, InferenceFailed
from enginehouse.contract.parity import Limits, compare
from enginehouse.contract.tensors import DTYPES, Tensors, datatype

_JSON_LENGTH = "inference-header-content-length"
_BACKEND = "enginehouse-backend"


@dataclass(frozen=True, slots=True)
class Expected:
    """The engine's own answer to one request, and how far a server's may be from it."""

    outputs: dict[str, np.ndarray]
    limits: Limits


def encode(inputs: Tensors, as_json: bool = False) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an inference request that asks for all outputs: binary both ways, or JSON both ways."""
    entries = []
    payloads = []
    for name, array in inputs.items():
        entry: dict[str, object] = {"name": name, "datatype": datatype(array.dtype), "shape": array.shape}
        if as_json:
            entry["data"] = to_json(name, array)
        else:
            payloads.append(bytes(to_bytes(array)))
            entry["parameters"] = {"binary_data_size": len(payloads[-1])}
        entries.append(entry)
    document = {"inputs": entries} | ({} if as_json else {"parameters": {"binary_data_output": True}})
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if as_json:
        return text, {"Content-Type": "application/json"}
    # Payloads of whole vectors where they begin at a multiple of 8: the server then reads them without a copy.
    text += b" " * (-len(text) % 8)
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    return b"".join([text, *payloads]), headers


def decode(content: bytes, headers: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Outputs by name. Raises InferenceFailed for what is no answer."""
    lower = {name.lower(): value for name, value in headers.items()}
    length = int(lower.get(_JSON_LENGTH, len(content)))
    outputs = {}
    offset = length
    try:
        # NaN and infinities are not JSON to orjson; whoever has them in answers measures binary ones.
        for entry in orjson.loads(content[:length])["outputs"]:
            name, dtype, shape = entry["name"], DTYPES[entry["datatype"]], entry["shape"]
            size = entry.get("parameters", {}).get("binary_data_size")
            if size is None:
                outputs[name] = from_json(name, dtype, shape, entry["data"])
            else:
                outputs[name] = from_bytes(name, dtype, shape, memoryview(content)[offset : offset + size])
                offset += size
    except (orjson.JSONDecodeError, KeyError, TypeError, EnginehouseError) as error:
        raise InferenceFailed(f"not an answer: {type(error).__name__}: {error}; it begins {content[:80]!r}") from None
    return outputs


def backend_of(headers: Mapping[str, str]) -> str:
    """Who answered; empty where the server does not say."""
    return {name.lower(): value for name, value in headers.items()}.get(_BACKEND, "")


def fault(content: bytes, headers: Mapping[str, str], expected: Mapping[str, Expected]) -> str | None:
    """What is wrong with an answer, given the right one of each backend; None when it is right."""
    backend = backend_of(headers)
    if backend not in expected:
        return f"it came from {backend or 'nobody'}; known: {', '.join(expected) or 'none'}"
    right = expected[backend]
    try:
        figures = compare(decode(content, headers), right.outputs)
    except EnginehouseError as error:
        return f"{backend}: {error}"
    if figures.relative_l2 > right.limits.relative_l2:
        limit = right.limits.relative_l2
        return f"{backend}: output {figures.output!r} is {figures.relative_l2:.1e} (relative L2) off, limit {limit:.0e}"
    if figures.differing > right.limits.differing:
        return f"{backend}: {figures.differing:.1%} of output {figures.output!r} differ"
    return None
