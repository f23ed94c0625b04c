"""ModelInfer's messages: every datatype, raw and typed, as over HTTP; what is wrong is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from enginehouse.contract.elements import finished, to_bytes
from enginehouse.contract.errors import InvalidInput, RequestTooLarge
from enginehouse.contract.tensors import DTYPES, Signature, TensorSpec
from enginehouse.faces.grpc import messages
from enginehouse.faces.http.body import Limits
from enginehouse.faces.oip import InferRequest

LIMITS = Limits(1 << 20, 1 << 16)
FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def values(kind: str) -> np.ndarray:
    dtype = DTYPES[kind]
    if kind == "BYTES":
        return np.array([b"", b"\xff\x00", "\u00e4".encode(), b"a" * 300], object).reshape(2, 2)
    if kind == "BOOL":
        return np.array([[True, False], [False, True]])
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return np.array([[info.min, info.max], [0, 1]], dtype)
    return np.array([[np.nan, -np.inf], [0.1, -0.0]], np.float32).astype(dtype)


def signature(kind: str) -> Signature:
    return Signature((TensorSpec("x", DTYPES[kind], (None, 2)),), (TensorSpec("y", DTYPES[kind], (None, 2)),))


def request_of(kind: str, array: np.ndarray, typed: bool) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=kind, shape=array.shape)
    if typed:
        getattr(tensor.contents, FIELDS[kind]).extend(array.reshape(-1).tolist())
    else:
        message.raw_input_contents.append(bytes(to_bytes(array)))
    return message


def decoded(message: pb.ModelInferRequest, of: Signature, max_strings: int = 1000) -> InferRequest:
    read, raw = messages.parsed(message.SerializeToString(), LIMITS)
    return finished(messages.decoding(read, raw, of, max_strings))


@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
@pytest.mark.parametrize("kind", list(DTYPES))
def test_every_datatype_arrives_and_comes_back_bit_by_bit(kind: str, typed: bool) -> None:
    array = values(kind)
    if typed and kind not in FIELDS:
        message = pb.ModelInferRequest(inputs=[{"name": "x", "datatype": kind, "shape": [2, 2]}])
        with pytest.raises(InvalidInput, match="raw_input_contents"):
            decoded(message, signature(kind))
        return
    request = decoded(request_of(kind, array, typed), signature(kind))
    got = request.inputs["x"]
    assert got.dtype == DTYPES[kind] and got.shape == (2, 2) and request.rows == 2
    assert bytes(to_bytes(got)) == bytes(to_bytes(array))
    data = finished(messages.encoding("m", "1", request, {"y": array}, signature(kind), {"backend": "b", "ms": 0.5}))
    response = pb.ModelInferResponse.FromString(data)
    assert [bytes(to_bytes(array))] == list(response.raw_output_contents)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == (kind, [2, 2])
    assert response.parameters["backend"].string_param == "b" and response.parameters["ms"].double_param == 0.5


def test_an_array_is_a_view_on_the_message_where_it_lies_aligned() -> None:
    of = Signature((TensorSpec("x", np.dtype(np.uint8), (None, 64)),), (TensorSpec("y", np.dtype(np.uint8), (None,)),))
    message = request_of("UINT8", np.zeros((3, 64), np.uint8), typed=False)
    assert not decoded(message, of).inputs["x"].flags.owndata


def changed(**fields: Any) -> pb.ModelInferRequest:
    message = request_of("FP32", values("FP32"), typed=False)
    for name, value in fields.items():
        if name.startswith("input_"):
            target, name = message.inputs[0], name.removeprefix("input_")
        else:
            target = message
        if isinstance(value, list):
            target.ClearField(name)
            getattr(target, name).extend(value)
        else:
            setattr(target, name, value)
    return message


def with_parameter(owner: str, name: str, **value: Any) -> pb.ModelInferRequest:
    message = changed()
    target = {"request": message, "input": message.inputs[0]}[owner]
    target.parameters[name].CopyFrom(pb.InferParameter(**value))
    return message


def both() -> pb.ModelInferRequest:
    message = changed()
    message.inputs[0].contents.fp32_contents.extend([1.0] * 4)
    return message


def typed_as(field: str, data: list[Any]) -> pb.ModelInferRequest:
    message = changed(raw_input_contents=[])
    getattr(message.inputs[0].contents, field).extend(data)
    return message


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (changed(raw_input_contents=[b"abc"]), "3 bytes"),
        (changed(raw_input_contents=[b"a" * 16, b""]), "2 entries for 1 inputs"),
        (changed(input_name="z"), "'z'|\"z\""),
        (changed(input_datatype="FP64"), "FP64"),
        (changed(input_shape=[2, 3]), r"\[2, ?3\]"),
        (changed(input_shape=[-1, 2]), "-1"),
        (changed(input_shape=[16, 2**60 + 2]), "1152921504606846978"),
        (changed(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="zz")]), "zz"),
        (with_parameter("input", "shared_memory_region", string_param="r"), "shared memory"),
        (with_parameter("request", "empty"), "empty"),
        (both(), "both contents and raw_input_contents"),
        (typed_as("int_contents", [1, 2, 3, 4]), "int_contents.*fp32_contents"),
        (typed_as("fp32_contents", [1.0] * 3), "3"),
        (typed_as("fp32_contents", []), "0|contents"),
    ],
)
def test_what_is_wrong_is_named(message: pb.ModelInferRequest, named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        decoded(message, signature("FP32"))


def test_what_is_out_of_its_datatype_is_refused_and_not_wrapped() -> None:
    message = request_of("INT8", np.array([[1, 2], [3, 4]], np.int16), typed=True)
    message.inputs[0].contents.int_contents[1] = 300
    with pytest.raises(InvalidInput, match="300"):
        decoded(message, signature("INT8"))


def test_limits() -> None:
    of = Signature((TensorSpec("x", np.dtype(np.float32), (None,)),), (TensorSpec("y", np.dtype(np.float32), (None,)),))
    large = request_of("FP32", np.zeros(1 << 18, np.float32), typed=False)
    with pytest.raises(RequestTooLarge, match="larger than 1048576"):
        decoded(large, of)
    # The same elements raw are within the limit, one by one they are not.
    some = np.zeros(1 << 15, np.float32)
    assert decoded(request_of("FP32", some, typed=False), of).rows == 1 << 15
    with pytest.raises(RequestTooLarge, match="raw_input_contents"):
        decoded(request_of("FP32", some, typed=True), of)
    with pytest.raises(RequestTooLarge, match="max_strings"):
        decoded(request_of("BYTES", values("BYTES"), typed=True), signature("BYTES"), max_strings=3)
    with pytest.raises(InvalidInput, match="no ModelInferRequest"):
        messages.parsed(b"\x0a\x01\xff", LIMITS)
