"""`enginehouse serve` on a machine without any cluster: ready, answering, and gone without a trace."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from tests.integration import bundles
from tests.integration.cluster import adopt_orphans, clean_env, descendants, describe, free_port, wait_for
from tests.integration.load import by_http


def _ctrl_c(process: subprocess.Popen[str]) -> None:
    # A terminal sends it to the whole foreground group.
    os.killpg(process.pid, signal.SIGINT)


def _terminate(process: subprocess.Popen[str]) -> None:
    process.terminate()


def _loaded(process: psutil.Process, library: str) -> bool:
    try:
        return library in Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("end", [_ctrl_c, pytest.param(_terminate, marks=pytest.mark.slow)], ids=["Ctrl-C", "SIGTERM"])
def test_serve_answers_and_ends_with_everything_it_started(
    tmp_path: Path, request: pytest.FixtureRequest, end: Callable[[subprocess.Popen[str]], None]
) -> None:
    adopt_orphans()
    store, port = tmp_path / "store", free_port()
    bundles.publish(store, "scale", "1", 2)
    before = descendants()
    names = {pid: child.name() for pid, child in before.items()}
    # Ray writes its token file into the home.
    # Short enough for Ray's sockets, and too long for HAProxy's: those have to go elsewhere.
    temporary = Path(tempfile.mkdtemp(prefix="enginehouse-test-", dir="/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(temporary))
    env = clean_env(HOME=str(tmp_path), TMPDIR=str(temporary), PYTHONUNBUFFERED="1")
    folders = set(Path("/tmp").glob("eh-*"))
    output = (tmp_path / "output").open("w")
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "enginehouse", "serve", str(store), "--port", str(port)],
        env=env, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    said = (tmp_path / "output").read_text
    try:
        wait_for(lambda: "Ctrl-C ends it" in said() or process.poll() is not None, 120, "ready")
        assert process.poll() is None, said()
        y, backend = by_http(f"127.0.0.1:{port}", "scale")()(np.ones((1, 4), np.float32))
        print(f"first answer after {time.monotonic() - began:.1f} s by {backend}")
        assert y.tolist() == [[2.0] * 4]
        started = {pid: child for pid, child in descendants().items() if pid not in before}
        assert any(_loaded(child, "libopenvino") for child in started.values())
        assert [child for child in started.values() if _loaded(child, "libtorch")] == []
    finally:
        asked = time.monotonic()
        end(process)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    print(f"ended {time.monotonic() - asked:.1f} s after it was asked to, with {process.returncode}")
    left = [child for pid, child in descendants().items() if pid in started]
    assert left == [], describe(left)
    assert descendants().keys() <= before.keys(), describe(descendants().values())
    # Another cluster's workers come and go; its daemons do not.
    daemons = {pid for pid, name in names.items() if name in ("raylet", "gcs_server")}
    assert daemons <= descendants().keys(), "it ended another cluster"
    assert process.returncode == 0, said()
    assert set(Path("/tmp").glob("eh-*")) <= folders
    assert httpx_refuses(port)


def httpx_refuses(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/v2/health/live", timeout=2)
    except httpx.ConnectError:
        return True
    return False


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
