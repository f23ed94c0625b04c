"""Requests of several lengths share an engine call, and each is answered as it is alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import serve
from ray.serve._private.config import DeploymentConfig
from tests.pipeline import sequences
from tests.unit.padded_model import CHEAP_CALLS, DEAR_CALLS, GENERATOR, PADDING, ROWS, Engine, check, described, request

from enginehouse.contract.config import ModelConfig
from enginehouse.contract.errors import DeadlineExceeded, InferenceFailed
from enginehouse.contract.latency import LatencyTable
from enginehouse.contract.tensors import Computed, Tensors
from enginehouse.engines.padding import Padder
from enginehouse.pools.batching import LoadedModel


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


async def test_without_times_to_rely_on_little_is_padded(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    asked = [request(length) for length in (20, 30, 120)]
    for times in (None, DEAR_CALLS.model_copy(update={"verdict": "INVALID"})):
        engine.calls.clear()
        check(asked, await send(loaded(monkeypatch, engine, times), asked))
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
