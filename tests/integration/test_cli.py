"""The commands, as subprocesses, against the running cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from tests.integration.cluster import wait_for
from tests.integration.conftest import House, deploy_app
from tests.integration.load import by_http
from tests.unit.foreign_bodies import FOREIGN


def test_status_shows_models_and_backends(house: House) -> None:
    result = house.cluster.cli("status")
    assert result.returncode == 0, result.stderr
    for text in ("scale@1", "other@1", "gpu-pool", "cpu-pool", "live", "1/1", str(house.store)):
        assert text in result.stdout
    document = json.loads(house.cluster.cli("status", "--json").stdout)
    assert {entry["name"]: entry["state"] for entry in document["models"]} == {"scale": "ready", "other": "ready"}


def test_models_list(house: House) -> None:
    assert set(house.cluster.cli("models", "list").stdout.split()) == {"scale@1", "other@1"}


def test_explain_shows_how_a_request_would_be_routed(house: House) -> None:
    shown = house.cluster.cli("explain", "scale", "--rows", "2")
    assert shown.returncode == 0, shown.stderr
    # Below them are the reasons.
    first, second = [line.split() for line in shown.stdout.splitlines() if "-pool" in line][:2]
    assert (first[:2], second[:2]) == (["1", "gpu-pool"], ["2", "cpu-pool"]), shown.stdout
    late = json.loads(house.cluster.cli("explain", "scale", "--deadline-ms", "0.01", "--json").stdout)
    assert [entry["may_answer"] for entry in late["backends"]] == [False, False]
    assert all(entry["reason"].startswith("takes ") for entry in late["backends"])


def test_infer_prints_outputs_and_who_answered(house: House, tmp_path: Path) -> None:
    url = f"http://{house.url}"
    result = house.cluster.cli("infer", "scale", '{"x": [[1, 2, 3, 4]]}', "--url", url)
    assert json.loads(result.stdout) == {"y": [[2, 4, 6, 8]]}, result.stderr
    assert "backend gpu-pool" in result.stderr
    np.savez(tmp_path / "in.npz", x=np.full((3, 4), 5, np.float32))
    target = tmp_path / "out.npz"
    result = house.cluster.cli("infer", "other@1", str(tmp_path / "in.npz"), "--url", url, "--output", str(target))
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(np.load(target)["y"], np.full((3, 4), 35, np.float32))
    result = house.cluster.cli("infer", "nowhere", '{"x": [[1, 2, 3, 4]]}', "--url", url)
    assert result.returncode == 1
    assert "nowhere" in result.stderr


def test_a_picture_is_called_a_picture_by_the_command_and_by_the_server(house: House, tmp_path: Path) -> None:
    picture, name = FOREIGN["jpeg"]
    (tmp_path / "x.jpg").write_bytes(picture)
    url = f"http://{house.url}"
    result = house.cluster.cli("infer", "scale", str(tmp_path / "x.jpg"), "--url", url)
    assert result.returncode == 1
    assert f"x.jpg is {name}; decode it first" in result.stderr
    assert "Traceback" not in result.stderr
    answer = httpx.post(f"{url}/v2/models/scale/infer", content=picture)
    assert answer.status_code == 400
    assert f"seems to be {name}" in answer.json()["error"]
    assert "the model wants x: FP32[*,4]" in answer.json()["error"]


def test_adding_a_model_that_is_not_in_the_store_is_refused(house: House) -> None:
    result = house.cluster.cli("models", "add", "absent")
    assert result.returncode == 1
    assert "absent" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_printed_config_deploys_and_no_engine_pretends(house: House, request: pytest.FixtureRequest) -> None:
    """Default pools: those for GPUs find a node that only says it has one, and must say so instead of computing."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    result = house.cluster.run(
        *(sys.executable, "-m", "enginehouse", "serve", str(house.store), "--models", "scale@2", "--print-config"),
        *("--port", str(house.cluster.http_port)),
    )
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = yaml.safe_load(result.stdout)
    request.addfinalizer(lambda: _put_back(house))
    _get_global_client().deploy_apps(ServeDeploySchema(**document), _blocking=False)

    def states() -> dict[str, str]:
        try:
            return {entry["pool"]: entry["state"] for entry in house.model("scale")["backends"]}
        except Exception:
            return {}

    wanted = {"openvino-cpu": "live", "onnxruntime-cpu": "live", "onnxruntime-cuda": "failing"}
    wait_for(lambda: states().items() >= wanted.items(), 90, "CPU pools live, CUDA refused", every=0.5)
    # This bundle has nothing for TensorRT.
    wait_for(lambda: states()["tensorrt"] == "unavailable", 60, "TensorRT has nothing to load", every=0.5)
    reasons = {entry["pool"]: entry["reason"] for entry in house.model("scale")["backends"]}
    assert "EngineUnavailable" in reasons["onnxruntime-cuda"]
    y, backend = by_http(house.url, "scale")()(np.ones((1, 4), np.float32))
    assert y.tolist() == [[3.0] * 4]
    assert backend == "onnxruntime-cpu"


def _put_back(house: House) -> None:
    deploy_app(house.cluster, house.catalog)
    for name in ("scale", "other"):
        house.wait_live(name, "gpu-pool", "cpu-pool", timeout=90)
    ready = f"http://{house.url}/v2/health/ready"
    wait_for(lambda: httpx.get(ready, timeout=10).status_code == 200, 60, "HTTP")
