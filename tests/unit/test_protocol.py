"""Requests written by tritonclient are read here, and answers written here are read by tritonclient."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from tritonclient.http._utils import _get_inference_request

from enginehouse.contract.errors import InferenceFailed, InvalidInput
from enginehouse.contract.manifest import Artifact
from enginehouse.contract.tensors import DTYPES, Signature, TensorSpec
from enginehouse.faces import oip

VALUES = {
    "BOOL": np.array([[True, False, True], [False, False, True]]),
    **{
        name: np.array([[np.iinfo(dtype).min, 0, 1], [2, 3, np.iinfo(dtype).max]], dtype)
        for name, dtype in DTYPES.items()
        if dtype.kind in "iu"
    },
    "FP16": np.array([[0.5, -1, 65504], [np.inf, 1e-7, 0]], np.float16),
    "BF16": np.array([[0.5, -1, 3e38], [np.inf, 1e-7, 0]], ml_dtypes.bfloat16),
    "FP32": np.array([[0.1, -1, 3.4e38], [np.inf, -np.inf, np.nan]], np.float32),
    "FP64": np.array([[0.1, -1, 1.7e308], [np.inf, -np.inf, np.nan]], np.float64),
    "BYTES": np.array([[b"", b"a", "\u00e9\u6f22".encode()], [b"\x00", b'"]}', b"x" * 300]], object),
}
BINARY_ONLY = ("FP16", "BF16")


def echo(kind: str, batched: bool = True) -> Signature:
    """A model with one input `x` and one output `y` of the same datatype."""
    shape = (None, None) if batched else (2, 3)
    return Signature((TensorSpec("x", DTYPES[kind], shape),), (TensorSpec("y", DTYPES[kind], shape),), batched)


def client_request(
    inputs: dict[str, np.ndarray],
    binary_inputs: bool = True,
    outputs: list[triton.InferRequestedOutput] | None = None,
    parameters: dict[str, object] | None = None,
) -> tuple[bytes, int | None]:
    """Body and header length, as tritonclient sends them."""
    sent = []
    for name, array in inputs.items():
        kind = next(key for key, dtype in DTYPES.items() if dtype == array.dtype)
        tensor = triton.InferInput(name, list(array.shape), kind)
        sent.append(tensor.set_data_from_numpy(array, binary_data=binary_inputs))
    return _get_inference_request(sent, "id-7", outputs, 0, False, False, 0, None, parameters)


def client_result(body: bytes, length: int | None) -> triton.InferResult:
    return triton.InferResult.from_response_body(body, header_length=length)


def same(left: np.ndarray, right: np.ndarray) -> bool:
    if left.dtype == object:
        return left.shape == right.shape and left.tolist() == right.tolist()
    return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()


def test_every_datatype_of_the_house_has_a_value_here() -> None:
    assert VALUES.keys() == DTYPES.keys()


@pytest.mark.parametrize("kind", DTYPES)
def test_binary_round_trip(kind: str) -> None:
    value = VALUES[kind]
    request = oip.decode_request(*client_request({"x": value}), echo(kind))
    assert same(request.inputs["x"], value)
    assert (request.id, request.rows) == ("id-7", 2)

    body, length = oip.encode_response("m", "3", request, {"y": value}, echo(kind))
    result = client_result(body, length)
    assert same(result.as_numpy("y"), value)
    assert {key: result.get_response()[key] for key in ("id", "model_name", "model_version")} == {
        "id": "id-7",
        "model_name": "m",
        "model_version": "3",
    }


@pytest.mark.parametrize("kind", [kind for kind in DTYPES if kind not in BINARY_ONLY])
def test_json_round_trip(kind: str) -> None:
    value = VALUES[kind]
    wanted = [triton.InferRequestedOutput("y", binary_data=False)]
    body, length = client_request({"x": value}, binary_inputs=False, outputs=wanted)
    assert length is None
    request = oip.decode_request(body, length, echo(kind))
    assert same(request.inputs["x"], value)

    body, length = oip.encode_response("m", "3", request, {"y": value}, echo(kind))
    assert length is None
    answer = client_result(body, length).as_numpy("y")
    if kind == "BYTES":
        assert answer.tolist() == [[text.decode() for text in row] for row in value]
    else:
        assert np.array_equal(answer, value, equal_nan=kind.startswith("FP")) and answer.dtype == value.dtype


@pytest.mark.parametrize("kind", BINARY_ONLY)
def test_two_byte_floats_have_no_json_form(kind: str) -> None:
    document = {"inputs": [{"name": "x", "datatype": kind, "shape": [1, 1], "data": [1.0]}]}
    with pytest.raises(InvalidInput, match="'x' is .*no JSON form; send it as binary"):
        oip.decode_request(orjson.dumps(document), None, echo(kind))
    wanted = [triton.InferRequestedOutput("y", binary_data=False)]
    with pytest.raises(InvalidInput, match="'y' is .*no JSON form.*binary_data_output"):
        oip.decode_request(*client_request({"x": VALUES[kind]}, outputs=wanted), echo(kind))


@pytest.mark.parametrize("data", [[[1, 2.5, 3], [4, 5, 6]], [1, 2.5, 3, 4, 5, 6]], ids=["nested", "flat"])
def test_json_data_may_be_nested_or_flat(data: list[object]) -> None:
    document = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 3], "data": data}]}
    request = oip.decode_request(orjson.dumps(document), None, echo("FP32"))
    assert request.inputs["x"].tolist() == [[1, 2.5, 3], [4, 5, 6]]
    assert request.id is None


def test_binary_inputs_are_views_where_alignment_allows() -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    body, length = client_request({"x": value})
    assert length is not None
    for padding in range(4):
        # Blanks after the JSON move the payload, as a longer name or id would.
        padded = body[:length] + b" " * padding + body[length:]
        array = oip.decode_request(padded, length + padding, echo("FP32")).inputs["x"]
        address = np.frombuffer(padded, np.uint8)[length + padding :].__array_interface__["data"][0]
        assert array.flags.aligned and same(array, value)
        assert (array.__array_interface__["data"][0] == address) == (address % 4 == 0)


def test_json_and_binary_tensors_mix_in_any_order() -> None:
    first, second = VALUES["INT32"], VALUES["FP32"]
    signature = Signature(
        (TensorSpec("a", first.dtype, (None, 3)), TensorSpec("b", first.dtype, (None, 3))),
        (TensorSpec("y", second.dtype, (None, 3)), TensorSpec("z", first.dtype, (None, 3))),
    )
    tensors = [triton.InferInput(name, [2, 3], "INT32") for name in "ba"]
    tensors[0].set_data_from_numpy(first, binary_data=False)
    tensors[1].set_data_from_numpy(first + 1)
    wanted = [triton.InferRequestedOutput("z"), triton.InferRequestedOutput("y", binary_data=False)]
    body, length = _get_inference_request(tensors, "", wanted, 0, False, False, 0, None, None)
    request = oip.decode_request(body, length, signature)
    assert same(request.inputs["b"], first) and same(request.inputs["a"], first + 1)
    assert [(output.name, output.binary) for output in request.outputs] == [("z", True), ("y", False)]

    result = client_result(*oip.encode_response("m", "1", request, {"y": second, "z": first}, signature))
    assert same(result.as_numpy("z"), first) and same(result.as_numpy("y"), second)
    assert "parameters" not in result.get_output("y")


@pytest.mark.parametrize("default", [True, False])
def test_an_output_overrides_the_default_of_the_request(default: bool) -> None:
    signature = Signature(
        (TensorSpec("x", np.dtype(np.int8), (None,)),),
        tuple(TensorSpec(name, np.dtype(np.int8), (None,)) for name in ("plain", "yes", "no")),
    )
    document = {
        "inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}],
        "outputs": [
            {"name": "plain"},
            {"name": "yes", "parameters": {"binary_data": True}},
            {"name": "no", "parameters": {"binary_data": False}},
        ],
        "parameters": {"binary_data_output": default, "deadline-ms": 50, "backend": "openvino-cpu"},
    }
    request = oip.decode_request(orjson.dumps(document), None, signature)
    assert [output.binary for output in request.outputs] == [default, True, False]
    assert (request.parameters["deadline-ms"], request.parameters["backend"]) == (50, "openvino-cpu")


def test_without_outputs_all_are_sent_in_the_order_of_the_signature() -> None:
    request = oip.decode_request(*client_request({"x": VALUES["INT8"]}), echo("INT8"))
    assert request.outputs == (oip.RequestedOutput("y", binary=True),)
    document = {"inputs": [{"name": "x", "datatype": "INT8", "shape": [1, 1], "data": [1]}], "outputs": []}
    request = oip.decode_request(orjson.dumps(document), None, echo("INT8"))
    assert request.outputs == (oip.RequestedOutput("y", binary=False),)


@pytest.mark.parametrize(
    ("shape", "size", "expected"), [((None, 2), 24, (3, 2)), ((2, None), 16, (2, 2)), ((2, 3), 24, (2, 3))]
)
def test_a_raw_request_takes_its_shape_from_the_signature(
    shape: tuple[int | None, ...], size: int, expected: tuple[int, ...]
) -> None:
    spec = TensorSpec("x", np.dtype(np.float32), shape)
    signature = Signature((spec,), (TensorSpec("y", spec.dtype, shape),), batched=shape[0] is None)
    value = np.arange(size // 4, dtype=np.float32).reshape(expected)
    request = oip.decode_request(value.tobytes(), 0, signature)
    assert same(request.inputs["x"], value)
    assert request.outputs == (oip.RequestedOutput("y", binary=True),)


def test_a_raw_request_to_a_model_of_strings_is_one_string() -> None:
    signature = Signature((TensorSpec("x", DTYPES["BYTES"], (None, 1)),), (TensorSpec("y", DTYPES["FP32"], (None,)),))
    assert oip.decode_request(b"\xff\xd8 a picture", 0, signature).inputs["x"].tolist() == [[b"\xff\xd8 a picture"]]


@pytest.mark.parametrize("kind", [kind for kind in DTYPES if kind not in ("BOOL", "BYTES")])
def test_classification_ranks_every_number(kind: str) -> None:
    value = np.array([[3, 1, 3, 0], [0, 1, 2, 127]], DTYPES[kind])
    wanted = [triton.InferRequestedOutput("y", class_count=3)]
    request = oip.decode_request(*client_request({"x": value}, outputs=wanted), echo(kind))
    result = client_result(*oip.encode_response("m", "1", request, {"y": value}, echo(kind)))
    assert result.get_output("y")["datatype"] == "BYTES"
    ranked = [[line.decode().split(":") for line in row] for row in result.as_numpy("y")]
    assert [[int(index) for _, index in row] for row in ranked] == [[0, 2, 1], [3, 2, 1]]
    assert [[float(score) for score, _ in row] for row in ranked] == [[3, 3, 1], [127, 2, 1]]


def test_classification_puts_nan_last_and_gives_no_more_than_there_is() -> None:
    value = np.array([[np.nan, -1, 5], [1, np.nan, np.nan]], np.float32)
    wanted = [triton.InferRequestedOutput("y", class_count=9, binary_data=False)]
    signature = echo("FP32", batched=False)
    request = oip.decode_request(*client_request({"x": value}, outputs=wanted), signature)
    result = client_result(*oip.encode_response("m", "1", request, {"y": value}, signature))
    assert result.as_numpy("y").tolist() == ["5.0:2", "1.0:3", "-1.0:1", "nan:0", "nan:4", "nan:5"]


def test_outputs_that_do_not_lie_in_c_order_are_sent_in_c_order() -> None:
    value = np.asfortranarray(VALUES["FP32"])[:, ::-1]
    request = oip.decode_request(*client_request({"x": VALUES["FP32"]}), echo("FP32"))
    result = client_result(*oip.encode_response("m", "1", request, {"y": value}, echo("FP32")))
    assert same(result.as_numpy("y"), np.ascontiguousarray(value))


def test_bytes_that_are_not_text_need_binary() -> None:
    value = np.array([[b"\xff"]], object)
    wanted = [triton.InferRequestedOutput("y", binary_data=False)]
    request = oip.decode_request(*client_request({"x": value}, outputs=wanted), echo("BYTES"))
    with pytest.raises(InvalidInput, match="'y' holds bytes that are not UTF-8.*ask for binary"):
        oip.encode_response("m", "1", request, {"y": value}, echo("BYTES"))


def test_an_output_the_engine_did_not_give_is_the_engines_fault() -> None:
    request = oip.decode_request(*client_request({"x": VALUES["INT8"]}), echo("INT8"))
    with pytest.raises(InferenceFailed, match="no output 'y'; it gave other"):
        oip.encode_response("m", "1", request, {"other": VALUES["INT8"]}, echo("INT8"))


def test_documents() -> None:
    signature = Signature(
        (TensorSpec("image", np.dtype(np.uint8), (None, 8, 8)),), (TensorSpec("score", DTYPES["BF16"], (None, 10)),)
    )
    metadata = oip.model_metadata("digits", ["1", "2"], "enginehouse", signature)
    assert json.loads(orjson.dumps(metadata)) == {
        "name": "digits",
        "versions": ["1", "2"],
        "platform": "enginehouse",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8]}],
        "outputs": [{"name": "score", "datatype": "BF16", "shape": [-1, 10]}],
    }
    artifact = Artifact(
        name="a", format="openvino", precision="fp32", status="ready", inputs_only={"openvino-cpu": {"image": 2**24}}
    )
    assert oip.model_metadata("digits", ["1"], "enginehouse", signature, [artifact])["parameters"] == {
        "a_on_openvino-cpu": "'image' below 2^24 only"
    }
    server = oip.server_metadata("0.1.0")
    assert server["name"] == "enginehouse" and "binary_tensor_data" in server["extensions"]
