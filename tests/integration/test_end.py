"""The end of a local `enginehouse serve`, however it comes: who is answered, and what is left on the machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration import bundles
from tests.integration.cluster import adopt_orphans, clean_env
from tests.integration.local_server import LocalServer


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    bundles.publish(store, "scale", "1", 2)
    return store


@pytest.fixture
def start(store: Path, tmp_path: Path) -> Iterator[Callable[..., LocalServer]]:
    """Starts servers with a home and a folder for temporary files of their own, and leaves none."""
    adopt_orphans()
    started = []
    temporary = Path(tempfile.mkdtemp(prefix="e", dir="/tmp"))

    def one(*options: str, **env: str) -> LocalServer:
        server = LocalServer(tmp_path, store, *options, **{"TMPDIR": str(temporary)} | env)
        started.append(server)
        server.wait_ready()
        return server

    try:
        yield one
    finally:
        for server in started:
            server.stop()
        shutil.rmtree(temporary)


def folders(server: LocalServer) -> set[Path]:
    return set(Path(server.temporary).glob("eh-*"))


def test_a_killed_one_leaves_no_process_and_no_port_and_the_next_one_no_folder(
    start: Callable[..., LocalServer], store: Path, tmp_path: Path
) -> None:
    # With a proxy that nobody may be asked through: 127.0.0.2, where a local Ray is, is no usual exception.
    server = start("--models", "scale", http_proxy="http://127.0.0.1:9", no_proxy="localhost,127.0.0.1")
    assert server.infer("scale").json()["outputs"][0]["data"] == [2.0] * 4
    # While HAProxy has its place, "in use" names it.
    second = subprocess.run(
        [sys.executable, "-m", "enginehouse", "serve", str(store), "--port", str(server.port)],
        env=clean_env(HOME=str(tmp_path)), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    (haproxy,) = [process for process in server.left() if process.name() == "haproxy"]
    assert second.returncode == 1
    assert f"in use by process {haproxy.pid} (" in second.stderr.replace("\n", " ")
    assert "Traceback" not in second.stderr
    left_over = folders(server)
    assert len(left_over) == 1
    server.process.kill()
    server.process.wait()
    print(f"gone after {server.gone_after(10):.1f} s")

    after = start("--models", "scale")
    assert len(folders(after)) == 1 and folders(after).isdisjoint(left_over)
