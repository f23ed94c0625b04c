"""A build connects to nobody and leaves nothing in the home: libraries that report to their makers are kept from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.recorder import Recorder


@pytest.mark.parametrize(
    "code",
    [
        "import enginehouse.engines, openvino",
        "from enginehouse.engines import openvino; import openvino.tools.ovc",
        "import enginehouse_build.steps.isolate, openvino, nncf",
        "from enginehouse_build.convert import openvino_int8; import nncf; nncf.strip",
        "from enginehouse_build.judge import absence; print(absence.missing('openvino-cpu'))",
    ],
)
def test_an_import_reports_nothing(tmp_path: Path, code: str) -> None:
    recorder = Recorder(tmp_path / "recorder")
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(
        [sys.executable, "-c", f"{code}\nimport time; time.sleep(0.5)"],
        env=recorder.environment | {"HOME": str(home)}, timeout=120, check=True,
    )  # fmt: skip
    assert recorder.strangers() == []
    assert list(home.rglob("*")) == []


@pytest.mark.slow
def test_a_build_in_all_precisions_reports_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "recorder")
    home = tmp_path / "home"
    home.mkdir()
    options = ["--formats", "onnx,openvino", "--precisions", "fp32,int8", "--max-batch", "2", "--threads", "1"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "enginehouse", "build", "examples.digits:digits", "--name", "digits"),
            *("--store", str(tmp_path / "store"), *options),
        ],
        env=recorder.environment | {"HOME": str(home), "ENGINEHOUSE_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "openvino-int8" in done.stdout + done.stderr
    assert recorder.strangers() == []
    assert not (home / "intel").exists()
