"""Clients that hang keep nobody out of a local server: its HAProxy and routers, over real sockets."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.hostile.__main__ import good
from tests.integration import bundles
from tests.integration.cluster import adopt_orphans
from tests.integration.local_server import LocalServer


@pytest.mark.slow
def test_open_bodies_and_half_sent_heads_cost_no_other_its_answer(tmp_path: Path) -> None:
    adopt_orphans()
    bundles.publish(tmp_path / "store", "scale", "1", 2)
    server = LocalServer(tmp_path, tmp_path / "store")
    try:
        server.wait_ready()
        routers = [process.pid for process in server.left() if process.cmdline()[0].endswith(":Router")]
        for kind, told in {"open-bodies": "408", "open-invented": "404", "half-heads": "408"}.items():
            client = [sys.executable, "-m", "benchmarks.hostile.clients", kind, str(server.port), "14"]
            with subprocess.Popen(client, stdout=subprocess.PIPE, text=True) as hostile:
                beside = asyncio.run(good(server.url, 10))
                seen = json.loads(hostile.communicate()[0])
            print(kind, beside, seen)
            assert not beside.failed, beside
            assert seen[told] > 1000 and seen["opened"] > 2000, seen
        assert [process.pid for process in server.left() if process.cmdline()[0].endswith(":Router")] == routers
    finally:
        server.stop()
