"""ModelInfer's messages <-> tensors; what a request has to be is decided in `faces.oip`, as for HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from enginehouse.contract import elements
from enginehouse.contract.elements import Work, json_text
from enginehouse.contract.errors import InvalidInput, RequestTooLarge
from enginehouse.contract.tensors import Signature, TensorSpec, datatype
from enginehouse.faces import oip
from enginehouse.faces.grpc import wire

#: Datatype -> the field of InferTensorContents that has its elements; FP16 and BF16 have none.
_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class Limits(Protocol):
    """Bytes that a message may have, and beside its raw tensors."""

    @property
    def body(self) -> int: ...

    @property
    def json(self) -> int: ...


def parsed(data: bytes, limits: Limits) -> tuple[pb.ModelInferRequest, list[memoryview]]:
    """The message without its raw tensors, and these. Raises InvalidInput, RequestTooLarge."""
    if len(data) > limits.body:
        raise RequestTooLarge(f"the message of {len(data)} bytes is larger than {limits.body}; send fewer rows in one")
    rest, raw = wire.split(data)
    if len(rest) > limits.json:
        # Each element would become a Python object, while all others wait.
        raise RequestTooLarge(
            f"the message has {len(rest)} bytes beside raw_input_contents, more than {limits.json}: send the elements "
            "in raw_input_contents, as tritonclient does, or raise `--max-json-bytes` of `enginehouse serve`"
        )
    try:
        return pb.ModelInferRequest.FromString(rest), raw
    except DecodeError as error:
        raise InvalidInput(f"the message is no ModelInferRequest: {error}") from None


def decoding(
    message: pb.ModelInferRequest, raw: Sequence[memoryview], signature: Signature, max_strings: int
) -> Work[oip.InferRequest]:
    """The request that a message and its `raw` tensors are, checked, in pieces; arrays are views where they can be.

    Raises InvalidInput, RequestTooLarge.
    """
    if len(raw) not in (0, len(message.inputs)):
        raise InvalidInput(
            f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs; send one for each, in order"
        )
    document = {
        "id": message.id or None,
        "parameters": _parameters(message.parameters),
        "inputs": [_described(tensor) | {"tensor": tensor} for tensor in message.inputs],
        "outputs": [{"name": wanted.name, "parameters": _parameters(wanted.parameters)} for wanted in message.outputs],
    }
    contents: oip.Contents = _Raw(raw, [tensor.name for tensor in message.inputs]) if raw else _Typed()
    return (yield from oip.of_document(document, signature, contents, max_strings, binary=True))


def _described(tensor: pb.ModelInferRequest.InferInputTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": _parameters(tensor.parameters),
    }


def _parameters(given: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    # One that has no value is left to the check of parameters, as null is over HTTP.
    return {name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in given.items()}


class _Raw:
    """Elements as bytes, an entry for each input."""

    def __init__(self, raw: Sequence[memoryview], names: Sequence[str]) -> None:
        self._raw = dict(zip(names, raw, strict=True))

    def read(self, item: Mapping[str, Any], _: oip.Parameters, spec: TensorSpec, shape: list[int]) -> Work[np.ndarray]:
        if item["tensor"].HasField("contents"):
            raise InvalidInput(f"input {json_text(spec.name)} has both contents and raw_input_contents; send one")
        return (yield from elements.decoding(spec.name, spec.dtype, shape, self._raw[spec.name]))

    def end(self) -> None:
        # All inputs are the model's, each once, or one of them was refused.
        pass


class _Typed:
    """Elements in the field of their datatype."""

    def read(self, item: Mapping[str, Any], _: oip.Parameters, spec: TensorSpec, shape: list[int]) -> Work[np.ndarray]:
        contents = item["tensor"].contents
        kind = datatype(spec.dtype)
        field = _FIELDS.get(kind)
        if field is None:
            raise InvalidInput(
                f"input {json_text(spec.name)} is {kind}, which has no field in contents; send raw_input_contents"
            )
        others = [other.name for other, _ in contents.ListFields() if other.name != field]
        if others:
            raise InvalidInput(
                f"input {json_text(spec.name)} has its elements in {', '.join(others)}; those of {kind} go into {field}"
            )
        given = list(getattr(contents, field))
        if kind == "BYTES":
            # As they are: over HTTP they are text, here they need not be.
            return _strings(spec.name, given, shape)
        return (yield from elements.reading(spec.name, spec.dtype, shape, given))

    def end(self) -> None:
        pass


def _strings(name: str, given: list[bytes], shape: list[int]) -> np.ndarray:
    if len(given) != math.prod(shape):
        raise InvalidInput(f"input {json_text(name)} has {len(given)} elements; the shape {shape} takes another number")
    array = np.empty(len(given), object)
    array[:] = given
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError):
        raise InvalidInput(f"input {json_text(name)} has the impossible shape {shape}") from None


def encoding(
    model: str,
    version: str,
    request: oip.InferRequest,
    outputs: Mapping[str, np.ndarray],
    signature: Signature,
    facts: Mapping[str, str | int | float],
) -> Work[bytes]:
    """The serialized ModelInferResponse, in pieces; `facts` become its parameters.

    Elements are always raw: tritonclient reads nothing else.
    """
    message = pb.ModelInferResponse(model_name=model, model_version=version, id=request.id or "")
    for name, fact in facts.items():
        value = message.parameters[name]
        if isinstance(fact, str):
            value.string_param = fact
        elif isinstance(fact, bool):
            value.bool_param = fact
        elif isinstance(fact, int):
            value.int64_param = fact
        else:
            value.double_param = fact
    raw = []
    for wanted in request.outputs:
        kind, shape, pieces = yield from oip.in_bytes(wanted, oip.output(wanted, outputs), signature)
        message.outputs.add(name=wanted.name, datatype=kind, shape=shape)
        raw.append(pieces)
    return wire.joined(message.SerializeToString(), raw)
