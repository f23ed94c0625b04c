"""Requests that our own server reads, answers that it writes, and which of them are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from enginehouse.contract.errors import InferenceFailed, InvalidInput
from enginehouse.contract.manifest import Artifact, Manifest, SignatureRecord
from enginehouse.contract.parity import LIMITS
from enginehouse.contract.tensors import Signature, TensorSpec
from enginehouse.faces import oip
from enginehouse.tools.bench import answers, samples
from enginehouse.tools.bench.answers import Expected
from enginehouse.tools.bench.samples import Samples

SIGNATURE = Signature(
    (TensorSpec("x", np.dtype(np.float32), (None, 3)), TensorSpec("word", np.dtype(object), (None,))),
    (TensorSpec("y", np.dtype(np.float32), (None, 2)), TensorSpec("label", np.dtype(np.int64), (None,))),
)
MANIFEST = Manifest(
    name="m",
    version="1",
    created="",
    source="",
    signature=SignatureRecord.of(SIGNATURE),
    max_batch=4,
    artifacts=(Artifact(name="onnx-fp32", format="onnx", precision="fp32", status="ready"),),
)
INPUTS = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "word": np.array([b"a", b"bc"], dtype=object)}
OUTPUTS = {"y": np.array([[1.5, 2], [3, 4]], np.float32), "label": np.array([7, 9])}


def answer(as_json: bool, outputs: dict[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """What our server answers to INPUTS."""
    body, headers = answers.encode(INPUTS, as_json)
    length = oip.parse_header_length(headers.get("Inference-Header-Content-Length"))
    request = oip.decode_request(body, length, SIGNATURE)
    for name, array in INPUTS.items():
        np.testing.assert_array_equal(request.inputs[name], array)
    content, length = oip.encode_response("m", "1", request, outputs, SIGNATURE)
    assert (length is None) == as_json
    return content, {"Enginehouse-Backend": "b"} | ({} if as_json else {"Inference-Header-Content-Length": str(length)})


@pytest.mark.parametrize("as_json", [False, True])
def test_our_server_and_the_benchmark_understand_each_other(as_json: bool) -> None:
    content, headers = answer(as_json, OUTPUTS)
    decoded = answers.decode(content, headers)
    for name, array in OUTPUTS.items():
        np.testing.assert_array_equal(decoded[name], array)
        assert decoded[name].dtype == array.dtype
    assert answers.backend_of(headers) == "b"
    assert answers.fault(content, headers, {"b": Expected(OUTPUTS, LIMITS["fp32"])}) is None


def test_values_of_binary_requests_are_aligned() -> None:
    _, headers = answers.encode({"x": INPUTS["x"]})
    assert int(headers["Inference-Header-Content-Length"]) % 8 == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"y": OUTPUTS["y"] + 0.01}, "output 'y' is "),
        ({"label": np.array([7, 8])}, "50.0% of output"),
        ({"y": OUTPUTS["y"][:, :1]}, "shape"),
        ({"y": OUTPUTS["y"] * np.float32(np.nan)}, "not finite on one side"),
    ],
)
def test_a_wrong_answer_is_told_from_a_right_one(wrong: dict[str, np.ndarray], said: str) -> None:
    content, headers = answer(False, OUTPUTS | wrong)
    fault = answers.fault(content, headers, {"b": Expected(OUTPUTS, LIMITS["fp32"])})
    assert fault is not None
    assert said in fault


def test_an_answer_of_an_unknown_backend_is_not_right() -> None:
    content, headers = answer(False, OUTPUTS)
    assert "came from b; known: c" in str(answers.fault(content, headers, {"c": Expected(OUTPUTS, LIMITS["fp32"])}))


@pytest.mark.parametrize("content", [b"", b"<html>", b"[1]", b'{"error": "no"}'])
def test_what_is_no_answer_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises(InferenceFailed, match="not an answer"):
        answers.decode(content, {})


def test_requests_begin_again_at_the_first_row() -> None:
    three = Samples({"x": np.arange(3)}, batched=True, name="f")
    assert three.request(2, 4)["x"].tolist() == [2, 0, 1, 2]
    whole = Samples({"x": np.arange(3)}, batched=False, name="f")
    assert (whole.rows, whole.request(5, 1)["x"].tolist()) == (1, [0, 1, 2])


def test_random_inputs_fit_and_are_the_same_every_time() -> None:
    made = samples.synthetic(MANIFEST)
    SIGNATURE.check(made.arrays)
    assert made.name == ""
    assert made.arrays["x"].std() == pytest.approx(1, abs=0.2)
    np.testing.assert_array_equal(made.arrays["x"], samples.synthetic(MANIFEST).arrays["x"])


def test_own_rows_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, x=INPUTS["x"], word=np.array(["a", "bc"]))
    found = samples.read(path, MANIFEST)
    assert (found.name, found.rows) == ("mine.npz", 2)
    np.savez(path, x=INPUTS["x"].astype(np.float64), word=np.array(["a", "bc"]))
    with pytest.raises(InvalidInput, match=r"mine\.npz: input 'x' has dtype float64"):
        samples.read(path, MANIFEST)
    with pytest.raises(InvalidInput, match="absent"):
        samples.read(tmp_path / "absent", MANIFEST)
