"""A router sends requests of several lengths in one call, and each is answered as it is alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from tests.pipeline import sequences
from tests.unit.padded_model import DEAR_CALLS, ROWS, SIGNATURE, answer, check, described, request
from tests.unit.test_policy import backend

from enginehouse.contract.config import FIRST, LAST, ModelConfig
from enginehouse.contract.errors import InferenceFailed
from enginehouse.contract.tensors import Computed, Tensors, Timing, stack
from enginehouse.engines.padding import Padder
from enginehouse.routing.backends import Backends
from enginehouse.routing.coalescing import Coalescer
from enginehouse.routing.view import ModelVersion


class Receiver:
    """A backend that answers as the model, and remembers what it was sent."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.open = asyncio.Event()

    async def __call__(self, requests: Sequence[Tensors], rows: int, budget_s: float, *_: object) -> Computed:
        inputs = stack(requests)
        self.calls.append(inputs["input_ids"].shape)
        await self.open.wait()
        if (inputs["input_ids"] >= sequences.WORDS).any():
            raise InferenceFailed("no such word")
        return answer(inputs), Timing(0.0, 1.0, rows)


def coalescer(receiver: Receiver, most_bytes: int = 1 << 20) -> Coalescer:
    queue = Coalescer(receiver, ROWS, most_bytes)
    known, made = described(DEAR_CALLS)
    queue.padder = Padder.of(known, made, "onnxruntime-cpu", DEAR_CALLS)
    return queue


def ask_all(queue: Coalescer, asked: Sequence[Tensors], priority: int = 5) -> list[asyncio.Task[Computed]]:
    until = time.monotonic() + 30
    return [
        asyncio.create_task(queue.infer(inputs, len(inputs["input_ids"]), until + at / 1e3, priority))
        for at, inputs in enumerate(asked)
    ]


async def test_a_router_sends_lengths_together() -> None:
    receiver = Receiver()
    queue = coalescer(receiver)
    asked = [request(length) for length in (40, 5, 30, 17, 9)]
    tasks = ask_all(queue, asked)
    await asyncio.sleep(0.01)
    assert queue.waiting_rows == 4
    receiver.open.set()
    check(asked, await asyncio.gather(*tasks))
    # The first found a free slot.
    assert receiver.calls == [(1, 40), (4, 32)]
    assert queue.waiting_rows == 0
    assert queue.is_unused


async def test_a_router_sends_what_is_of_a_better_priority_first() -> None:
    receiver = Receiver()
    queue = coalescer(receiver)
    usual = [request(12, 3) for _ in range(2)]
    last, first = [request(13, 3) for _ in range(2)], [request(100, 2), request(14, 2)]
    tasks = ask_all(queue, [request(12)]) + ask_all(queue, last, LAST)
    tasks += ask_all(queue, usual) + ask_all(queue, first, FIRST)
    await asyncio.sleep(0.01)
    receiver.open.set()
    check([*last, *usual, *first], (await asyncio.gather(*tasks))[1:])
    # Both of the first priority, and beside them what has room: one of the usual ones.
    assert [call[0] for call in receiver.calls] == [1, 7, 6, 3]


async def test_a_router_keeps_to_its_bytes_as_they_are_padded_and_finds_who_fails() -> None:
    receiver = Receiver()
    queue = coalescer(receiver, 8000)
    # Together they are 128 long: 2,048 bytes a row.
    asked = [request(10) for _ in range(6)] + [request(120)]
    poison = request(20)
    poison["input_ids"][0, 0] = sequences.WORDS
    tasks = ask_all(queue, [request(9), *asked, poison])
    await asyncio.sleep(0.01)
    receiver.open.set()
    *answers, broken = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(broken, InferenceFailed)
    check(asked, answers[1:])  # type: ignore[arg-type]
    assert all(rows * length * 16 <= 8000 or rows == 1 for rows, length in receiver.calls)


async def test_a_router_pads_only_for_replicas_that_take_it() -> None:
    known, _ = described(DEAR_CALLS)
    version = ModelVersion(ModelConfig(name="m", version="1"), known, SIGNATURE)
    backends = Backends(lambda _: Receiver(), routers=1)
    for pads in (False, True, False):
        state = backend("p", (1, 2.0))._replace(pads=pads)
        (state,) = backends.states(version, [state])
        assert (backends.get(version, state).queue.padder is not None) == pads
