"""Whatever Python lies beside a model, a build of it does not run; a factory's own neighbours it does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from tests.planted import plant, those_that_ran

FACTORY = """
import torch
from neighbour import WIDTH
from enginehouse_build import ModelSource

def tiny():
    return ModelSource(torch.nn.Linear(WIDTH, 2), {"x": torch.ones(1, WIDTH)})
"""


def _built(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    options = ["--formats", "onnx,openvino", "--precisions", "fp32", "--max-batch", "2", "--threads", "1", "--quick"]
    return subprocess.run(
        [sys.executable, "-m", "enginehouse", "build", source, "--name", "tiny", "--store", "../store", *options],
        cwd=folder, env={**os.environ, "ENGINEHOUSE_CACHE": str(folder.parent / "cache")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_a_build_runs_nothing_that_lies_beside_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    model = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y]),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.save(model, folder / "model.onnx")
    ran = plant(folder)
    done = _built(folder, "model.onnx")
    assert those_that_ran(ran) == set()
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_factory_has_its_neighbours(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "factory.py").write_text(FACTORY)
    (folder / "neighbour.py").write_text("WIDTH = 4\n")
    for source in ("factory:tiny", "factory.py:tiny"):
        done = _built(folder, source)
        assert done.returncode == 0, done.stdout + done.stderr
