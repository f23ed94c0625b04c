"""Long work is cut into pieces: none is large, and others have their turn between them."""

from __future__ import annotations

import asyncio
import functools
import gc
import re
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest

from enginehouse.contract import elements
from enginehouse.contract.elements import ELEMENTS, Work, finished
from enginehouse.contract.errors import InvalidInput, RequestTooLarge
from enginehouse.contract.tensors import DTYPES, Signature, TensorSpec
from enginehouse.faces import oip
from enginehouse.faces.interleaved import SLICE_S, interleaved
from enginehouse.faces.oip.document import AT_ONCE_BYTES

COUNT = 20 * ELEMENTS


def pieces_of(work: Work[Any]) -> tuple[int, list[Callable[[], Any]], Any]:
    """How often the work could have been left, what it asked to be called, and its result."""
    breaks, calls = 0, []
    try:
        call = next(work)
        while True:
            breaks += 1
            if call is not None:
                calls.append(call)
            call = next(work) if call is None else work.send(call())
    except StopIteration as end:
        return breaks, calls, end.value


def signature(kind: str, width: int | None = None) -> Signature:
    spec = (None,) if width is None else (None, width)
    return Signature((TensorSpec("x", DTYPES[kind], spec),), (TensorSpec("y", DTYPES[kind], spec),))


def binary(array: np.ndarray, **outputs: Any) -> tuple[bytes, int]:
    payload = elements.to_bytes(array)
    kind = next(name for name, dtype in DTYPES.items() if dtype == array.dtype)
    tensor = {"name": "x", "datatype": kind, "shape": array.shape, "parameters": {"binary_data_size": len(payload)}}
    text = orjson.dumps(
        {"inputs": [tensor], **({"outputs": [{"name": "y", "parameters": outputs}]} if outputs else {})}
    )
    return text + bytes(payload), len(text)


def as_json(array: np.ndarray, kind: str) -> bytes:
    return orjson.dumps(
        {"inputs": [{"name": "x", "datatype": kind, "shape": array.shape, "data": array.tolist()}]},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


STRINGS = np.array([b"%d" % number for number in range(COUNT)], object)


@pytest.mark.parametrize(
    ("kind", "array"),
    [
        ("BYTES", STRINGS),
        ("FP32", np.arange(COUNT, dtype=np.float32)),
        ("INT64", np.arange(COUNT)),
        ("BOOL", np.arange(COUNT) % 3 == 0),
    ],
)
def test_a_large_json_is_decoded_in_pieces_after_one_call_that_parses_it(kind: str, array: np.ndarray) -> None:
    text = as_json(np.array([str(number) for number in range(COUNT)]) if kind == "BYTES" else array, kind)
    assert len(text) > AT_ONCE_BYTES
    breaks, calls, request = pieces_of(oip.decoding(text, None, signature(kind)))
    assert breaks >= COUNT // ELEMENTS - 1
    assert orjson.loads in [getattr(call, "func", None) for call in calls]
    assert request.inputs["x"].tolist() == array.tolist()


@pytest.mark.parametrize("asked", [{"binary_data": True}, {"binary_data": False}])
def test_strings_are_read_and_written_in_pieces(asked: dict[str, bool]) -> None:
    model = signature("BYTES")
    breaks, _, request = pieces_of(oip.decoding(*binary(STRINGS, **asked), model))
    assert breaks >= COUNT // ELEMENTS - 1
    assert request.inputs["x"].tolist() == STRINGS.tolist()
    breaks, _, encoded = pieces_of(oip.encoding("m", "1", request, {"y": STRINGS}, model))
    assert breaks >= COUNT // ELEMENTS - 1
    assert max(map(len, encoded.parts)) < 20 * ELEMENTS
    again = oip.encode_response("m", "1", request, {"y": STRINGS}, model)
    assert (b"".join(encoded.parts), encoded.json_length) == again


@pytest.mark.parametrize("as_binary", [True, False])
@pytest.mark.parametrize(("rows", "width"), [(100, 1000), (1, 5 * ELEMENTS), (5 * ELEMENTS, 1)])
def test_classes_are_made_in_pieces_whatever_the_shape(rows: int, width: int, as_binary: bool) -> None:
    model = signature("FP32", width)
    scores = np.random.default_rng(0).permutation(rows * width).astype(np.float32).reshape(rows, width)
    body = binary(scores, binary_data=as_binary, classification=width)
    request = oip.decode_request(*body, model)
    breaks, calls, encoded = pieces_of(oip.encoding("m", "1", request, {"y": scores}, model))
    assert breaks >= rows * width // ELEMENTS
    # A row that is long on its own is sorted in one call, in which numpy lets others compute.
    assert len(calls) == (1 if width > 4 * ELEMENTS else 0)
    assert max(map(len, encoded.parts)) < 30 * ELEMENTS
    text, length = b"".join(encoded.parts), encoded.json_length
    (output,) = orjson.loads(text[:length])["outputs"]
    assert output["shape"] == [rows, width]
    if as_binary:
        lines = elements.from_bytes("y", DTYPES["BYTES"], [rows, width], memoryview(text)[length:])
    else:
        lines = np.array([line.encode() for line in output["data"]], object).reshape(rows, width)
    for row in (0, rows - 1):
        ranked = np.argsort(-scores[row], kind="stable").tolist()
        assert lines[row].tolist() == [f"{scores[row, index]}:{index}".encode() for index in ranked]


def test_numbers_are_written_as_json_in_pieces_and_keep_their_nan() -> None:
    values = np.arange(COUNT, dtype=np.float32)
    values[-1] = np.nan
    request = oip.decode_request(as_json(np.zeros(1), "FP32"), None, signature("FP32"))
    breaks, _, encoded = pieces_of(oip.encoding("m", "1", request, {"y": values}, signature("FP32")))
    assert breaks >= COUNT // ELEMENTS - 1
    text = b"".join(encoded.parts)
    assert text.endswith(b"NaN]}]}") and encoded.json_length is None
    (output,) = orjson.loads(text.replace(b"NaN", b"0"))["outputs"]
    np.testing.assert_array_equal(output["data"][:-1], values[:-1])


@pytest.mark.parametrize("count", [0, 1, ELEMENTS, ELEMENTS + 1])
@pytest.mark.parametrize("kind", ["FP32", "INT64", "BOOL", "BYTES"])
def test_the_text_of_pieces_is_that_of_the_whole(kind: str, count: int) -> None:
    array = STRINGS[:count] if kind == "BYTES" else np.arange(count).astype(DTYPES[kind])
    parts = elements.listed(finished(elements.writing("y", array)))
    assert b"".join(parts) == orjson.dumps(elements.to_json("y", array), option=orjson.OPT_SERIALIZE_NUMPY)


def test_numbers_that_lie_askew_are_copied_in_pieces() -> None:
    whole = np.arange(3 << 20, dtype=np.float32)
    askew = memoryview(b"x" + whole.tobytes())[1:]
    breaks, _, array = pieces_of(elements.decoding("x", whole.dtype, whole.shape, askew))
    assert breaks >= 2 and array.flags.aligned
    np.testing.assert_array_equal(array, whole)


@pytest.mark.parametrize("as_binary", [True, False])
def test_more_strings_than_the_limit_are_refused_before_they_are_made(as_binary: bool) -> None:
    model = signature("BYTES")
    few = STRINGS[:10]
    body, length = binary(few) if as_binary else (as_json(np.array([str(n) for n in range(10)]), "BYTES"), None)
    assert finished(oip.decoding(body, length, model, 10)).rows == 10
    with pytest.raises(RequestTooLarge, match=r"makes 10 strings in this request; one request may have 9 \(max_str"):
        finished(oip.decoding(body, length, model, 9))


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"inputs": [{"name": str(number)} for number in range(100_000)]}, "input '0' is not known"),
        ({"inputs": [], "parameters": {str(number): 1 for number in range(100_000)}}, "has 100000 entries; send at"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1] * 100_000}]}, "of 100000 dimensions"),
    ],
)
def test_no_list_of_a_request_is_looked_at_beyond_its_fault(document: Any, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        oip.decode_request(orjson.dumps(document), None, signature("FP32"))


async def test_short_work_is_done_without_a_break() -> None:
    def work() -> Work[str]:
        yield None
        return "done"

    others: list[str] = []
    asyncio.get_running_loop().call_soon(others.append, "had a turn")
    assert await interleaved(work()) == "done"
    assert not others


@pytest.mark.parametrize(("alone", "wanted"), [(False, "abc" * 5), (True, "aaaaabbbbbccccc")])
async def test_long_work_is_done_in_turns_or_alone_with_others_between_its_pieces(alone: bool, wanted: str) -> None:
    order: list[str] = []

    def work(name: str) -> Work[str]:
        for _ in range(5):
            end = time.thread_time() + 2 * SLICE_S
            while time.thread_time() < end:
                pass
            order.append(name)
            yield None
        return name

    async def others() -> None:
        while True:
            order.append("-")
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    assert await asyncio.gather(*(interleaved(work(name), alone) for name in "abc")) == ["a", "b", "c"]
    beside.cancel()
    text = "".join(order)
    assert text.replace("-", "") == wanted
    # But for the first piece of each, before which it is not known to be long.
    assert not re.search("[abc]{2}", text[text.index(wanted[2]) + 1 :] if not alone else text)


async def test_what_a_refused_request_was_made_of_is_freed_at_once() -> None:
    texts = [
        as_json(np.arange(COUNT), "INT64")[:-1],
        as_json(np.arange(COUNT), "INT64")[:-1] + b', "a": NaN',
        as_json(np.arange(COUNT), "FP64"),
    ]
    gc.disable()
    try:
        for text in texts:
            body = np.frombuffer(text, np.uint8).copy()
            freed = weakref.ref(body)
            work = oip.decoding(memoryview(body), None, signature("INT64"))
            del body
            try:
                await interleaved(work)
            except InvalidInput:
                pass
            else:
                raise AssertionError("not refused")
            del work
            for _ in range(500):
                # The thread that parsed it may hold it for a moment longer.
                if freed() is None:
                    break
                await asyncio.sleep(0.01)
            assert freed() is None
    finally:
        gc.enable()


async def test_a_long_call_is_made_in_a_thread_and_what_it_raises_is_raised_in_the_work() -> None:
    def fails() -> None:
        assert threading.current_thread() is not threading.main_thread()
        raise InvalidInput("wrong")

    def work() -> Work[str]:
        try:
            yield fails
        except InvalidInput as error:
            return str(error)
        return "not raised"

    assert await interleaved(work()) == "wrong"

    def raises() -> Work[None]:
        yield fails

    with pytest.raises(InvalidInput, match="wrong"):
        await interleaved(raises())
    # The turn was given up: the next one has it.
    assert await asyncio.wait_for(interleaved(work()), 5) == "wrong"


async def test_who_leaves_in_a_long_call_keeps_the_turn_until_its_end() -> None:
    order: list[str] = []
    begun = threading.Event()

    def slow() -> None:
        begun.set()
        time.sleep(0.1)
        order.append("slow has ended")

    def work(call: Callable[[], Any]) -> Work[None]:
        yield call

    first = asyncio.create_task(interleaved(work(slow)))
    await asyncio.to_thread(begun.wait)
    first.cancel()
    await interleaved(work(functools.partial(order.append, "next")))
    with pytest.raises(asyncio.CancelledError):
        await first
    assert order == ["slow has ended", "next"]
