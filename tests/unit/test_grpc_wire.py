"""Raw tensors apart from the rest of a message: the same as protobuf reads, and nothing else is read as one."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from enginehouse.contract.errors import InvalidInput
from enginehouse.faces.grpc import wire

BYTES = st.binary(max_size=300)


def request_of(raw: list[bytes], name: str = "model", count: int = 1) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=name, id="an id", raw_input_contents=raw)
    message.parameters["priority"].int64_param = 3
    message.parameters["share"].double_param = 0.5
    for number in range(count):
        message.inputs.add(name=f"x{number}", datatype="FP32", shape=[2, -1 & 0xFFFF])
    message.outputs.add(name="y")
    return message


@given(st.lists(BYTES, max_size=5), st.text(max_size=200), st.integers(0, 5))
def test_what_is_split_is_what_protobuf_reads(raw: list[bytes], name: str, count: int) -> None:
    message = request_of(raw, name, count)
    rest, views = wire.split(message.SerializeToString())
    assert [bytes(view) for view in views] == raw
    del message.raw_input_contents[:]
    assert pb.ModelInferRequest.FromString(rest) == message


@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_refused(data: bytes) -> None:
    try:
        rest, views = wire.split(data)
    except InvalidInput:
        return
    assert len(rest) + sum(map(len, views)) <= len(data)


@given(st.data())
def test_what_is_cut_off_or_changed_is_refused_or_what_protobuf_reads(data: st.DataObject) -> None:
    serialized = bytearray(request_of([b"some bytes", b"more"], count=2).SerializeToString())
    at = data.draw(st.integers(0, len(serialized) - 1))
    if data.draw(st.booleans()):
        serialized = serialized[:at]
    else:
        serialized[at] = data.draw(st.integers(0, 255))
    try:
        rest, views = wire.split(bytes(serialized))
        mine = pb.ModelInferRequest.FromString(rest)
    except (InvalidInput, DecodeError):
        return
    whole = pb.ModelInferRequest.FromString(bytes(serialized))
    if not mine.raw_input_contents:
        assert list(whole.raw_input_contents) == [bytes(view) for view in views]
        del whole.raw_input_contents[:]
        assert mine.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)


def test_a_message_of_very_many_fields_is_refused() -> None:
    with pytest.raises(InvalidInput, match="more than 10000 fields"):
        wire.split(b"\x3a\x00" * (wire.MOST_FIELDS + 1))
    with pytest.raises(InvalidInput, match="no ModelInferRequest"):
        wire.split(b"\x3a" + b"\xff" * 30)
    with pytest.raises(InvalidInput, match="behind it"):
        wire.split(b"\x3a\x05abc")


@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 16383, 16384, 300_000])
def test_responses_are_those_of_protobuf(length: int) -> None:
    head = pb.ModelInferResponse(model_name="m", id="7")
    head.outputs.add(name="y", datatype="UINT8", shape=[length])
    data = b"\x01" * length
    response = wire.joined(head.SerializeToString(), [[data[:5], memoryview(data[5:])], [b""]])
    read = pb.ModelInferResponse.FromString(response)
    assert list(read.raw_output_contents) == [data, b""]
    assert (read.model_name, read.id) == ("m", "7")
    assert pb.ModelStreamInferResponse.FromString(wire.streamed(response)).infer_response == read
