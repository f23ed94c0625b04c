"""Models as a pool holds them, around real and around slow engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from ray import serve
from ray.serve._private.config import DeploymentConfig
from tests.conformance.conftest import MAX_ROWS, write_bundle
from tests.conformance.models import Case

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.store import Store
from enginehouse.contract.tensors import Signature, Tensors, TensorSpec
from enginehouse.engines import load_engine
from enginehouse.pools.batching import LoadedModel

TABLE = np.arange(10, dtype=np.float32) ** 2
#: Looks numbers up in a table of 10: a number that is not in it fails the whole batch it is in.
LOOKUP = Case(
    "lookup",
    Signature((TensorSpec("x", np.dtype(np.int64), (None, 2)),), (TensorSpec("y", np.dtype(np.float32), (None, 2)),)),
    helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "lookup",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["rows", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])],
        [numpy_helper.from_array(TABLE, "table")],
    ),
    lambda rng, rows: {"x": rng.integers(0, 10, (rows, 2))},
    lambda inputs: {"y": TABLE[inputs["x"]]},
)
RNG = np.random.default_rng(5)

Load = Callable[[Case], LoadedModel]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """A model as a pool holds it. Serve's batch queue asks its replica one thing: how many requests it may hold."""
    replica = SimpleNamespace(_deployment_config=DeploymentConfig(max_ongoing_requests=256))
    monkeypatch.setattr(serve, "get_replica_context", lambda: replica)
    loaded: list[LoadedModel] = []

    def load_case(case: Case) -> LoadedModel:
        store = Store(tmp_path)
        folder = store.staging()
        write_bundle(folder, case, "onnx", "fp32", "1")
        bundle = Bundle.open(Path(store.publish(folder, case.name, "1")))
        artifact = bundle.manifest.artifacts[0]
        model = LoadedModel(
            load_engine("onnxruntime-cpu", bundle, artifact, threads=1),
            "onnxruntime-cpu",
            bundle.manifest,
            artifact,
            MAX_ROWS,
        )
        loaded.append(model)
        return model

    yield load_case
    for model in loaded:
        model.engine.close()


class Slow:
    """Doubles after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.signature = LOOKUP.signature

    def infer(self, inputs: Tensors) -> dict[str, np.ndarray]:
        time.sleep(self.seconds)
        return {"y": inputs["x"].astype(np.float32)}

    def close(self) -> None:
        """Nothing to let go of."""
