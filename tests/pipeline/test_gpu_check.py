"""gpu-check from end to end on this machine: with a GPU it measures it, without one every part still runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.gpu.lab import PARTS

from enginehouse.engines.hardware import probe_gpus

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(bool(probe_gpus().devices), reason="this machine has a GPU: run scripts/gpu-check itself")
def test_without_a_gpu_every_part_runs_on_the_cpu_and_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--store", str(tmp_path / "store"), "--output", str(tmp_path)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + (tmp_path / "gpu-dry.log").read_text()[-4000:]
    found = json.loads((tmp_path / "gpu-dry.json").read_text())
    assert found["dry"] == probe_gpus().reason
    parts = {part["part"]: part for part in found["parts"]}
    assert [(name, part["outcome"]) for name, part in parts.items()] == [(part.name, "done") for part in PARTS]
    rows = {name: part["rows"] for name, part in parts.items()}
    # What has a stand-in on the CPU is really computed, and what has none says why.
    assert all(row["verdict"] == "passes" for row in rows["parity"] if "not run" not in row)
    assert {row["model"] for row in rows["latency"] if "fp16 p50 ms" in row} == {"digits", "encoder"}
    assert {row["answers"] for row in rows["transfer"] if "answers" in row} == {"right"}
    assert all(row["verdict"] == "does not grow" for row in rows["memory"])
    assert all(row["failed"] == 0 for row in rows["conformance"] if "failed" in row)
    assert any(row.get("lost or wrong") == 0 and row["requests"] for row in rows["served"])
    missing = [row["not run"] for name in rows for row in rows[name] if "not run" in row and name != "conformance"]
    assert all("no GPU" in reason or "not available here" in reason for reason in missing), missing
    assert "nothing here was measured on a GPU" in (tmp_path / "gpu-dry.md").read_text()
