"""Requests of several lengths share an engine call, and each is answered as it is alone."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import serve
from ray.serve._private.config import DeploymentConfig
from tests.pipeline import sequences
from tests.unit.test_policy import artifact, backend, manifest

from enginehouse.contract.config import ModelConfig
from enginehouse.contract.errors import DeadlineExceeded, InferenceFailed
from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import Artifact, Axis, Manifest, SignatureRecord
from enginehouse.contract.signature_record import PaddedInput, Padding
from enginehouse.contract.tensors import Computed, Domain, Signature, Tensors, TensorSpec, Timing, stack
from enginehouse.engines.padding import Padder
from enginehouse.pools.batching import LoadedModel
from enginehouse.routing.backends import Backends
from enginehouse.routing.coalescing import Coalescer
from enginehouse.routing.policy import FIRST, LAST
from enginehouse.routing.view import ModelVersion

INT64 = np.dtype(np.int64)
SIGNATURE = Signature(
    (
        TensorSpec("input_ids", INT64, (None, None), Domain(0, sequences.WORDS)),
        TensorSpec("attention_mask", INT64, (None, None)),
    ),
    (TensorSpec("mean", np.dtype(np.float64), (None, 12)), TensorSpec("y", np.dtype(np.float64), (None, None, 12))),
)
PADDING = Padding(
    inputs=(
        PaddedInput(name="input_ids", dim=1, value=0),
        PaddedInput(name="attention_mask", dim=1, value=0, tells=True, mark=1),
    ),
    outputs=(("y", 1),),
    edges=(8, 16, 24, 32, 64, 128),
)
ROWS = 8
GENERATOR = np.random.default_rng(2)
STATES = sequences.HARMLESS["masked attention, all states"]


def answer(inputs: Tensors) -> dict[str, np.ndarray]:
    x = sequences.attention(*sequences.parts(dict(inputs))[:2])
    return {"mean": sequences.mean(x, inputs["attention_mask"].astype(float)), "y": x}


def request(length: int, rows: int = 1) -> dict[str, np.ndarray]:
    mask = (np.arange(length) < GENERATOR.integers(1, length + 1, (rows, 1))).astype(np.int64)
    return {"input_ids": GENERATOR.integers(0, sequences.WORDS, (rows, length)), "attention_mask": mask}


class Engine:
    """Answers as the numpy model, and remembers the shapes of its calls. A call takes `seconds`."""

    signature = SIGNATURE
    precision = "fp32"
    inputs_only: dict[str, int] = {}

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.seconds = seconds

    def infer(self, inputs: Tensors) -> dict[str, np.ndarray]:
        self.calls.append(inputs["input_ids"].shape)
        time.sleep(self.seconds)
        if (inputs["input_ids"] >= sequences.WORDS).any():
            raise InferenceFailed("no such word")
        return answer(inputs)

    def close(self) -> None:
        """Nothing to let go of."""


def described(table: LatencyTable | None = None) -> tuple[Manifest, Artifact]:
    made = artifact("a", "onnx").model_copy(update={"padding": {"onnxruntime-cpu": PADDING}})
    axis = Axis(name="s", min=1, opt=16, max=200, dims=(("input_ids", 1), ("attention_mask", 1)))
    known = manifest([made], *([table] if table else []))
    return known.model_copy(
        update={"signature": SignatureRecord.of(SIGNATURE), "axes": (axis,), "max_batch": ROWS}
    ), made


def table(call_ms: float, position_ms: float) -> LatencyTable:
    points = [
        LatencyPoint(rows=rows, size=size, median_ms=ms, p90_ms=ms, min_ms=ms, count=3)
        for rows, size in itertools.product((1, 8), (8, 128))
        for ms in [call_ms + rows * size * position_ms]
    ]
    return LatencyTable(engine="onnxruntime-cpu", artifact="a", threads=1, host="h", points=tuple(points))


CHEAP_CALLS, DEAR_CALLS = table(0.0, 1.0), table(1e4, 1.0)


@pytest.fixture
def engine() -> Engine:
    return Engine(0.002)


def loaded(
    monkeypatch: pytest.MonkeyPatch,
    engine: Engine,
    times: LatencyTable | None = DEAR_CALLS,
    wait_ms: float = 100,
    rows: int = ROWS,
) -> LoadedModel:
    replica = SimpleNamespace(_deployment_config=DeploymentConfig(max_ongoing_requests=256))
    monkeypatch.setattr(serve, "get_replica_context", lambda: replica)
    known, made = described(times)
    padder = Padder.of(known, made, "onnxruntime-cpu", times)
    model = LoadedModel(engine, "onnxruntime-cpu", known, made, rows, padder=padder)
    model.set_batching(ModelConfig(name="m", version="1", batch_wait_ms=wait_ms))
    return model


async def send(model: LoadedModel, asked: Sequence[Tensors]) -> list[Computed]:
    return await asyncio.gather(*(model.infer([inputs], len(inputs["input_ids"]), 30) for inputs in asked))


def check(asked: Sequence[Tensors], answers: Sequence[Computed]) -> None:
    for inputs, (outputs, _) in zip(asked, answers, strict=True):
        for name, want in answer(inputs).items():
            assert outputs[name].shape == want.shape
            np.testing.assert_allclose(outputs[name], want, rtol=1e-9, atol=1e-12)


async def test_lengths_share_a_call_and_each_row_has_its_own_answer(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    asked = [request(length, rows) for length, rows in ((5, 1), (30, 2), (17, 1), (9, 1), (6, 3))]
    model = loaded(monkeypatch, engine)
    check(asked, await send(model, asked))
    assert engine.calls == [(8, 32)]
    assert model.pads


async def test_nothing_is_padded_where_that_takes_longer(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    asked = [request(length) for length in (5, 120, 7, 117, 30)]
    check(asked, await send(loaded(monkeypatch, engine, CHEAP_CALLS), asked))
    # Those of one edge are together all the same.
    assert sorted(engine.calls) == [(1, 30), (2, 8), (2, 128)]


async def test_without_a_table_little_is_padded(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    asked = [request(length) for length in (20, 30, 120)]
    check(asked, await send(loaded(monkeypatch, engine, None), asked))
    assert sorted(engine.calls) == [(1, 120), (2, 32)]


async def test_what_the_proof_does_not_cover_is_computed_with_its_like_only(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    blank, other, long = request(12), request(11), request(150)
    blank["attention_mask"][:] = 0
    other["attention_mask"][0, 0] = 2
    asked = [blank, request(14), other, long, request(13), {name: array.copy() for name, array in long.items()}]
    check([each for each in asked if each is not blank], [
        each for each, inputs in zip(await send(loaded(monkeypatch, engine), asked), asked, strict=True)
        if inputs is not blank
    ])  # fmt: skip
    assert sorted(engine.calls) == [(1, 11), (1, 12), (2, 16), (2, 150)]


async def test_a_request_that_fails_its_call_fails_alone(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    model = loaded(monkeypatch, engine)
    asked, poison = [request(9), request(20)], request(14)
    poison["input_ids"][0, 3] = sequences.WORDS
    tasks = [asyncio.create_task(model.infer([each], 1, 30)) for each in (asked[0], poison, asked[1])]
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(done[1], InferenceFailed)
    check(asked, [done[0], done[2]])  # type: ignore[list-item]


async def test_under_load_all_are_right_and_the_first_is_never_passed_over(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    model = loaded(monkeypatch, engine, wait_ms=0)
    lengths = np.clip(GENERATOR.lognormal(np.log(20), 0.8, 150), 1, 150).astype(int)
    asked = [request(int(length), 1 + at % 3) for at, length in enumerate(lengths)]
    order: list[int] = []

    async def ask(at: int) -> Computed:
        found = await model.infer([asked[at]], len(asked[at]["input_ids"]), 30 + at / 1e3)
        order.append(at)
        return found

    check(asked, await asyncio.gather(*map(ask, range(len(asked)))))
    assert len(engine.calls) < 70
    # Whoever is first by deadline is in the next call: nobody waits for more calls than there are before it.
    assert max(place - at for place, at in enumerate(order)) < len(asked)


async def test_a_deadline_that_passes_while_others_are_chosen_is_told(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    model = loaded(monkeypatch, engine, wait_ms=50)
    late = asyncio.create_task(model.infer([request(9)], 1, 0.01))
    timely = [request(20), request(15)]
    check(timely, await send(model, timely))
    with pytest.raises(DeadlineExceeded):
        await late


@given(
    st.lists(st.tuples(st.integers(1, 10), st.sampled_from(PADDING.edges)), min_size=1, max_size=30),
    st.integers(1, 16),
    st.sampled_from([CHEAP_CALLS, DEAR_CALLS, None]),
)
def test_companions_fit_and_each_costs_less_than_apart(
    waiting: list[tuple[int, int]], most: int, times: LatencyTable | None
) -> None:
    known, made = described(times)
    padder = Padder.of(known, made, "onnxruntime-cpu", times)
    assert padder is not None
    first, *others = waiting
    chosen = padder.companions(first, others, most)
    assert len(set(chosen)) == len(chosen)
    if chosen:
        rows = first[0] + sum(others[at][0] for at in chosen)
        assert rows <= padder.most_rows(most, max(first[1], *(others[at][1] for at in chosen)))
    if times is CHEAP_CALLS:
        assert {others[at][1] for at in chosen} <= {first[1]}


def test_those_nearest_in_length_go_first() -> None:
    known, made = described(DEAR_CALLS)
    padder = Padder.of(known, made, "onnxruntime-cpu", DEAR_CALLS)
    assert padder is not None
    others = [(1, 128), (1, 24), (1, 16), (1, 8), (1, 16), (1, 32)]
    assert padder.companions((1, 16), others, 4) == [2, 4, 3] or padder.companions((1, 16), others, 4) == [2, 4, 1]


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


async def test_of_short_rows_a_call_has_more(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    asked = [request(length) for length in (5, 7, 6, 8, 3, 40, 41, 42)]
    model = loaded(monkeypatch, engine, CHEAP_CALLS, rows=2)
    check(asked, await send(model, asked))
    # Two rows of the usual length, 16, have as many positions as four of 8.
    assert sorted(engine.calls) == [(1, 3), (1, 42), (2, 64), (4, 8)]
    engine.calls.clear()
    model.set_batching(ModelConfig(name="m", version="1", batch_wait_ms=100, max_batch_size=2))
    check(asked, await send(model, asked))
    assert max(rows for rows, _ in engine.calls) == 2
