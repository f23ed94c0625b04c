"""The in-process limit: real engines in processes of their own, and what happens when one cannot be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.integration import bundles

from enginehouse.contract.errors import ArtifactMissing, DigestMismatch
from enginehouse.tools.bench.limit import WINDOWS, Engines, Order


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return bundles.publish(tmp_path, "scale", "1", 3)


def test_engines_answer_and_are_timed_together(bundle: Path) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    with Engines(Order(bundle, "onnxruntime-cpu", "onnx-fp32", threads=1), count=2) as engines:
        assert engines.precision == "fp32"
        np.testing.assert_array_equal(engines.infer({"x": x})["y"], x * 3)
        limit = engines.limit({"x": x}, rows=2, seconds=0.3)
    assert (limit.engines, limit.threads, limit.rows, limit.artifact) == (2, 1, 2, "onnx-fp32")
    assert len(limit.windows) == WINDOWS
    assert min(limit.windows) <= limit.rows_per_s * 1.5
    assert max(limit.windows) >= limit.rows_per_s * 0.8
    # Two engines at once cannot use more than two CPUs.
    assert 0 < limit.cpu_ms * limit.rows_per_s * 1e-3 < 2.2


def test_an_engine_that_cannot_be_loaded_says_why(bundle: Path) -> None:
    with pytest.raises(ArtifactMissing, match="onnx-int8"):
        Engines(Order(bundle, "onnxruntime-cpu", "onnx-int8", threads=1), count=1)
    bundles.flip(bundle / "onnx-fp32" / "model.onnx")
    with pytest.raises(DigestMismatch):
        Engines(Order(bundle, "onnxruntime-cpu", "onnx-fp32", threads=1), count=2)
