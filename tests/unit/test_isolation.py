"""While a suspected request computes, nothing else computes in its process: real threads, real engines."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.unit.loaded_models import LOOKUP, Load, Slow

from enginehouse.contract.errors import DeadlineExceeded, Overloaded
from enginehouse.contract.tensors import Tensors
from enginehouse.pools import isolation
from enginehouse.pools.batching import LoadedModel
from enginehouse.pools.isolation import Isolation

X = [{"x": np.array([[1, 2]])}]


class Inside:
    """Who is inside, as those inside see it."""

    def __init__(self) -> None:
        self.isolation = Isolation()
        self.now: list[str] = []
        self.seen: list[tuple[str, ...]] = []
        self.most = 0

    def compute(self, who: str, seconds: float = 0.002) -> None:
        enter = getattr(self.isolation, "alone" if who.startswith("alone") else "beside")
        with enter(time.monotonic() + 20):
            self.now.append(who)
            time.sleep(seconds)
            self.seen.append(tuple(self.now))
            self.most = max(self.most, len(self.now))
            self.now.remove(who)


@pytest.mark.parametrize("seed", range(5))
def test_who_computes_alone_has_no_company_whatever_the_order(seed: int) -> None:
    inside = Inside()
    callers = [f"{random.Random(f'{seed}{n}').choice(['alone', 'beside', 'beside'])} {n}" for n in range(80)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(inside.compute, callers))
    assert len(inside.seen) == len(callers)
    assert all(len(seen) == 1 for seen in inside.seen if any(who.startswith("alone") for who in seen))
    assert inside.most > 1, "those beside each other do not wait for each other"


@pytest.mark.parametrize(("stream", "one"), [("beside", "alone"), ("alone", "beside")])
def test_neither_kind_starves_the_other(stream: str, one: str) -> None:
    inside, stop = Inside(), threading.Event()

    def go_on(number: int) -> None:
        for turn in itertools.count():
            if stop.is_set():
                return
            inside.compute(f"{stream} {number} {turn}", 0.01)

    with ThreadPoolExecutor(5) as threads:
        streams = [threads.submit(go_on, number) for number in range(4)]
        time.sleep(0.05)
        began = time.monotonic()
        inside.compute(one)
        took_s = time.monotonic() - began
        stop.set()
        for ended in streams:
            ended.result(10)
    assert took_s < 1


@pytest.mark.parametrize("held", ["alone", "beside"])
def test_every_wait_ends_at_its_own_deadline_and_holds_nobody_up_after_it(held: str) -> None:
    entrance = Isolation()
    with ThreadPoolExecutor(1) as other, getattr(entrance, held)(time.monotonic() + 1):

        def enter(how: str, wait_s: float) -> float:
            began = time.monotonic()
            with pytest.raises(TimeoutError), getattr(entrance, how)(began + wait_s):
                pytest.fail("it is not alone")
            return time.monotonic() - began

        assert 0.1 <= other.submit(enter, "alone", 0.1).result(10) < 1
        if held == "alone":
            assert 0.1 <= other.submit(enter, "beside", 0.1).result(10) < 1
        else:
            # Who gave up left no trace in the queue.
            def beside() -> None:
                with entrance.beside(time.monotonic() + 0.1):
                    pass

            other.submit(beside).result(10)


@pytest.mark.parametrize("lasts", ["loading", "beside"])
def test_nobody_waits_to_be_alone_until_what_is_lasting_is_over(lasts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "STILL_S", 0.2)
    entrance, out = Isolation(), 0.0 if lasts == "loading" else 0.2
    with ThreadPoolExecutor(3) as others, getattr(entrance, lasts)(time.monotonic() + 1):

        def refused() -> float:
            began = time.monotonic()
            with pytest.raises(TimeoutError), entrance.alone(began + 20):
                pytest.fail("it is not alone")
            return time.monotonic() - began

        def enter(how: str, *more: bool) -> tuple[float, float, bool | None]:
            with getattr(entrance, how)(time.monotonic() + 20, *more) as is_alone:
                entered = time.monotonic()
                time.sleep(0.2)
                return entered, time.monotonic(), is_alone

        # Whoever wants to be really alone is told so, be it first in the queue or not.
        assert all(out - 0.1 <= waited.result(10) < out + 1 for waited in [others.submit(refused) for _ in range(2)])
        # Others enter, one at a time; and while one is inside nobody else begins, not even a load.
        began = time.monotonic()
        both = [others.submit(enter, "alone", True) for _ in range(2)]
        time.sleep(0.05)
        third = others.submit(enter, "loading" if lasts == "beside" else "beside")
        first, second = sorted(entered.result(10) for entered in both)
        assert (first[2], second[2]) == (False, False)
        assert first[0] - began < 1
        assert first[1] <= second[0] and second[1] <= third.result(10)[0]


def test_a_call_that_ends_soon_is_waited_for_and_then_it_is_alone() -> None:
    entrance = Isolation()
    with ThreadPoolExecutor(2) as others:

        def beside() -> None:
            with entrance.beside(time.monotonic() + 1):
                time.sleep(0.2)

        for company in (False, True):
            inside = others.submit(beside)
            time.sleep(0.05)
            with entrance.alone(time.monotonic() + 20, company) as is_alone:
                assert is_alone and len(entrance._inside) == 1
            inside.result(10)


class Recorder(Slow):
    """Notes when it computes, together with all of its kind."""

    spans: list[tuple[str, float, float]]

    def __init__(self, name: str, seconds: float, spans: list[tuple[str, float, float]]) -> None:
        super().__init__(seconds)
        self.name, self.spans = name, spans

    def infer(self, inputs: Tensors) -> dict[str, np.ndarray]:
        began = time.monotonic()
        answer = super().infer(inputs)
        self.spans.append((self.name, began, time.monotonic()))
        return answer


def recorded(load: Load, name: str, seconds: float, spans: list[tuple[str, float, float]]) -> LoadedModel:
    model = load(dataclasses.replace(LOOKUP, name=name))
    model.engine = Recorder(name, seconds, spans)  # type: ignore[assignment]
    return model


async def test_while_one_model_computes_a_suspect_no_model_of_the_process_computes(load: Load) -> None:
    spans: list[tuple[str, float, float]] = []
    first, second, third = (recorded(load, name, 0.01, spans) for name in ("first", "second", "third"))
    begun: list[float] = []

    async def suspect(model: LoadedModel) -> None:
        await model.infer_isolated(X, 1, 20, lambda _: begun.append(time.monotonic()), False)

    async def usual(model: LoadedModel) -> None:
        for _ in range(20):
            await model.infer(X, 1, 20)

    await asyncio.gather(usual(first), usual(second), usual(third), *(suspect(model) for model in (first, second) * 3))
    assert len(begun) == 6
    assert len(spans) == 66
    overlap = lambda one, other: one[1] < other[2] and other[1] < one[2]  # noqa: E731
    for at in begun:
        # What computed first after it had begun.
        own = min((span for span in spans if span[1] >= at), key=lambda span: span[1])
        assert [span for span in spans if overlap(span, own)] == [own]
    assert any(overlap(one, other) for one, other in itertools.combinations(spans, 2)), "the usual ones do not wait"


@pytest.mark.parametrize(("call", "error"), [("infer", DeadlineExceeded), ("infer_isolated", Overloaded)])
async def test_a_call_that_others_keep_waiting_ends_at_its_deadline_and_is_not_computed_later(
    load: Load, call: str, error: type[Exception]
) -> None:
    spans: list[tuple[str, float, float]] = []
    model, begun = recorded(load, "first", 0.0, spans), []

    def hold(release: threading.Event) -> None:
        with isolation.of_this_process.alone(time.monotonic() + 5):
            release.wait(5)

    release = threading.Event()
    with ThreadPoolExecutor(1) as other:
        holding = other.submit(hold, release)
        await asyncio.sleep(0.05)
        extra: tuple[object, ...] = (lambda _: begun.append(1), False) if call == "infer_isolated" else ()
        with pytest.raises(error):
            await asyncio.wait_for(getattr(model, call)(X, 1, 0.1, *extra), 3)
        assert spans == begun == []
        # Nor is one whose caller has given up.
        late = asyncio.create_task(model.infer_isolated(X, 1, 20, lambda _: begun.append(1), False))
        await asyncio.sleep(0.05)
        late.cancel()
        await asyncio.wait([late])
        release.set()
        holding.result(5)
    await model.infer(X, 1, 5)
    assert (len(spans), begun) == (1, [])


async def test_a_suspect_is_answered_soon_whatever_else_goes_on_in_its_process(load: Load) -> None:
    """A load that never ends, seen from here: nobody waits for it."""
    model, begun = recorded(load, "first", 0.0, []), list[bool]()
    release = threading.Event()

    def go_on() -> None:
        with isolation.of_this_process.loading(time.monotonic() + 1):
            release.wait(20)

    with ThreadPoolExecutor(1) as other:
        going_on = other.submit(go_on)
        await asyncio.sleep(0.05)
        try:
            began = time.monotonic()
            with pytest.raises(Overloaded, match="being loaded"):
                await model.infer_isolated(X, 1, 20, begun.append, False)
            for _ in range(5):
                outputs, _ = await model.infer_isolated(X, 1, 20, begun.append, True)
                np.testing.assert_array_equal(outputs["y"], X[0]["x"])
            assert time.monotonic() - began < 1
        finally:
            release.set()
        going_on.result(5)
    await model.infer_isolated(X, 1, 20, begun.append, True)
    assert begun == [False] * 5 + [True]


async def test_a_suspect_waits_no_longer_than_others_may_be_held_up(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "STILL_S", 0.1)
    spans: list[tuple[str, float, float]] = []
    busy, other = recorded(load, "busy", 0.6, spans), recorded(load, "other", 0.0, spans)
    computing = asyncio.create_task(busy.infer(X, 1, 20))
    await asyncio.sleep(0.05)
    with pytest.raises(Overloaded, match="other engines of this process compute"):
        await other.infer_isolated(X, 1, 20, lambda _: None, False)
    assert not computing.done()
    begun: list[bool] = []
    await other.infer_isolated(X, 1, 20, begun.append, True)
    assert begun == [False] and not computing.done()
    await other.infer(X, 1, 20)
    assert not computing.done()
    await computing
