"""The end of a local `enginehouse serve`, however it comes: who is answered, and what is left on the machine."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration import bundles
from tests.integration.cluster import adopt_orphans, clean_env, wait_for
from tests.integration.local_server import LocalServer

#: A slow model's products of matrices: some 0.5 s, the more so beside others.
IDLES = 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    bundles.publish(store, "scale", "1", 2)
    bundles.publish(store, "slow", "1", 3, idles=IDLES)
    return store


@pytest.fixture
def start(store: Path, tmp_path: Path) -> Iterator[Callable[..., LocalServer]]:
    """Starts servers with a home and a folder for temporary files of their own, and leaves none."""
    adopt_orphans()
    started = []
    temporary = Path(tempfile.mkdtemp(prefix="e", dir="/tmp"))

    def one(*options: str, **env: Any) -> LocalServer:
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

    after = start("--models", "scale", host="::1")
    assert len(folders(after)) == 1 and folders(after).isdisjoint(left_over)
    assert f"http://[::1]:{after.port}/" in after.said()
    assert after.infer("scale").status_code == 200
    # Whoever asks a router past HAProxy may have meant another server, which had its port before.
    ports = after.router_ports()
    assert len(ports) == 2
    for port in ports:
        for path in ("/-/healthz", "/v2/health/ready", "/v2/models/scale"):
            stranger = httpx.get(f"http://127.0.0.1:{port}{path}")
            assert (stranger.status_code, "another server" in stranger.text) == (503, True)


class Asked(threading.Thread):
    """One request after `delay` seconds, over a connection of its own: its status or what became of it."""

    def __init__(self, server: LocalServer, model: str, rows: int = 1, delay: float = 0) -> None:
        super().__init__(daemon=True)
        self.server, self.model, self.rows, self.delay = server, model, rows, delay
        self.outcome: object = None
        self.said = ""
        self.start()

    def run(self) -> None:
        time.sleep(self.delay)
        try:
            answer = self.server.infer(self.model, self.rows)
        except httpx.HTTPError as error:
            self.outcome = type(error).__name__
        else:
            self.outcome, self.said = answer.status_code, answer.text


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_who_is_under_way_is_answered_and_who_comes_late_is_told_to_come_again(
    start: Callable[..., LocalServer], number: signal.Signals
) -> None:
    server = start(TMPDIR="/tmp/" + "x" * 130, HOME="unset")
    with httpx.Client(base_url=server.url, timeout=30) as client:
        assert client.get("/v2/health/ready").status_code == 200
        # As many rows as a batch may have: one after the other on each of two pools.
        under_way = [Asked(server, "slow", bundles.MAX_BATCH) for _ in range(8)]
        late = [Asked(server, "scale", delay=0.05 * nth) for nth in range(100)]
        time.sleep(0.3)
        server.signal(number)
        signalled = time.monotonic()
        wait_for(lambda: client.get("/v2/health/ready").status_code == 503, 5, "not ready", every=0.02)
        assert any(thread.outcome is None for thread in under_way), "not slow enough for this test"
        server.process.wait(40)
    ended = time.monotonic() - signalled
    for thread in [*under_way, *late]:
        thread.join(60)
    print(f"ended {ended:.1f} s after the signal")
    assert server.process.returncode == 0, server.said()
    assert [thread.outcome for thread in under_way] == [200] * 8, [thread.said for thread in under_way]
    outcomes = [thread.outcome for thread in late]
    # Answered, told to send it again, and, once nobody listens, not connected: nothing between.
    assert set(outcomes) <= {200, 503, "ConnectError"}, outcomes
    assert outcomes.count(503) > 3, outcomes
    assert all("this server is ending" in thread.said for thread in late if thread.outcome == 503)
    assert server.left() == [] and server.refuses_connections()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_it_at_once(start: Callable[..., LocalServer]) -> None:
    server = start("--models", "slow")
    waiting = [Asked(server, "slow", bundles.MAX_BATCH) for _ in range(16)]
    time.sleep(0.3)
    server.signal(signal.SIGINT)
    time.sleep(1)
    assert server.process.poll() is None
    server.signal(signal.SIGINT)
    asked = time.monotonic()
    server.process.wait(10)
    print(f"ended {time.monotonic() - asked:.1f} s after the second one")
    server.gone_after(5)
    for thread in waiting:
        thread.join(60)
    assert any(thread.outcome != 200 for thread in waiting), "it had nothing to wait for"
    assert "Traceback" not in server.said()
    assert folders(server) == set()
