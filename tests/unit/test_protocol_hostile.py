"""Whatever arrives, the answer is InvalidInput that names the value at fault, and promptly."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.tensors import DTYPES, Signature, TensorSpec
from enginehouse.faces import oip

INT = TensorSpec("n", np.dtype(np.int64), (None, 2))
FLOAT = TensorSpec("x", np.dtype(np.float32), (None, 2))
TEXT = TensorSpec("s", np.dtype(object), (None,))
ONE = Signature((FLOAT,), (TensorSpec("y", FLOAT.dtype, (None, 2)), TensorSpec("flag", np.dtype(np.bool_), (None,))))


def entry(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} | changes


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in entry().items() if name != key}


def asking(name: Any = "y", **parameters: Any) -> dict[str, Any]:
    return {"inputs": [entry()], "outputs": [{"name": name, "parameters": parameters}]}


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


DOCUMENTS = {
    "not an object": ([1], "JSON value \\[1\\]; send an object"),
    "no inputs": ({}, "'x' is missing; the model wants x: FP32\\[\\*,2\\]"),
    "null inputs": ({"inputs": None}, "'x' is missing"),
    "inputs no array": ({"inputs": {"x": 1}}, "'inputs' is {'x': 1}; send an array"),
    "inputs not objects": ({"inputs": [3]}, "'inputs' has the entry 3"),
    "input without name": ({"inputs": [without("name")]}, "each is an object with a 'name'"),
    "name no string": ({"inputs": [entry(name=["x"])]}, "with a 'name'"),
    "unknown input": ({"inputs": [entry(), entry(name="z")]}, "'z' is not known; the model wants x"),
    "input twice": ({"inputs": [entry(), entry()]}, "input 'x' is given twice"),
    "wrong datatype": ({"inputs": [entry(datatype="INT8")]}, "datatype 'INT8'; the model wants FP32"),
    "no datatype": ({"inputs": [without("datatype")]}, "datatype null; the model wants FP32"),
    "datatype no string": ({"inputs": [entry(datatype={})]}, "datatype {}"),
    "no shape": ({"inputs": [without("shape")]}, "shape null; send an array of whole numbers"),
    "negative dimension": ({"inputs": [entry(shape=[-1, 2])]}, "shape \\[-1, 2\\]"),
    "dimension no integer": ({"inputs": [entry(shape=[1.0, 2])]}, "shape \\[1.0, 2\\]"),
    "dimension true": ({"inputs": [entry(shape=[True, 2])]}, "shape \\[True, 2\\]"),
    "rank": ({"inputs": [entry(shape=[2])]}, "of 1 dimensions; the model wants x: FP32"),
    "huge rank": ({"inputs": [entry(shape=[1] * 5000)]}, "of 5000 dimensions"),
    "fixed dimension": ({"inputs": [entry(shape=[1, 3], data=[1, 2, 3])]}, "shape \\[1, 3\\]; the model wants"),
    "no rows": ({"inputs": [entry(shape=[0, 2], data=[])]}, "0 rows; send at least 1"),
    "huge shape": ({"inputs": [entry(shape=[16, 2**60 + 2])]}, "2 elements; shape \\[16, 1152921504606846978\\]"),
    "huge empty shape": ({"inputs": [entry(shape=[2**63, 0], data=[])]}, "impossible shape"),
    "too few elements": ({"inputs": [entry(data=[1])]}, "1 elements; shape \\[1, 2\\] takes 2"),
    "too many elements": ({"inputs": [entry(data=[1, 2, 3])]}, "3 elements"),
    "no elements": ({"inputs": [entry(data=[])]}, "0 elements along dimension 0"),
    "ragged": ({"inputs": [entry(shape=[2, 2], data=[[1, 2], [3]])]}, "1 elements along dimension 1"),
    "uneven": ({"inputs": [entry(shape=[2, 2], data=[[1, 2], 3])]}, "nested unevenly"),
    "uneven flat": ({"inputs": [entry(data=[1, [2]])]}, "element \\[2\\]"),
    "too deep": ({"inputs": [entry(data=[[[1], [2]]])]}, "nested deeper than its shape"),
    "very deep data": ({"inputs": [entry(shape=[1, 2], data=deep(600))]}, "along dimension 1"),
    "data no array": ({"inputs": [entry(data="AAAA")]}, "data 'AAAA'; send an array"),
    "data an object": ({"inputs": [entry(data={"0": 1})]}, "send an array"),
    "true for a number": ({"inputs": [entry(data=[True, 1])]}, "element true; FP32 takes numbers"),
    "null for a number": ({"inputs": [entry(data=[None, 1])]}, "element null"),
    "text for a number": ({"inputs": [entry(data=["1", 2])]}, "element '1'"),
    "beyond FP32": ({"inputs": [entry(data=[1, -1e300])]}, "element -1e\\+300; FP32 takes -3.4"),
    "neither data nor size": ({"inputs": [without("data")]}, "neither 'data' nor the parameter 'binary_data_size'"),
    "both data and size": ({"inputs": [entry(parameters={"binary_data_size": 8})]}, "has both"),
    "size without payload": (
        {"inputs": [without("data") | {"parameters": {"binary_data_size": 8}}]},
        "binary_data_size 8; 0 bytes are left .*Inference-Header-Content-Length",
    ),
    "negative size": ({"inputs": [without("data") | {"parameters": {"binary_data_size": -8}}]}, "is -8; send a whole"),
    "size true": ({"inputs": [without("data") | {"parameters": {"binary_data_size": True}}]}, "is true; send a whole"),
    "id no string": ({"id": 7, "inputs": [entry()]}, "'id' is 7; send a string"),
    "parameters no object": ({"inputs": [entry()], "parameters": [1]}, "'parameters' of the request is \\[1\\]"),
    "parameter an array": ({"inputs": [entry()], "parameters": {"a": [1]}}, "parameter 'a' of the request is \\[1\\]"),
    "parameter null": ({"inputs": [entry()], "parameters": {"a": None}}, "parameter 'a' of the request is null"),
    "binary default no flag": ({"inputs": [entry()], "parameters": {"binary_data_output": 1}}, "send true or false"),
    "input in shared memory": ({"inputs": [entry(parameters={"shared_memory_region": "r"})]}, "not supported; use"),
    "output in shared memory": (asking(shared_memory_region="r"), "not supported; use"),
    "unknown output": (asking("z"), "output 'z' is not known; the model has y: FP32"),
    "output twice": ({"inputs": [entry()], "outputs": [{"name": "y"}, {"name": "y"}]}, "output 'y' is given twice"),
    "output no object": ({"inputs": [entry()], "outputs": ["y"]}, "'outputs' has the entry 'y'"),
    "binary_data no flag": (asking(binary_data="yes"), "is 'yes'; send true or false"),
    "negative classes": (asking(classification=-1), "'classification' of output 'y' is -1"),
    "classes of no number": (asking("flag", classification=1), "'flag' is BOOL, which has no order"),
    "nested 101 deep": ({"inputs": [entry()], "note": deep(100)}, "more than 100 deep"),
    "nested 900 deep": ({"inputs": [entry()], "note": deep(900)}, "more than 100 deep"),
}


@pytest.mark.parametrize(("document", "message"), DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_a_malformed_document_is_refused(document: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        oip.decode_request(json.dumps(document).encode(), None, ONE)


TEXTS = {
    "empty": (b"", "not valid JSON"),
    "cut off": (b'{"inputs": [', "not valid JSON"),
    "trailing bytes": (b"{} {}", "not valid JSON"),
    "not UTF-8": (b'{"id": "\xff"}', "not valid JSON"),
    "endlessly nested": (b'{"a": ' + b"[" * 131_000, "not valid JSON"),
    "endlessly nested with NaN": (b'{"NaN": ' + b"[" * 131_000, "not valid JSON"),
    "NaN and a lone surrogate": (b'{"id": "\\ud800", "a": NaN}', "not valid JSON"),
    "NaN and an endless integer": (b'{"a": NaN, "b": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    "number beyond a double": (b'{"a": 1e999}', "not valid JSON"),
}


@pytest.mark.parametrize(("text", "message"), TEXTS.values(), ids=TEXTS.keys())
def test_what_is_not_json_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        oip.decode_request(text, None, ONE)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("UINT8", 300, "element 300; UINT8 takes 0 to 255"),
        ("UINT8", -1, "element -1; UINT8 takes 0 to 255"),
        ("INT8", 128, "INT8 takes -128 to 127"),
        ("INT64", 2**63, "INT64 takes -9223372036854775808 to"),
        ("UINT64", -1, "UINT64 takes 0 to 18446744073709551615"),
        ("INT64", 1.5, "element 1.5; INT64 takes integers"),
        ("INT64", 1.0, "element 1.0; INT64 takes integers"),
        ("INT64", True, "element true; INT64 takes integers"),
        ("BOOL", 1, "element 1; BOOL takes true or false"),
        ("BYTES", 1, "element 1; BYTES takes strings"),
        ("FP32", float("inf"), None),
        ("FP64", 2**63, None),
    ],
)
def test_json_elements_are_checked_against_the_datatype(kind: str, value: object, message: str | None) -> None:
    spec = TensorSpec("x", DTYPES[kind], (None,))
    body = json.dumps({"inputs": [entry(datatype=kind, shape=[1], data=[value])]}).encode()
    expected = pytest.raises(InvalidInput, match=message) if message else contextlib.nullcontext()
    with expected:
        request = oip.decode_request(body, None, Signature((spec,), (spec,)))
        assert request.inputs["x"].tolist() == [value]


def test_an_integer_beyond_64_bits_is_refused_not_rounded() -> None:
    body = b'{"inputs": [{"name": "x", "datatype": "UINT64", "shape": [1], "data": [18446744073709551616]}]}'
    spec = TensorSpec("x", DTYPES["UINT64"], (None,))
    with pytest.raises(InvalidInput, match="UINT64 takes integers"):
        oip.decode_request(body, None, Signature((spec,), (spec,)))


def binary(spec: TensorSpec, shape: list[int], payload: bytes, size: int | None = None) -> tuple[bytes, int]:
    """A binary request for one input; `size` is the declared one where that differs from the real one."""
    document = {
        "inputs": [
            {
                "name": spec.name,
                "datatype": next(name for name, dtype in DTYPES.items() if dtype == spec.dtype),
                "shape": shape,
                "parameters": {"binary_data_size": len(payload) if size is None else size},
            }
        ]
    }
    text = orjson.dumps(document)
    return text + payload, len(text)


@pytest.mark.parametrize(
    ("spec", "shape", "payload", "size", "message"),
    [
        (FLOAT, [1, 2], b"1234567", None, "7 bytes; FP32 of shape \\[1, 2\\] takes 2 x 4 = 8"),
        (FLOAT, [1, 2], b"123456789", None, "9 bytes"),
        (FLOAT, [1, 2], b"1234", 8, "binary_data_size 8; 4 bytes are left"),
        (FLOAT, [1, 2], b"123456789", 8, "1 bytes after the last input"),
        (FLOAT, [16, 2**60 + 2], b"", None, "0 bytes; FP32"),
        (FLOAT, [2**63, 0], b"", None, "impossible shape"),
        (FLOAT, [0, 2], b"", None, "0 rows"),
        (TensorSpec("b", np.dtype(np.bool_), (None,)), [2], b"\x01\x02", None, "the byte 2; BOOL takes 0 or 1"),
        (TEXT, [1], b"\x01\x00", None, "1 BYTES elements take at least 4"),
        (TEXT, [2], b"\x05\x00\x00\x00hel", None, "at least 8"),
        (TEXT, [1], b"\x05\x00\x00\x00hel", None, "element 0 of 1: its length prefix says 5 bytes, 3 are left"),
        (TEXT, [1], b"\xff\xff\xff\xffhel", None, "says 4294967295 bytes"),
        (TEXT, [2], b"\x02\x00\x00\x00heyo\x00", None, "ends inside element 1 of 2"),
        (TEXT, [1], b"\x01\x00\x00\x00hel", None, "2 bytes after its 1 BYTES elements"),
        (TEXT, [2**62], b"\x01\x00\x00\x00h", None, "4611686018427387904 BYTES elements"),
    ],
)
def test_a_malformed_payload_is_refused(
    spec: TensorSpec, shape: list[int], payload: bytes, size: int | None, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        oip.decode_request(*binary(spec, shape, payload, size), Signature((spec,), (spec,)))


@pytest.mark.parametrize("length", [-1, 10_000, 2**70])
def test_a_header_length_outside_the_body_is_refused(length: int) -> None:
    with pytest.raises(InvalidInput, match=f"Content-Length is {length}; the body has 2 bytes"):
        oip.decode_request(b"{}", length, ONE)


@pytest.mark.parametrize("value", ["", "-1", "+1", "1.0", "1_0", "0x10", "\u0661", "9" * 30, "many"])
def test_a_header_that_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length"):
        oip.parse_header_length(value)


def test_a_header_that_is_a_number_is_read() -> None:
    assert [oip.parse_header_length(value) for value in (None, "0", " 17 ")] == [None, 0, 17]


@pytest.mark.parametrize(
    ("signature", "body", "message"),
    [
        (ONE, b"1234567", "takes a multiple of 8 bytes; the body has 7"),
        (ONE, b"", "0 rows"),
        (Signature((FLOAT, INT), ()), b"12345678", "one input; this one has 'x', 'n'"),
        (Signature((TensorSpec("x", FLOAT.dtype, (None, None)),), ()), b"12345678", "cannot tell the shape of x"),
        (
            Signature((TensorSpec("x", FLOAT.dtype, (2, 2)),), (), batched=False),
            b"1234",
            "takes 16 bytes; the body has 4",
        ),
    ],
)
def test_a_raw_request_of_the_wrong_size_is_refused(signature: Signature, body: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        oip.decode_request(body, 0, signature)


def test_a_message_does_not_repeat_megabytes() -> None:
    with pytest.raises(InvalidInput) as caught:
        oip.decode_request(orjson.dumps({"inputs": [entry(name="z" * 10**6)]}), None, ONE)
    assert len(str(caught.value)) < 1000


def test_a_million_wrong_elements_are_refused_promptly() -> None:
    body = orjson.dumps({"inputs": [entry(shape=[500_000, 2], data=[0.5] * 999_999 + [True])]})
    started = time.perf_counter()
    with pytest.raises(InvalidInput, match="element true"):
        oip.decode_request(body, None, ONE)
    assert time.perf_counter() - started < 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
VALID = {
    "id": "a",
    "inputs": [
        {"name": "n", "datatype": "INT64", "shape": [1, 2], "data": [[1, 2]]},
        {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        {"name": "s", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}},
    ],
    "outputs": [{"name": "y", "parameters": {"binary_data": True, "classification": 1}}],
    "parameters": {"binary_data_output": False},
}
PAYLOAD = np.array([1, 2], "<f4").tobytes() + b"\x01\x00\x00\x00s"
THREE = Signature((INT, FLOAT, TEXT), ONE.outputs)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(place for key in keys for place in places(value[key], (*path, key)))]


def refused_or_fits(body: bytes, length: int | None, signature: Signature) -> None:
    with contextlib.suppress(InvalidInput):
        request = oip.decode_request(body, length, signature)
        assert signature.check(request.inputs) == request.rows
        assert {output.name for output in request.outputs} <= {spec.name for spec in signature.outputs}


def test_the_request_that_is_mutated_below_is_valid() -> None:
    text = orjson.dumps(VALID)
    assert oip.decode_request(text + PAYLOAD, len(text), THREE).rows == 1


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(places(VALID)[1:]), value=json_values)
def test_any_value_in_any_place_is_refused_or_fits(place: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(VALID)
    owner: Any = document
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = value
    text = json.dumps(document).encode()
    refused_or_fits(text + PAYLOAD, len(text), THREE)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_to_the_bytes_is_refused_or_fits(data: st.DataObject) -> None:
    text = orjson.dumps(VALID)
    body = bytearray(text + PAYLOAD)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(body)))
        body[start : start + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    refused_or_fits(bytes(body), data.draw(st.none() | st.just(len(text)) | st.integers(-2, len(body) + 2)), THREE)
