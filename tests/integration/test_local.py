"""`enginehouse serve` on a machine without any cluster: ready, answering, and gone without a trace."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from tests.integration import bundles
from tests.integration.cluster import adopt_orphans, clean_env, descendants, describe
from tests.integration.local_server import LocalServer


def _loaded(process: psutil.Process, library: str) -> bool:
    try:
        return library in Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_serve_answers_and_ends_with_everything_it_started(
    tmp_path: Path, request: pytest.FixtureRequest, number: signal.Signals
) -> None:
    adopt_orphans()
    store = tmp_path / "store"
    bundles.publish(store, "scale", "1", 2)
    others = {pid: child.name() for pid, child in descendants().items()}
    # Short enough for Ray's sockets, and too long for HAProxy's: those have to go elsewhere.
    temporary = Path(tempfile.mkdtemp(prefix="enginehouse-test-", dir="/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(temporary))
    folders = set(Path("/tmp").glob("eh-*"))
    began = time.monotonic()
    server = LocalServer(tmp_path, store, TMPDIR=str(temporary))
    request.addfinalizer(server.stop)
    server.wait_ready()
    answer = server.infer("scale").json()
    print(f"first answer after {time.monotonic() - began:.1f} s")
    assert answer["outputs"][0]["data"] == [2.0] * 4
    started = server.left()
    assert any(_loaded(process, "libopenvino") for process in started)
    assert [process for process in started if _loaded(process, "libtorch")] == []
    asked = time.monotonic()
    server.signal(number)
    server.process.wait(60)
    print(f"ended {time.monotonic() - asked:.1f} s after it was asked to, with {server.process.returncode}")
    assert server.left() == [], describe(server.left())
    # Another cluster's workers come and go; its daemons do not.
    daemons = {pid for pid, name in others.items() if name in ("raylet", "gcs_server")}
    assert daemons <= descendants().keys(), "it ended another cluster"
    assert server.process.returncode == 0, server.said()
    assert set(Path("/tmp").glob("eh-*")) <= folders
    assert server.refuses_connections()


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    store = tmp_path / "store"
    bundles.publish(store, "scale", "1", 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run(
            [sys.executable, "-m", "enginehouse", "serve", str(store), "--port", str(port)],
            env=clean_env(HOME=str(tmp_path)), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert str(port) in result.stderr
    assert "Traceback" not in result.stderr
