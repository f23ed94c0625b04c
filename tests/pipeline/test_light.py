"""The nine models of the onnx package: old files with made-up weights, among them badly conditioned ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from enginehouse.contract.manifest import EngineKind
from enginehouse.contract.parity import LIMITS, compare
from enginehouse.engines import load_engine
from enginehouse_build.inputs.recipe import PRECISIONS, Recipe
from enginehouse_build.pipeline import build

from .test_adopt import LIGHT, Runtime

KINDS: dict[str, EngineKind] = {"onnx": "onnxruntime-cpu", "openvino": "openvino-cpu"}
MODELS = [path.stem for path in sorted(LIGHT.glob("*.onnx"))]


def test_there_are_nine() -> None:
    assert len(MODELS) == 9


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_each_artifact_is_within_its_gate_or_says_why_not(name: str, tmp_path: Path) -> None:
    source = LIGHT / f"{name}.onnx"
    (value,) = [each for each in onnx.load(source).graph.input if len(each.type.tensor_type.shape.dim) == 4][:1]
    rows = np.random.default_rng(0).standard_normal((12, 3, 224, 224)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", **{value.name: rows[:8]})
    recipe = Recipe.of(
        source=str(source), name=name, store=str(tmp_path / "store"), precisions=PRECISIONS, max_batch=4,
        samples=tmp_path / "samples.npz", threads=2,
    )  # fmt: skip
    bundle = build(recipe)
    manifest = bundle.manifest
    assert manifest.signature.batched
    assert manifest.artifact("onnx-fp32").status == "ready"
    original = Runtime(source)
    fresh = {value.name: rows[8:]}
    want = original.row_by_row(fresh)
    for artifact in manifest.artifacts:
        print(name, artifact.name, artifact.status, artifact.parity and artifact.parity.relative_l2, artifact.reason)
        if artifact.status == "ready":
            assert artifact.parity is not None
            engine = load_engine(KINDS[artifact.format], bundle, artifact, threads=2)
            # Other rows than those of the gate; its limit is for the worst of those.
            assert compare(engine.infer(fresh), want).relative_l2 <= 2 * LIMITS[artifact.precision].relative_l2
            engine.close()
        else:
            assert artifact.reason
    for step in manifest.steps:
        # The largest has 144 million weights.
        assert step.peak_mib < 4000


@pytest.mark.slow
@pytest.mark.slow
def test_what_a_badly_conditioned_model_does_to_engines_is_explained(tmp_path: Path) -> None:
    # Its logits are equal and 1e10: whatever rounding separates decides the softmax alone.
    source = LIGHT / "light_squeezenet.onnx"
    recipe = Recipe.of(
        source=str(source),
        name="m",
        store=str(tmp_path),
        formats=("onnx", "openvino"),
        precisions=("fp32",),
        max_batch=2,
    )
    manifest = build(recipe).manifest
    assert "is the same for all" in "; ".join(manifest.remarks)
    artifact = manifest.artifact("openvino-fp32")
    assert artifact.status == "failed"
    assert "ill-conditioned: moving its weights" in (artifact.reason or "")
