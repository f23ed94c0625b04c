"""What to say to a body that is no inference request at all: what it seems to be, what is wanted, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping

from enginehouse.contract.magic import Family, recognised
from enginehouse.contract.tensors import Signature, datatype

_WAY: Mapping[Family, str] = {
    "picture": "decode the picture first and send its pixels",
    "arrays": "`enginehouse infer MODEL FILE` sends the arrays of such a file",
    "table": "`enginehouse score MODEL FILE FOLDER` takes such files",
    "packed": "what is compressed with gzip or deflate says so in the header Content-Encoding",
    "form": "send the JSON itself as the body, not a field of a form (curl: --data-binary @FILE)",
    "message": "gRPC is not spoken here; HTTP clients of the Open Inference Protocol are understood",
    "text": "write it as UTF-8 JSON",
    "other": "send numbers with their names, datatypes and shapes",
}


def explanation(body: memoryview, signature: Signature) -> str | None:
    """The message for a `body` that begins like something else than JSON; None for one that may be meant as JSON."""
    kind = recognised(body)
    if kind is None:
        return None
    wanted = ", ".join(str(spec) for spec in signature.inputs)
    seems = f"not valid JSON but seems to be {kind.name}" if body else "empty, which is not valid JSON"
    return (
        f"the body is {seems}; {_WAY[kind.family]}: the model wants {wanted}, as {example(signature)}, or with the "
        "bytes of the tensors behind such JSON (binary tensor data extension)"
    )


def example(signature: Signature) -> str:
    """The JSON of a request of one row that `signature` wants, as small as it may be and without its numbers."""
    least = {place: free.range[0] for free in signature.free if free.range for place in free.dims}
    inputs = [
        {
            "name": spec.name,
            "datatype": datatype(spec.dtype),
            "shape": [least.get((spec.name, axis), 1) if dim is None else dim for axis, dim in enumerate(spec.shape)],
            "data": ["..."],
        }
        for spec in signature.inputs
    ]
    return json.dumps({"inputs": inputs}).replace('["..."]', "[...]")
