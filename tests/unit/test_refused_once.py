"""What only the engine can tell is wrong with a request is asked once: a less strict engine would answer it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ray import serve
from ray.serve._private.config import DeploymentConfig
from tests.conformance.conftest import MAX_ROWS, write_bundle
from tests.conformance.models import Case
from tests.unit.loaded_models import LOOKUP

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import EnginehouseError, InferenceFailed, InvalidInput
from enginehouse.contract.manifest import FORMAT_OF, EngineKind
from enginehouse.contract.store import Store
from enginehouse.contract.tensors import Computed, Tensors
from enginehouse.engines import load_engine
from enginehouse.pools.batching import LoadedModel
from enginehouse.routing.failover import Failover
from enginehouse.routing.policy import Demand


class Hosted:
    """A backend that has been failing: a model in a real engine, which counts its calls."""

    failed_repeatedly = True

    def __init__(self, folder: Path, kind: EngineKind, case: Case = LOOKUP) -> None:
        # Without a domain in its signature, as a bundle of the release before: nobody knows of the table's 10 rows.
        store = Store(folder)
        staging = store.staging()
        write_bundle(staging, case, FORMAT_OF[kind], "fp32", "1")
        bundle = Bundle.open(Path(store.publish(staging, case.name, "1")))
        used = bundle.manifest.artifacts[0]
        engine = load_engine(kind, bundle, used, threads=1)
        self.calls = 0
        self.fault: EnginehouseError | None = None
        self.is_lax = False
        self._infer, engine.infer = engine.infer, self._counted  # type: ignore[method-assign]
        self.model = LoadedModel(engine, kind, bundle.manifest, used, MAX_ROWS)

    def _counted(self, inputs: Tensors) -> dict[str, np.ndarray]:
        self.calls += 1
        if self.fault is not None:
            raise self.fault
        if self.is_lax:
            return {"y": np.zeros_like(inputs["x"])}
        return self._infer(inputs)

    async def infer(self, inputs: Tensors, rows: int, until: float, priority: int) -> Computed:
        return await self.model.infer([inputs], rows, until - time.monotonic())

    def count_demand(self, rows: int, size: int | None) -> None:
        pass


@pytest.fixture(autouse=True)
def replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve's batch queue asks its replica one thing: how many requests it may hold."""
    replica = SimpleNamespace(_deployment_config=DeploymentConfig(max_ongoing_requests=256))
    monkeypatch.setattr(serve, "get_replica_context", lambda: replica)


@pytest.fixture
def backends(tmp_path: Path) -> Iterator[list[Hosted]]:
    kinds: list[EngineKind] = ["onnxruntime-cpu", "openvino-cpu"]
    hosted = [Hosted(tmp_path / kind, kind) for kind in kinds]
    for each in hosted:
        # Those of the warm-up.
        each.calls = 0
    yield hosted
    for each in hosted:
        each.model.engine.close()


def failover(backends: list[Hosted], inputs: Tensors) -> Failover:
    """A request on its way to the first of `backends`, or to whichever failover thinks of next."""
    choices = [
        SimpleNamespace(
            backend=SimpleNamespace(pool=str(place), replicas=1), reason="", predicted_ms=math.inf, place=place
        )
        for place in range(len(backends))
    ]
    ranking = SimpleNamespace(
        rank=lambda *_, **__: choices,
        wake_better=lambda *_: None,
        backend=lambda _, choice: backends[choice.place],
    )
    demand = Demand(1)
    return Failover(ranking, None, inputs, demand, 0, time.monotonic() + 20)  # type: ignore[arg-type]


async def test_what_an_engine_refuses_is_asked_once_and_of_no_other(backends: list[Hosted]) -> None:
    strict, lax = backends
    wild = {"x": np.array([[3, 1_000_000]])}
    # The other one would answer, with something, as TensorRT does.
    lax.is_lax = True
    outputs, _ = await lax.infer(wild, 1, time.monotonic() + 20, 0)
    assert outputs["y"].tolist() == [[0, 0]]
    lax.calls = 0
    with pytest.raises(InvalidInput, match=r"onnxruntime-cpu: .*idx=1000000 must be within .*\[-10,9\]") as caught:
        await failover(backends, wild).answer()
    assert caught.value.status == 400
    assert (strict.calls, lax.calls) == (1, 0)


async def test_what_fails_because_the_engine_is_sick_is_asked_of_another_one(backends: list[Hosted]) -> None:
    sick, well = backends
    sick.fault = InferenceFailed("onnxruntime-cpu: std::bad_alloc")
    answer = await failover(backends, {"x": np.array([[3, 9]])}).answer()
    assert answer.outputs["y"].tolist() == [[9, 81]]
    assert (sick.calls, well.calls) == (1, 1)
