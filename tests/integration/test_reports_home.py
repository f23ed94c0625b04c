"""A local server connects to nobody and runs nothing that lies where it was started; nor do Ray and its replicas."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration import bundles
from tests.integration.cluster import adopt_orphans
from tests.integration.local_server import LocalServer
from tests.planted import plant, those_that_ran
from tests.recorder import Recorder


@pytest.mark.slow
def test_a_server_reports_nothing_and_runs_nothing_that_lies_beside_it(tmp_path: Path) -> None:
    adopt_orphans()
    recorder = Recorder(tmp_path / "recorder")
    folder = tmp_path / "home"
    folder.mkdir()
    ran = plant(folder)
    bundles.publish(tmp_path / "store", "scale", "1", 2)
    bundles.publish(tmp_path / "store", "other", "1", 3, bundles.CPU_POOL_FIRST)
    environment = {name: recorder.environment[name] for name in ("PYTHONPATH",)}
    server = LocalServer(folder, tmp_path / "store", **environment, CI="unset", NNCF_CI="unset")
    try:
        server.wait_ready()
        backends = {server.infer(model).headers["enginehouse-backend"] for model in ("scale", "other")}
        assert backends == {"onnxruntime-cpu", "openvino-cpu"}
    finally:
        server.stop()
    assert those_that_ran(ran) == set()
    assert recorder.processes() >= 3
    assert recorder.strangers() == []
    assert not (folder / "intel").exists()
