"""Open Inference Protocol v2 <-> tensors: JSON, the binary extension, raw requests, classification. Pure functions.

    body, Inference-Header-Content-Length -> decode_request -> InferRequest -> ... -> encode_response -> body, length

What a body may look like comes from the Open Inference Protocol and from Triton's extensions of it
(`extension_binary_data`, `extension_classification`); where they are silent, tritonclient has to be able to read it.
Every malformed request raises InvalidInput, before anything of its size is allocated.
"""

from __future__ import annotations

from enginehouse.faces.oip.request import InferRequest, RequestedOutput, decode_request, parse_header_length
from enginehouse.faces.oip.response import encode_response, error_document, model_metadata, server_metadata

__all__ = [
    "InferRequest",
    "RequestedOutput",
    "decode_request",
    "encode_response",
    "error_document",
    "model_metadata",
    "parse_header_length",
    "server_metadata",
]
