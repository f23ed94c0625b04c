"""A scorer's own engine: loaded and called as in a pool of serving, without Serve."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.integration.bundles import CPU_POOL_FIRST, MAX_BATCH, publish, publish_poisonous

from enginehouse.contract.bundle import MANIFEST
from enginehouse.contract.config import ModelConfig
from enginehouse.contract.errors import EnginehouseError, EngineUnavailable, InvalidInput
from enginehouse.contract.manifest import EngineKind, Manifest
from enginehouse.contract.tensors import Tensors
from enginehouse.engines import Engine, load_engine
from enginehouse.faces.scoring.ways import via_engines
from enginehouse.faces.scoring.ways.engine_pools import EnginePool
from enginehouse.faces.scoring.ways.via_engines import OwnEngine, OwnEngineOf
from enginehouse.pools import engine_calls, loading

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

MODEL = ModelConfig(name="m", version="1")
Make = Callable[..., OwnEngine]


class Watched:
    """An engine that notes the rows of its calls, each of which takes so many seconds more."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.signature, self.precision, self.inputs_only = engine.signature, engine.precision, engine.inputs_only
        self.calls: list[int] = []
        self.seconds = 0.0
        self.is_closed = False

    def infer(self, inputs: Tensors) -> dict[str, np.ndarray]:
        self.calls.append(len(inputs["x"]))
        time.sleep(self.seconds)
        return self._engine.infer(inputs)

    def close(self) -> None:
        self._engine.close()
        self.is_closed = True


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Every engine that is loaded, in the order in which they were."""
    loaded: list[Watched] = []

    def watch(*args: object, **options: object) -> Watched:
        loaded.append(Watched(load_engine(*args, **options)))  # type: ignore[arg-type]
        return loaded[-1]

    monkeypatch.setattr(loading, "load_engine", watch)
    return loaded


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[OwnEngine] = []

    def own(*kinds: EngineKind, config: ModelConfig = MODEL, threads: int = 1) -> OwnEngine:
        pool = EnginePool("the pool", "cpu", kinds, "", ("node",), 1, threads, MAX_BATCH, None, 0.0, 0.0, {})
        made.append(pickle.loads(pickle.dumps(OwnEngineOf(str(tmp_path), config, pool)))())
        return made[-1]

    yield own
    for each in made:
        each.close()


def rows(count: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(4 * count, dtype=np.float32).reshape(count, 4)}


async def test_rows_are_answered_in_full_batches_of_the_engine(
    tmp_path: Path, make: Make, engines: list[Watched]
) -> None:
    publish(tmp_path, "m", "1", 3.0)
    own = make("onnxruntime-cpu")
    # The table says 0.1 ms for one row, and nothing of more.
    assert own.batch_rows == 32 * MAX_BATCH
    assert own.in_flight == 2
    engines[0].calls.clear()
    answered = await own.answer(rows(20))
    np.testing.assert_array_equal(answered.outputs["y"], rows(20)["x"] * 3)
    assert (answered.backend, answered.version) == ("the pool", "1")
    assert engines[0].calls == [8, 8, 4]
    assert 0 < own.busy_s < 5
    own.close()
    assert engines[0].is_closed


async def test_a_limit_of_the_catalog_holds(tmp_path: Path, make: Make, engines: list[Watched]) -> None:
    publish(tmp_path, "m", "1", 3.0)
    own = make("onnxruntime-cpu", config=MODEL.model_copy(update={"max_batch_size": 2}))
    engines[0].calls.clear()
    await own.answer(rows(5))
    assert engines[0].calls == [2, 2, 1]


async def test_others_may_work_while_it_computes_and_the_next_call_is_ready(
    tmp_path: Path, make: Make, engines: list[Watched]
) -> None:
    publish(tmp_path, "m", "1", 3.0)
    own = make("onnxruntime-cpu")
    await own.answer(rows(1))
    engines[0].seconds = 0.1
    began = time.monotonic()
    calls = asyncio.gather(*(own.answer(rows(1)) for _ in range(3)))
    turns = 0
    while not calls.done():
        await asyncio.sleep(0.005)
        turns += 1
    assert turns > 20
    assert 0.3 <= time.monotonic() - began < 0.6


async def test_what_does_not_fit_the_model_is_refused(tmp_path: Path, make: Make) -> None:
    publish(tmp_path, "m", "1", 3.0)
    own = make("onnxruntime-cpu")
    with pytest.raises(InvalidInput, match="float64"):
        await own.answer({"x": np.zeros((1, 4))})


def bounded(bundle: Path, kind: EngineKind) -> None:
    """Have the artifact for this kind be right for finite numbers only."""
    known = Manifest.parse((bundle / MANIFEST).read_text(), "")
    name = "onnx-fp32" if kind == "onnxruntime-cpu" else "openvino-fp32"
    artifacts = tuple(
        each.model_copy(update={"inputs_only": {kind: {"x": "finite"}}}) if each.name == name else each
        for each in known.artifacts
    )
    (bundle / MANIFEST).write_text(known.model_copy(update={"artifacts": artifacts}).model_dump_json())


async def test_values_that_its_artifact_is_not_right_for_are_answered_by_the_one_that_is(
    tmp_path: Path, make: Make, engines: list[Watched]
) -> None:
    bounded(publish(tmp_path, "m", "1", 3.0, CPU_POOL_FIRST), "openvino-cpu")
    own = make("openvino-cpu", "onnxruntime-cpu")
    assert (await own.answer(rows(2))).backend == "the pool"
    assert len(engines) == 1
    strange = {"x": np.array([[1, np.nan, np.inf, 2]], np.float32)}
    answers = await asyncio.gather(own.answer(strange), own.answer(strange))
    assert [answer.backend for answer in answers] == ["onnxruntime-cpu"] * 2
    np.testing.assert_array_equal(answers[0].outputs["y"], strange["x"] * 3)
    assert len(engines) == 2
    assert (await own.answer(rows(2))).backend == "the pool"


async def test_values_that_no_engine_is_right_for_are_refused_with_the_reason(tmp_path: Path, make: Make) -> None:
    bounded(publish(tmp_path, "m", "1", 3.0, CPU_POOL_FIRST), "openvino-cpu")
    strange = {"x": np.array([[1, 2, 3, 4], [1, np.nan, 3, 4]], np.float32)}
    with pytest.raises(InvalidInput, match=r"answers finite 'x' only, and input 'x' has NaN at \[1, 1\]"):
        await make("openvino-cpu").answer(strange)
    # Another one that is not there is said to be missing, and rows that are right are still answered.
    own = make("openvino-cpu", "tensorrt")
    with pytest.raises(InvalidInput, match=r"nothing here for the pool: the bundle has no tensorrt artifact"):
        await own.answer(strange)
    assert (await own.answer(rows(1))).backend == "the pool"


async def test_what_the_engine_refuses_is_the_fault_of_the_rows(tmp_path: Path, make: Make) -> None:
    publish_poisonous(tmp_path, "m")
    own = make("onnxruntime-cpu")
    with pytest.raises(EnginehouseError) as refused:
        await own.answer({"x": np.array([[1], [7]], np.int64)})
    assert refused.value.fault.is_of_content
    assert (await own.answer({"x": np.array([[8]], np.int64)})).outputs["y"].tolist() == [[-(2**63)]]


async def test_an_engine_that_is_stuck_for_good_is_given_up(
    tmp_path: Path, make: Make, engines: list[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, "m", "1", 3.0)
    own = make("onnxruntime-cpu")
    await own.answer(rows(1))
    monkeypatch.setattr(engine_calls, "STUCK_S", 0.05)
    monkeypatch.setattr(via_engines, "STUCK_FOR_GOOD_S", 0.2)
    monkeypatch.setattr(via_engines, "LOOK_S", 0.05)
    monkeypatch.setattr(via_engines, "PAUSE_S", 0.05)
    engines[0].seconds = 1.0
    with pytest.raises(EngineUnavailable, match="one call takes"):
        await own.answer(rows(1))
    with pytest.raises(EngineUnavailable, match="one call takes"):
        await own.answer(rows(1))
    await asyncio.sleep(1.0)
    engines[0].seconds = 0.0
    assert len((await own.answer(rows(1))).outputs["y"]) == 1


def test_nothing_of_serve_is_imported_for_it() -> None:
    code = "import sys, enginehouse.faces.scoring.ways.via_engines as _; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    modules = set(found.stdout.split())
    assert "enginehouse.pools.loading" in modules
    assert not modules & {"ray.serve", "pandas", "torch"}
