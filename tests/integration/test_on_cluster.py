"""A machine without TensorRT has its engines built on a node with a GPU, and never waits for one in vain."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.integration.cluster import Cluster, adopt_orphans

from enginehouse.contract import probes, tensor_file
from enginehouse.contract.bundle import MANIFEST
from enginehouse.contract.manifest import Artifact, Manifest, SignatureRecord
from enginehouse.contract.store import Store
from enginehouse.contract.tensors import Signature, TensorSpec
from enginehouse.engines.hardware import engine_versions, probe_gpus
from enginehouse.engines.recheck import CHECK_ANSWERS, CHECK_PROBES
from enginehouse.engines.usual import CHECK_REQUESTS

#: What `enginehouse build --on-cluster` does with the cluster; the first argument names the step.
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from enginehouse.contract.bundle import Bundle
from enginehouse.cluster.connect import connected
from enginehouse.contract.errors import EnginehouseError
from enginehouse_build.steps.on_node import make, order_of

def failure(call, *arguments, **options):
    try:
        on_gpu_node(call, *arguments, **options)
    except EnginehouseError as error:
        return type(error).__name__, str(error)

steps, address, folder = sys.argv[1:]
told = {}
with connected(address):
    import ray
    from enginehouse.cluster.gpu_task import on_gpu_node

    order = order_of(Bundle.open(Path(folder)), "tensorrt-fp32")
    for step in steps.split():
        if step == "absent":
            told[step] = failure(make, order)
        elif step == "build":
            made = on_gpu_node(make, order)
            told[step] = {"requires": made.requires, "bytes": len(made.engine), "reason": made.reason,
                          "parity": made.parity is not None, "table": made.table is not None}
        elif step == "where":
            told[step] = on_gpu_node(ray.util.get_node_ip_address)
        elif step == "refused":
            files = {**order.files, "tensorrt-fp32/model.onnx": b"no model"}
            told[step] = failure(make, type(order)(order.artifact, files))
        elif step == "broken":
            told[step] = failure(Path.read_bytes, Path("/nowhere"))
        elif step == "dead":
            told[step] = failure(signal.raise_signal, signal.SIGKILL)
        elif step == "slow":
            told[step] = failure(__import__("time").sleep, 60, limit_s=1)
        elif step == "taken":
            @ray.remote(num_gpus=0.5)
            class Holder:
                pass
            holder = Holder.remote()
            ray.get(holder.__ray_ready__.remote())
            told[step] = failure(make, order, start_s=3)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head on its own; nothing is deployed, so the GPU of a node that joins is free."""
    adopt_orphans()
    cluster = Cluster()
    yield cluster
    cluster.stop()


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """A bundle as the build has it when the TensorRT step begins: the model, the manifest, the check requests."""
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((6, 4), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    for name in ("tensorrt-fp32", "check"):
        (tmp_path / name).mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "tensorrt-fp32" / "model.onnx")
    requests = [{"x": rng.standard_normal((rows, 6), dtype=np.float32)} for rows in (1, 2, 8)]
    tensor_file.write(tmp_path / CHECK_REQUESTS, requests)
    tensor_file.write(tmp_path / CHECK_ANSWERS, [{"y": request["x"] @ weight} for request in requests])
    probes.write(tmp_path / CHECK_PROBES, [])
    signature = Signature(
        (TensorSpec("x", np.dtype(np.float32), (None, 6)),), (TensorSpec("y", np.dtype(np.float32), (None, 4)),)
    )
    manifest = Manifest(
        name="linear",
        version="1",
        created="2026-01-01T00:00:00Z",
        source="here",
        signature=SignatureRecord.of(signature),
        max_batch=8,
        artifacts=(Artifact(name="tensorrt-fp32", format="tensorrt", precision="fp32", status="unverified"),),
    )
    (tmp_path / MANIFEST).write_text(manifest.model_dump_json())
    return tmp_path


def run(cluster: Cluster, steps: str, folder: Path) -> dict[str, Any]:
    ended = cluster.run(sys.executable, "-c", PROGRAM, steps, cluster.address, str(folder), timeout=120)
    assert ended.returncode == 0, ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return told


def test_without_a_labelled_node_the_refusal_is_quick_and_names_the_label(cluster: Cluster, unfinished: Path) -> None:
    began = time.monotonic()
    kind, text = run(cluster, "absent", unfinished)["absent"]
    assert kind == "ConfigError"
    assert "enginehouse.io/accelerator=gpu" in text and "--on-cluster" in text
    assert time.monotonic() - began < 20


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_the_engine_is_built_on_the_labelled_node_and_every_failure_there_has_a_reason(
    cluster: Cluster, unfinished: Path
) -> None:
    node = cluster.add("gpu")
    told = run(cluster, "where build refused broken dead slow taken", unfinished)
    assert told["where"] == node.ip
    built = told["build"]
    assert built["bytes"] > 1000
    assert built["requires"]["flavour"] in ("tensorrt", "tensorrt-rtx")
    assert built["requires"]["version"] == engine_versions()[built["requires"]["flavour"]]
    if probe_gpus().devices:
        assert (built["parity"], built["table"], built["reason"]) == (True, True, "")
    else:
        # The node only says that it has a GPU: TensorRT-RTX builds all the same, and nobody pretends it was verified.
        assert (built["parity"], built["table"]) == (False, False)
        assert probe_gpus().reason in built["reason"]
    assert told["refused"][0] == "ConversionFailed" and "cannot read the model" in told["refused"][1]
    assert told["broken"][0] == "BuildError" and "FileNotFoundError" in told["broken"][1]
    assert told["dead"][0] == "BuildError" and "died" in told["dead"][1]
    assert told["slow"][0] == "BuildError" and "did not finish within 1 s" in told["slow"][1]
    assert told["taken"][0] == "ConfigError" and "no whole GPU became free on 127.0.0.4 within 3 s" in told["taken"][1]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_a_build_has_only_its_tensorrt_step_on_the_cluster(cluster: Cluster, unfinished: Path, tmp_path: Path) -> None:
    if len(cluster.nodes) < 2:
        cluster.add("gpu")
    model, store = unfinished / "tensorrt-fp32" / "model.onnx", tmp_path / "store"
    ended = cluster.run(
        *(sys.executable, "-m", "enginehouse", "build", str(model), "--name", "linear", "--store", str(store)),
        *("--formats", "onnx,tensorrt", "--precisions", "fp32", "--max-batch", "8", "--quick"),
        *("--on-cluster", cluster.address),
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    bundle = Store(store).open("linear", "1")
    steps = {step.name: step.outcome for step in bundle.manifest.steps}
    assert steps["make tensorrt-fp32 on a GPU node"] == "done"
    assert "verify tensorrt-fp32" not in steps
    onnx_artifact, engine = bundle.manifest.artifacts
    assert onnx_artifact.status == "ready"
    if not probe_gpus().devices:
        assert engine.status == "unverified"
        assert probe_gpus().reason in (engine.reason or "")
    assert {file.path for file in engine.files} == {"tensorrt-fp32/model.engine", "tensorrt-fp32/model.onnx"}
    assert len(bundle.verified_files(engine)) == 2
