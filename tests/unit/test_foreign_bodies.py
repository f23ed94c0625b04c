"""A body or a file that is no request is called what it is, and the message says what is wanted and how."""

from __future__ import annotations

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.magic import recognised
from enginehouse.contract.tensors import FreeDim, Signature, TensorSpec
from enginehouse.faces import oip
from enginehouse.tools import cli
from enginehouse.tools.cli.request_file import read_inputs

from .foreign_bodies import FOREIGN, PIXELS

IMAGE = TensorSpec("image", np.dtype(np.uint8), (None, 9, 7, 3))
COUNT = TensorSpec("count", np.dtype(np.int64), (None,))
OUT = (TensorSpec("y", np.dtype(np.float32), (None, 2)),)
ONE, TWO = Signature((IMAGE,), OUT), Signature((IMAGE, COUNT), OUT)
WANTED = {"image": "image: UINT8[-1, 9, 7, 3]"}
#: Read by `infer` as it is.
READ = {"npy", "npz", "compressed npz"}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_body_that_is_no_json_is_called_what_it_is(kind: str) -> None:
    body, name = FOREIGN[kind]
    with pytest.raises(InvalidInput) as caught:
        oip.decode_request(body, None, TWO)
    said = str(caught.value)
    assert f"seems to be {name}; " in said
    assert "the model wants image: UINT8[*,9,7,3], count: INT64[*]" in said
    assert '{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 9, 7, 3], "data": [...]}' in said
    assert len(said) < 1000


def test_the_example_is_let_in_at_the_door() -> None:
    sides = FreeDim("side", (("image", 1), ("image", 2)), (8, 48))
    free = Signature((TensorSpec("image", np.dtype(np.uint8), (None, None, None, 3)),), OUT, free=(sides,))
    with pytest.raises(InvalidInput) as caught:
        oip.decode_request(FOREIGN["jpeg"][0], None, free)
    assert '"shape": [1, 8, 8, 3]' in str(caught.value)


@pytest.mark.parametrize("kind", ["jpeg", "png", "npy", "gzip"])
def test_a_raw_body_of_the_wrong_size_is_called_what_it_is(kind: str) -> None:
    body, name = FOREIGN[kind]
    assert len(body) % PIXELS.nbytes
    for signature in (ONE, Signature((TensorSpec("image", IMAGE.dtype, (1, 9, 7, 3)),), OUT, batched=False)):
        with pytest.raises(InvalidInput, match=rf"189 bytes; the body has {len(body)} and seems to be") as caught:
            oip.decode_request(body, 0, signature)
        assert name in str(caught.value)


def test_an_empty_body_is_called_empty() -> None:
    with pytest.raises(InvalidInput, match=r"the body is empty, which is not valid JSON; .* image: UINT8\[\*,9,7,3\]"):
        oip.decode_request(b"", None, ONE)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=300, deadline=None)
@given(
    value=VALUES, indent=st.sampled_from([None, 1]), cut=st.integers(1, 5), lead=st.sampled_from(["", "\n", " \t\n"])
)
def test_json_is_taken_for_nothing_else_whole_or_cut(value: Any, indent: int | None, cut: int, lead: str) -> None:
    text = (lead + json.dumps(value, indent=indent)).encode()
    assert recognised(text) is None
    document = (lead + json.dumps({"inputs": [value]}, indent=indent)).encode()
    assert recognised(document[:-cut]) is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600))
def test_any_bytes_are_recognised_or_not_and_no_error(data: bytes) -> None:
    kind = recognised(data)
    assert kind is None or kind.name


@pytest.mark.parametrize("kind", sorted(FOREIGN.keys() - READ))
def test_infer_says_what_a_file_is_and_what_to_do(kind: str, tmp_path: Path) -> None:
    body, name = FOREIGN[kind]
    path = tmp_path / "x.bin"
    path.write_bytes(body)
    with pytest.raises(InvalidInput) as caught:
        read_inputs(str(path), WANTED)
    said = str(caught.value)
    assert said.startswith(f"{path} is {name}; ")
    assert said.endswith("the model wants image: UINT8[-1, 9, 7, 3]")


@pytest.mark.parametrize("kind", sorted(READ))
def test_infer_reads_what_numpy_has_saved_whatever_it_is_called(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.data"
    path.write_bytes(FOREIGN[kind][0])
    (array,) = read_inputs(str(path), WANTED).values()
    np.testing.assert_array_equal(array, PIXELS)


def test_what_is_said_about_a_picture_makes_a_request_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.png").write_bytes(FOREIGN["png"][0])
    with pytest.raises(InvalidInput) as caught:
        read_inputs("x.png", WANTED)
    (_, command, _) = str(caught.value).split("`")
    exec(command.removeprefix('python -c "').removesuffix('"'))
    np.testing.assert_array_equal(read_inputs("pixels.npz", WANTED)["image"], PIXELS[None])


def _folder(path: Path) -> None:
    path.mkdir()


def _objects(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.array([{}], dtype=object))


FILES = {
    "missing": (lambda path: None, "no such file; give a .npz, .npy or .json file, or inline JSON"),
    "folder": (_folder, "is a folder; `infer` sends one request .* `enginehouse score` takes folders"),
    "text": (lambda path: path.write_text("1, 2, 3"), "is not JSON: .*give a .npz, .npy or .json file"),
    "cut json": (lambda path: path.write_text('{"x": [1'), "is not JSON: .*give a .npz"),
    "list": (lambda path: path.write_text("[[1, 2]]"), "is a JSON list; give the inputs by name.* wants image"),
    "number": (lambda path: path.write_text("3"), "is a JSON int; give the inputs by name"),
    "latin-1": (lambda path: path.write_bytes("Größe".encode("latin-1")), "is neither text nor a known kind of file"),
    "cut npz": (lambda path: path.write_bytes(FOREIGN["npz"][0][:200]), "is no file of plain numbers or text: "),
    "cut npy": (lambda path: path.write_bytes(FOREIGN["npy"][0][:200]), "is no file of plain numbers or text: "),
    "objects": (_objects, "is no file of plain numbers or text: Object arrays.*numpy.savez"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_infer_refuses_every_other_file_in_a_sentence(kind: str, tmp_path: Path) -> None:
    make, message = FILES[kind]
    make(tmp_path / "given")
    with pytest.raises(InvalidInput, match=message):
        read_inputs(str(tmp_path / "given"), WANTED)


ANSWERS: dict[str, tuple[bytes, str]] = {
    "a web page": (
        b"HTTP/1.0 200 OK\r\n\r\n<!DOCTYPE html><html></html>",
        "answered HTML or XML; is --url an enginehouse",
    ),
    "a picture": (
        b"HTTP/1.0 200 OK\r\n\r\n" + FOREIGN["jpeg"][0],
        "answered a JPEG picture .*; is --url an enginehouse",
    ),
    "other json": (b'HTTP/1.0 200 OK\r\n\r\n{"status": "up"}', "answered {'status': 'up'}; is --url an enginehouse"),
    "a model of halves": (
        b'HTTP/1.0 200 OK\r\n\r\n{"inputs": [{"name": "x", "datatype": "FP16", "shape": [-1]}], "outputs": []}',
        "'x' of 'm' is FP16, which has no JSON form, and `infer` sends JSON; ask in Python: enginehouse.Client",
    ),
    "a list": (b"HTTP/1.0 200 OK\r\n\r\n[1]", "answered no JSON object; is --url an enginehouse"),
    "no http": (b"-ERR unknown command\r\n", "speaks no HTTP that is understood .*; is --url an enginehouse"),
    "an error that is no text": (b"HTTP/1.0 500 No\r\n\r\n\xff\xfe\x00", "answered 500: "),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_infer_says_so_when_something_else_answers(kind: str) -> None:
    answer, message = ANSWERS[kind]
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as other:

        def respond() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        answered = other.submit(respond)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        ran = CliRunner().invoke(cli.app, ["infer", "m", '{"x": [1]}', "--url", url])
        answered.result()
    assert isinstance(ran.exception, InvalidInput), ran.exception
    assert re.search(message, str(ran.exception))


def test_an_array_without_a_name_is_for_a_model_of_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PIXELS)
    with pytest.raises(InvalidInput, match=r"x.npy is one array without a name; .* wants image: UINT8, count: INT64"):
        read_inputs(str(tmp_path / "x.npy"), {"image": "image: UINT8", "count": "count: INT64"})
