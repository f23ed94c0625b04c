"""Calls over a real connection: every datatype, every error, many calls in flight, lost connections."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from tests.unit.connections import TIMING, Run, connected, echo

from enginehouse.contract import errors
from enginehouse.contract.errors import (
    EnginehouseError,
    EngineUnavailable,
    InferenceFailed,
    InvalidInput,
    Overloaded,
    ReplicaLost,
)
from enginehouse.contract.tensors import DTYPES, Computed, Tensors
from enginehouse.transport import router_end as channels
from enginehouse.transport.router_end import Address, Channel


def values(kind: str, shape: Sequence[int]) -> np.ndarray:
    dtype = DTYPES[kind]
    if kind == "BYTES":
        return np.array([b"\xff" * (n % 300) for n in range(int(np.prod(shape)))], object).reshape(shape)
    return (np.arange(int(np.prod(shape))) % 2).astype(dtype).reshape(shape)


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    assert list(one) == list(other)
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name])


@pytest.mark.parametrize("kind", DTYPES)
def test_every_datatype_arrives_as_it_was_sent(run: Run, kind: str) -> None:
    async def work() -> None:
        async with connected() as (_, channel):
            for shape in ([3, 2], [0, 2], [1], [], [2, 70_001]):
                sent = {"a": values(kind, shape), "b": values("FP32", [5])}
                answer, timing = await channel.infer("m@1", [sent], 3, 10)
                same(answer, sent)
                assert timing == TIMING

    run(work())


def test_text_stays_text_and_strided_arrays_arrive_in_order(run: Run) -> None:
    async def work() -> None:
        async with connected() as (_, channel):
            text = np.array([["ä", ""], ["日本", "x"]], object)
            big = np.arange(2_000_000, dtype=np.float32).reshape(1000, 2000)
            sent = {"t": text, "u": np.array(["fixed", "width"]), "s": big[::3, ::2], "f": np.asfortranarray(big)}
            answer, _ = await channel.infer("m@1", [sent], 1, 10)
            assert answer["u"].tolist() == ["fixed", "width"]
            np.testing.assert_array_equal(answer["t"], text)
            np.testing.assert_array_equal(answer["s"], sent["s"])
            np.testing.assert_array_equal(answer["f"], big)

    run(work())


def test_many_strings_and_odd_ones_arrive_and_what_is_no_string_is_refused(run: Run) -> None:
    async def work() -> None:
        async with connected() as (_, channel):
            many = np.array([f"{n}" for n in range(30_000)], object)
            odd = np.array(["\ud800", "x"], object)
            raw = np.array([b"\xff" * (n % 9) for n in range(30_000)], object).reshape(100, 300)
            answer, _ = await channel.infer("m@1", [{"many": many, "odd": odd, "raw": raw}], 1, 10)
            same(answer, {"many": many, "odd": odd, "raw": raw})
            with pytest.raises(InvalidInput, match="'x' holds a float"):
                await channel.infer("m@1", [{"x": np.array([1.5, "a"], object)}], 1, 10)
            mixed, _ = await channel.infer("m@1", [{"x": np.array([b"\xff", "a"], object)}], 1, 10)
            assert mixed["x"].tolist() == [b"\xff", b"a"]

    run(work())


def test_requests_arrive_stacked_and_calls_do_not_wait_for_each_other(run: Run) -> None:
    async def slow_if_large(_: str, requests: Sequence[Tensors], rows: int, __: float) -> Computed:
        (request,) = requests
        assert request["x"].shape[0] == rows
        await asyncio.sleep(0.3 if rows > 5 else 0)
        return {"y": request["x"] * 2}, TIMING

    async def work() -> None:
        async with connected(slow_if_large) as (_, channel):
            rng = np.random.default_rng(0)
            groups = [
                [{"x": rng.standard_normal((rows, width), dtype=np.float32)} for rows in counts]
                for width, counts in ((3, (1, 2)), (150_000, (1, 4, 3)), (1, (1,)), (5000, (2, 2)))
            ]
            order: list[int] = []

            async def ask(number: int) -> None:
                group = groups[number]
                rows = sum(request["x"].shape[0] for request in group)
                answer, _ = await channel.infer("m@1", group, rows, 10)
                order.append(number)
                np.testing.assert_array_equal(answer["y"], 2 * np.concatenate([request["x"] for request in group]))

            await asyncio.gather(*(ask(number) for number in range(len(groups))))
            assert order[-1] == 1
            assert channel.wait_ms(time.monotonic(), "m@1") == 0

    run(work())


ERRORS: list[EnginehouseError] = [
    errors.InvalidInput("bad"),
    errors.InvalidInput("a name: \ud800"),
    errors.ModelNotFound("m", None, ("a@1", "b@2")),
    errors.ModelNotFound("m", "2", ()),
    errors.RequestTooLarge("big"),
    errors.DeadlineExceeded("late"),
    errors.EngineUnavailable("tensorrt", "no GPU"),
    errors.InferenceFailed("broke"),
    errors.ArtifactMissing("m@1", "nothing here"),
    errors.DigestMismatch("file", "a" * 64, "b" * 64),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_our_errors_stay_what_they_are(run: Run, error: EnginehouseError) -> None:
    async def fail(*_: Any) -> Computed:
        raise error

    async def work() -> None:
        async with connected(fail) as (_, channel):
            with pytest.raises(type(error)) as caught:
                await channel.infer("m@1", [{"x": np.zeros(1)}], 1, 10)
            assert str(caught.value) == str(error).replace("\ud800", "?")

    run(work())


def test_anything_else_is_a_failed_inference_and_the_connection_lives_on(run: Run) -> None:
    async def fail(model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        if model == "bad":
            raise ValueError("shape")
        return await echo(model, requests, rows, budget_s)

    async def work() -> None:
        async with connected(fail) as (_, channel):
            with pytest.raises(InferenceFailed, match="pool: ValueError: shape"):
                await channel.infer("bad", [{"x": np.zeros(1)}], 1, 10)
            await channel.infer("good", [{"x": np.zeros(1)}], 1, 10)

    run(work())


def test_an_answer_that_cannot_be_read_fails_only_its_call(run: Run) -> None:
    async def odd(model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        if model == "bad":
            return {"y": np.array([2], np.uint8).view(np.bool_)}, TIMING
        return await echo(model, requests, rows, budget_s)

    async def work() -> None:
        async with connected(odd) as (_, channel):
            with pytest.raises(InferenceFailed, match="pool: its answer cannot be read"):
                await channel.infer("bad", [{"x": np.zeros(1)}], 1, 10)
            await channel.infer("good", [{"x": np.zeros(1)}], 1, 10)

    run(work())


def test_calls_are_refused_while_the_write_buffer_is_full(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MAX_UNSENT_BYTES", 1 << 20)

    async def work() -> None:
        async with connected() as (listener, channel):
            (accepted,) = listener.connections
            assert accepted.transport is not None
            accepted.transport.pause_reading()
            x = {"x": np.zeros(40 << 20, np.uint8)}
            first = asyncio.create_task(channel.infer("m@1", [x], 1, 10))
            await asyncio.sleep(0.1)
            with pytest.raises(Overloaded, match="bytes are still on their way"):
                await channel.infer("m@1", [x], 1, 10)
            accepted.transport.resume_reading()
            same((await first)[0], x)
            await channel.infer("m@1", [x], 1, 10)

    run(work())


def test_a_caller_that_gives_up_cancels_the_call(run: Run) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def forever(*_: Any) -> Computed:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    async def work() -> None:
        async with connected(forever) as (listener, channel):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await channel.infer("m@1", [{"x": np.zeros(1)}], 1, 10)
            assert begun.is_set()
            await cancelled.wait()
            # Suspected when the call was cancelled, until the PONG.
            await asyncio.sleep(0.1)
            assert channel.wait_ms(time.monotonic(), "m@1") == 0
            await asyncio.sleep(0.05)
            assert not listener.calls

    run(work())


def test_calls_over_the_limit_and_to_a_draining_replica_are_refused(run: Run) -> None:
    async def work() -> None:
        release = asyncio.Event()

        async def held(model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
            await release.wait()
            return await echo(model, requests, rows, budget_s)

        async with connected(held, max_calls=2) as (listener, channel):
            x = [{"x": np.zeros(1)}]
            two = [asyncio.create_task(channel.infer("m@1", x, 1, 10)) for _ in range(2)]
            await asyncio.sleep(0.05)
            with pytest.raises(Overloaded, match="takes no more calls: 2 are in flight"):
                await channel.infer("m@1", x, 1, 10)
            stopping = asyncio.create_task(listener.stop(10))
            await asyncio.sleep(0.05)
            assert channel.is_draining
            with pytest.raises(Overloaded, match="draining"):
                await channel.infer("m@1", x, 1, 10)
            assert not stopping.done()
            release.set()
            await asyncio.gather(*two, stopping)

    run(work())


def test_a_closed_connection_fails_its_calls_at_once(run: Run) -> None:
    async def work() -> None:
        stopped = asyncio.Event()

        async def forever(*_: Any) -> Computed:
            try:
                await asyncio.sleep(60)
            finally:
                stopped.set()
            raise AssertionError

        async with connected(forever) as (listener, channel):
            calls = [asyncio.create_task(channel.infer("m@1", [{"x": np.zeros(1)}], 1, 10)) for _ in range(3)]
            await asyncio.sleep(0.05)
            for accepted in list(listener.connections):
                accepted.end("killed")
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(outcome, ReplicaLost)
            assert not channel.is_open
            with pytest.raises(EngineUnavailable):
                await channel.infer("m@1", [{"x": np.zeros(1)}], 1, 10)
            await stopped.wait()

    run(work())


def test_a_closed_port_and_a_server_that_never_replies_are_unavailable(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "CONNECT_S", 0.2)

    async def work() -> None:
        with socket.socket() as dumb:
            dumb.bind(("127.0.0.1", 0))
            host, port = dumb.getsockname()
            with pytest.raises(EngineUnavailable, match=f"no connection to {host}:{port}"):
                await Channel("pool").open(Address(host=host, port=port, key="00"))
            dumb.listen()
            with pytest.raises(EngineUnavailable, match=f"no connection to {host}:{port}: no answer"):
                await Channel("pool").open(Address(host=host, port=port, key="00"))

    run(work())
