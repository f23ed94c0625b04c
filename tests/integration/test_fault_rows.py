"""The measured faults of benchmarks/faults, each with what it has to reach: minutes, under load."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.faults.__main__ import ALL
from tests.integration.cluster import ROOT, clean_env

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("row", ALL)
def test_a_fault_costs_no_more_than_it_may(row: str, tmp_path: Path) -> None:
    if row == "head" and not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed (Debian, Ubuntu: apt install redis-server)")
    figures = tmp_path / "figures"
    command = [sys.executable, "-m", "benchmarks.faults", row, "--output", str(figures)]
    process = subprocess.Popen(command, cwd=ROOT, env=clean_env())
    try:
        process.wait(400)
    finally:
        if process.poll() is None:
            # It ends its cluster.
            process.send_signal(signal.SIGINT)
            process.wait(60)
    assert json.loads(figures.read_text())["reached"], figures.read_text()
