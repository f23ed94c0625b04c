"""Requests whose JSON was seen before: the same text means the same, whatever elements come after it."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from tests.unit.test_protocol import echo

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.tensors import DTYPES, Signature, TensorSpec
from enginehouse.faces import oip


def ask(text: dict[str, object], *arrays: np.ndarray, signature: Signature) -> oip.InferRequest:
    """Read a request of this JSON, with the arrays after it."""
    head = orjson.dumps(text)
    body = head + b"".join(array.tobytes() for array in arrays)
    return oip.decode_request(body, len(head), signature)


def binary(name: str, array: np.ndarray, kind: str) -> dict[str, object]:
    parameters = {"binary_data_size": array.nbytes}
    return {"name": name, "datatype": kind, "shape": list(array.shape), "parameters": parameters}


def test_the_same_text_again_means_the_same_with_other_elements() -> None:
    signature = Signature(
        tuple(TensorSpec(name, DTYPES["FP32"], (None, 3)) for name in "ab"), (TensorSpec("y", DTYPES["FP32"], (None,)),)
    )
    first, second = np.arange(6, dtype=np.float32).reshape(2, 3), -np.ones((2, 3), np.float32)
    # In another order than the model's.
    text = {
        "inputs": [binary("b", first, "FP32"), binary("a", first, "FP32")],
        "parameters": {"priority": 2},
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    once = ask(text, first, second, signature=signature)
    again = ask(text, second, first, signature=signature)
    np.testing.assert_array_equal(once.inputs["b"], first)
    np.testing.assert_array_equal(once.inputs["a"], second)
    np.testing.assert_array_equal(again.inputs["b"], second)
    np.testing.assert_array_equal(again.inputs["a"], first)
    assert again.outputs is once.outputs, "it was not read again"
    for request in (once, again):
        assert (request.id, request.rows, request.parameters) == (None, 2, {"priority": 2})
        assert request.outputs == (oip.RequestedOutput("y", binary=True),)
    with pytest.raises(InvalidInput, match="24; 20 bytes are left"):
        ask(text, first, second.ravel()[:5], signature=signature)
    with pytest.raises(InvalidInput, match="4 bytes after the last input"):
        ask(text, first, second, second.ravel()[:1], signature=signature)
    other = Signature(tuple(TensorSpec(name, DTYPES["FP32"], (None, 2)) for name in "ab"), signature.outputs)
    with pytest.raises(InvalidInput, match=r"shape \[2, 3\]"):
        ask(text, first, second, signature=other)


def test_elements_are_checked_however_often_the_text_was_seen() -> None:
    flags = np.array([[1, 0]], np.uint8)
    text = {"inputs": [binary("x", flags, "BOOL")]}
    signature = echo("BOOL")
    assert ask(text, flags, signature=signature).inputs["x"].tolist() == [[True, False]]
    with pytest.raises(InvalidInput, match="byte 2; BOOL"):
        ask(text, 2 * flags, signature=signature)
    assert ask(text, flags[:, ::-1], signature=signature).inputs["x"].tolist() == [[False, True]]


def test_elements_in_the_text_are_read_from_it_however_often_it_is_sent() -> None:
    signature = Signature(
        tuple(TensorSpec(name, DTYPES["FP32"], (None, 1)) for name in "ab"), (TensorSpec("y", DTYPES["FP32"], (None,)),)
    )
    sent = np.ones((1, 1), np.float32)
    text = {
        "inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 1], "data": [7.0]}, binary("b", sent, "FP32")],
    }
    for _ in range(2):
        request = ask(text, sent, signature=signature)
        assert (request.inputs["a"].item(), request.inputs["b"].item()) == (7.0, 1.0)


def test_elements_in_the_text_and_strings_are_read_anew() -> None:
    signature = Signature(
        (TensorSpec("n", DTYPES["FP32"], (None, 1)), TensorSpec("s", DTYPES["BYTES"], (None, 1))),
        (TensorSpec("y", DTYPES["FP32"], (None,)),),
    )
    for numbers, word in ((1.0, b"ab"), (2.0, b"cd"), (2.0, b"ef")):
        packed = np.frombuffer(len(word).to_bytes(4, "little") + word, np.uint8)
        text = {
            "inputs": [
                {"name": "n", "datatype": "FP32", "shape": [1, 1], "data": [numbers]},
                binary("s", packed, "BYTES") | {"shape": [1, 1]},
            ]
        }
        request = ask(text, packed, signature=signature)
        assert (request.inputs["n"].item(), request.inputs["s"].item()) == (numbers, word)
