"""Open Inference Protocol v2 <-> tensors: JSON, the binary extension, raw requests, classification. Pure functions.

    body, Inference-Header-Content-Length -> decode_request -> InferRequest -> ... -> encode_response -> body, length

Bodies follow the Open Inference Protocol and Triton's extensions of it (`extension_binary_data`,
`extension_classification`); what these leave open follows what tritonclient accepts. A malformed request raises
InvalidInput before memory of the size that it claims is allocated. `decoding` and `encoding` are the same as work that
can be interrupted (`contract.elements`).
"""

from __future__ import annotations

from enginehouse.faces.oip.config import model_config
from enginehouse.faces.oip.document import AT_ONCE_BYTES
from enginehouse.faces.oip.request import (
    Contents,
    InferRequest,
    Parameters,
    RequestedOutput,
    decode_request,
    decoding,
    of_document,
    parse_header_length,
)
from enginehouse.faces.oip.response import (
    Encoded,
    encode_response,
    encoding,
    in_bytes,
    model_metadata,
    output,
    repository_index,
    server_metadata,
)
from enginehouse.faces.oip.statistics import model_statistics

__all__ = [
    "AT_ONCE_BYTES",
    "Contents",
    "Encoded",
    "InferRequest",
    "Parameters",
    "RequestedOutput",
    "decode_request",
    "decoding",
    "encode_response",
    "encoding",
    "in_bytes",
    "model_config",
    "model_metadata",
    "model_statistics",
    "of_document",
    "output",
    "parse_header_length",
    "repository_index",
    "server_metadata",
]
