"""Models of a process share its cores: who computes, with how many, and who is next."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from tests.conformance.conftest import MAX_ROWS, write_bundle
from tests.conformance.models import BY_NAME, Case
from tests.unit.loaded_models import LOOKUP, RNG, Load, Slow
from tests.unit.test_waiting_room import item

from enginehouse.contract.bounds import InputBounds
from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import EngineUnavailable, Overloaded
from enginehouse.contract.manifest import EngineKind, Format
from enginehouse.contract.store import Store
from enginehouse.contract.tensors import Tensors
from enginehouse.engines import load_engine
from enginehouse.pools import crashes, engine_calls, splitting
from enginehouse.pools.batching import LoadedModel
from enginehouse.pools.cores import Cores
from enginehouse.pools.engine_calls import Split
from enginehouse.pools.line import Item
from enginehouse.pools.splitting import split_of
from enginehouse.pools.waiting_room import Lanes, WaitingRoom

ROW: list[Tensors] = [{"x": np.zeros((1, 2), np.int64)}]


@contextmanager
def computing(room: WaitingRoom, items: Sequence[Item]) -> Iterator[int]:
    cores = room.begin_call(items)
    try:
        yield cores
    finally:
        room.end_call(cores)


async def entered(rooms: Sequence[WaitingRoom], items: Sequence[Item]) -> list[int]:
    """Positions of the items that are let in within a moment."""
    tasks = [asyncio.create_task(room.enter(one)) for room, one in zip(rooms, items, strict=True)]
    await asyncio.sleep(0.01)
    return [position for position, task in enumerate(tasks) if task.done()]


async def test_a_call_that_is_alone_takes_all_cores_and_any_other_one_lane() -> None:
    cores = Cores(4)
    room = WaitingRoom(8, cores, Lanes(4, 2, 1, 1))
    alone = item()
    await room.enter(alone)
    with computing(room, [alone]) as taken:
        assert (taken, cores.free) == (4, 0)
        waiting = [item() for _ in range(6)]
        tasks = [asyncio.create_task(room.enter(one)) for one in waiting]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in tasks)
    # Six wait for four lanes: two enter together.
    await asyncio.sleep(0.01)
    assert [task.done() for task in tasks] == [True, True, False, False, False, False]
    with computing(room, waiting[:2]) as first:
        await asyncio.sleep(0.01)
        with computing(room, waiting[2:4]) as second:
            await asyncio.sleep(0.01)
            assert (first, second) == (1, 1)
            # The last two have two lanes left.
            assert [task.done() for task in tasks] == [True] * 5 + [False]


async def test_a_model_that_is_not_split_takes_what_is_free_one_call_at_a_time() -> None:
    cores = Cores(4)
    split, whole = WaitingRoom(8, cores, Lanes(4, 8, 1, 8)), WaitingRoom(8, cores)
    beside, first, second = item(), item(), item()
    cores.take(1)
    await split.enter(beside)
    with computing(split, [beside]) as one:
        await whole.enter(first)
        with computing(whole, [first]) as rest:
            assert (one, rest) == (1, 2)
            cores.give(1)
            # A core is free, but its only lane is not.
            assert await entered([whole], [second]) == []


async def test_the_model_whose_call_waits_longest_is_next_whichever_it_is() -> None:
    cores = Cores(1)
    rooms = [WaitingRoom(8, cores) for _ in range(3)]
    busy = item()
    await rooms[0].enter(busy)
    waiting = [item() for _ in rooms]
    with computing(rooms[0], [busy]):
        # In the order of their arrival, which is not that of the rooms.
        tasks = []
        for room in (2, 0, 1):
            waiting[room] = item()
            tasks.append(asyncio.create_task(rooms[room].enter(waiting[room])))
            await asyncio.sleep(0.002)
    for place, room in enumerate((2, 0, 1)):
        await asyncio.sleep(0.005)
        assert [task.done() for task in tasks] == [number <= place for number in range(3)]
        with computing(rooms[room], [waiting[room]]):
            pass
    assert cores.free == 1


async def test_calls_are_short_while_another_model_computes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = Cores(2)
    room, other = WaitingRoom(8, cores, Lanes(2, 4, 1, 1)), WaitingRoom(8, cores)

    async def rows_let_in() -> int:
        busy, waiting = item(), [item() for _ in range(8)]
        await room.enter(busy)
        with computing(room, [busy]):
            tasks = [asyncio.create_task(room.enter(one)) for one in waiting]
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        let_in = [task.done() for task in tasks].count(True)
        for one, task in zip(waiting, tasks, strict=True):
            task.cancel()
            room.leave(one)
        await asyncio.sleep(0.01)
        return let_in

    assert await rows_let_in() == 4
    beside = item()
    await other.enter(beside)
    with computing(other, [beside]):
        pass
    assert await rows_let_in() == 1
    monkeypatch.setattr("enginehouse.pools.cores.COMPANY_S", 0.0)
    assert await rows_let_in() == 4


async def test_one_who_gives_up_before_the_engine_gives_its_cores_back() -> None:
    cores = Cores(2)
    room, other = WaitingRoom(8, cores), WaitingRoom(8, cores)
    gone, next_one = item(), item()
    await room.enter(gone)
    assert await entered([other], [next_one]) == []
    room.leave(gone)
    await asyncio.sleep(0.01)
    with computing(other, [next_one]) as taken:
        assert taken == 2
    assert cores.free == 2


def split_model(whole: LoadedModel, seconds: float, cores: Cores) -> LoadedModel:
    """As `whole`, of two lanes, around engines that take so long, whatever the cores."""
    splits = Split(Slow(seconds), 2, MAX_ROWS, 1, MAX_ROWS)  # type: ignore[arg-type]
    manifest = type("M", (), {"name": "lookup", "max_batch": MAX_ROWS})()
    return LoadedModel(
        Slow(seconds),  # type: ignore[arg-type]
        whole.kind,
        manifest,
        whole.artifact,
        MAX_ROWS,
        cores=cores,
        splits=splits,
    )


async def test_two_lanes_compute_two_calls_at_once(load: Load) -> None:
    cores = Cores(2)
    model = split_model(load(LOOKUP), 0.2, cores)
    began = time.monotonic()
    first = asyncio.create_task(model.infer(ROW, 1, 10))
    await asyncio.sleep(0.01)
    # The first is alone and has all cores; these two share them afterwards.
    answers = await asyncio.gather(first, model.infer(ROW, 1, 10), model.infer(ROW, 1, 10))
    assert 0.38 < time.monotonic() - began < 0.58
    assert [timing.batch_rows for _, timing in answers] == [1, 1, 1]
    # Half of the cores for 0.2 s each, after all of them.
    assert model.busy_s == pytest.approx(0.4, rel=0.2)
    assert cores.free == 2


async def test_a_stuck_engine_does_not_keep_the_cores_from_other_models(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_calls, "STUCK_S", 0.1)
    cores = Cores(2)
    whole = load(LOOKUP)
    stuck, other = split_model(whole, 0.001, cores), split_model(whole, 0.001, cores)
    await stuck.infer(ROW, 1, 10)
    stuck.engine.seconds = 1.0  # type: ignore[attr-defined]
    call = asyncio.create_task(stuck.infer(ROW, 1, 10))
    await asyncio.sleep(0.2)
    waits = asyncio.create_task(other.infer(ROW, 1, 10))
    await asyncio.sleep(0.05)
    assert not waits.done()
    stuck.free_cores()
    await asyncio.wait_for(waits, 0.5)
    with pytest.raises(Overloaded):
        await stuck.infer(ROW, 1, 10)
    await call
    assert cores.free == 2


class Sleeper(Slow):
    """Takes its time for each row, side by side with others or one after the other."""

    def __init__(self, seconds: float, lock: AbstractContextManager[object]) -> None:
        super().__init__(seconds)
        self.lock, self.closed = lock, False
        self.inputs_only: InputBounds = {}

    def infer(self, inputs: Tensors) -> dict[str, np.ndarray]:
        with self.lock:
            time.sleep(self.seconds * len(inputs["x"]))
        return {"y": inputs["x"].astype(np.float32)}

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("gains", [True, False])
def test_a_model_is_split_only_where_calls_beside_each_other_answer_more(
    gains: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = published(tmp_path)
    second = Sleeper(0.01, nullcontext() if gains else threading.Lock())
    asked: dict[str, object] = {}
    monkeypatch.setattr(splitting, "load_engine", lambda *_, **options: asked.update(options) or second)
    whole = Sleeper(0.01, nullcontext())
    split = split_of("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], whole, 4, 8)  # type: ignore[arg-type]
    assert (asked["threads"], asked["concurrency"]) == (8, 4)
    assert (split is not None, second.closed) == (gains, not gains)
    if split is not None:
        assert (split.count, split.cores) == (4, 2)


@pytest.mark.parametrize(
    ("cores", "serial_ms", "lanes"),
    [(2, 5, 2), (4, 5, 4), (16, 5, 4), (64, 5, 16), (64, 0.5, 16), (2, 0, None), (16, 0, None), (64, 0, None)],
)
def test_the_more_of_a_call_is_serial_the_more_calls_share_the_cores(
    cores: int, serial_ms: float, lanes: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Amdahl's law, for up to 64 cores; a row has 64 ms of work that they can share."""
    bundle, loaded = published(tmp_path), []

    def load(*_: object, threads: int, concurrency: int, **__: object) -> Sleeper:
        loaded.append(Sleeper((serial_ms + 64 / (threads / concurrency)) / 1e3, nullcontext()))
        return loaded[-1]

    monkeypatch.setattr(splitting, "load_engine", load)
    monkeypatch.setattr(splitting, "_rate", lambda engine, _, rows, count: rows * count / engine.seconds)
    whole = Sleeper((serial_ms + 64 / cores) / 1e3, nullcontext())
    split = split_of("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], whole, 1, cores)  # type: ignore[arg-type]
    assert (split.count if split else None) == lanes
    assert [engine.closed for engine in loaded] == [split is None or engine is not split.engine for engine in loaded]


def test_what_cannot_be_loaded_twice_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise EngineUnavailable("onnxruntime-cpu", "no memory")

    bundle = published(tmp_path)
    monkeypatch.setattr(splitting, "load_engine", no_memory)
    assert split_of("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], Slow(1), 4, 8) is None  # type: ignore[arg-type]


def test_one_core_is_not_split(tmp_path: Path) -> None:
    bundle = published(tmp_path)
    assert split_of("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], Slow(1), 4, 1) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "form"), [("onnxruntime-cpu", "onnx"), ("openvino-cpu", "openvino")])
def test_calls_at_once_of_a_real_second_engine_get_their_own_answers(
    kind: EngineKind, form: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitting, "GAIN", 0.0)
    bundle = published(tmp_path, BY_NAME["classifier"], form)
    artifact = bundle.manifest.artifacts[0]
    whole = load_engine(kind, bundle, artifact, threads=2)
    split = split_of(kind, bundle, artifact, whole, 4, 2)
    assert split is not None
    requests = [BY_NAME["classifier"].sample(RNG, 1 + number % split.rows) for number in range(64)]
    with ThreadPoolExecutor(split.count) as threads:
        for request, answer in zip(requests, threads.map(split.engine.infer, requests), strict=True):
            for name, expected in BY_NAME["classifier"].expected(request).items():
                np.testing.assert_allclose(answer[name], expected, rtol=1e-4, atol=1e-5)
    split.engine.close()
    whole.close()


def published(tmp_path: Path, case: Case = LOOKUP, form: Format = "onnx") -> Bundle:
    store = Store(tmp_path)
    folder = store.staging()
    write_bundle(folder, case, form, "fp32", "1")
    return Bundle.open(Path(store.publish(folder, case.name, "1")))


def test_a_flag_stays_up_until_the_last_call_has_ended(tmp_path: Path) -> None:
    record = crashes.Crashes(tmp_path)
    flag = record.flag("e" * 32)
    with flag:
        with flag:
            pass
        assert record._memory[0] == 1
    assert record._memory[0] == 0
