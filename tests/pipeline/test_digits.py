"""The digits CNN, built for every format from real data."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from examples.digits import held_out

from enginehouse.contract.bundle import MANIFEST
from enginehouse.contract.manifest import FORMAT_OF, EngineKind, Manifest
from enginehouse.contract.parity import LIMITS
from enginehouse.engines import load_engine
from enginehouse.engines.hardware import probe_gpus

from .conftest import Built

CPU_KINDS: tuple[EngineKind, ...] = ("onnxruntime-cpu", "openvino-cpu")
#: What a machine without a GPU can judge.
JUDGED = (
    *("onnx-fp32", "onnx-fp16", "onnx-int8"),
    *("openvino-fp32", "openvino-fp16", "openvino-bf16", "openvino-int8"),
)


@pytest.mark.parametrize("kind", CPU_KINDS)
def test_cpu_artifacts_are_ready_and_agree_with_torch(digits: Built, kind: EngineKind) -> None:
    artifact = digits.bundle.manifest.artifact(f"{FORMAT_OF[kind]}-fp32")
    assert (artifact.status, artifact.reason, artifact.effective_precision) == ("ready", None, "fp32")
    parity = artifact.parity
    assert parity is not None
    assert parity.rows == (1, 2, 32)
    assert 0 < parity.relative_l2 <= parity.limit
    assert parity.top1_agreement == 1.0
    assert parity.cosine == pytest.approx(1.0, abs=1e-6)


def test_every_precision_is_within_its_gate_and_keeps_the_accuracy(digits: Built) -> None:
    artifacts = {artifact.name: artifact for artifact in digits.bundle.manifest.artifacts}
    assert [artifacts[name].status for name in JUDGED] == ["ready"] * len(JUDGED)
    for name in JUDGED:
        parity = artifacts[name].parity
        assert parity is not None
        assert 0 < parity.relative_l2 <= LIMITS[artifacts[name].precision].relative_l2
        assert parity.metric is not None
        assert (parity.metric.name, parity.metric.rows) == ("accuracy", 360)
        assert parity.metric.reference >= 0.97
        assert parity.metric.drop <= 0.005
    assert artifacts["onnx-int8"].effective_precision == artifacts["openvino-int8"].effective_precision == "int8"


@pytest.mark.parametrize("name", JUDGED)
def test_served_answers_are_right_on_digits_never_trained_on(digits: Built, name: str) -> None:
    images, labels = held_out()
    artifact = digits.bundle.manifest.artifact(name)
    kind = next(kind for kind in CPU_KINDS if FORMAT_OF[kind] == artifact.format)
    engine = load_engine(kind, digits.bundle, artifact, threads=2)
    predicted = [engine.infer({"image": part})["logits"].argmax(axis=1) for part in np.array_split(images, 12)]
    engine.close()
    assert (np.concatenate(predicted) == labels).mean() >= 0.97


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_engine_is_really_built(digits: Built, precision: str) -> None:
    if importlib.util.find_spec("tensorrt") is None and importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("neither tensorrt nor tensorrt_rtx is installed")
    artifact = digits.bundle.manifest.artifact(f"tensorrt-{precision}")
    files = {Path(file.path).name: file for file in artifact.files}
    # The model goes along for nodes that the engine does not fit.
    assert files.keys() == {"model.engine", "model.onnx"}
    assert files["model.engine"].bytes > 50_000
    assert len(digits.bundle.verified_files(artifact)) == 2
    assert artifact.requires["flavour"] in ("tensorrt", "tensorrt-rtx")
    assert artifact.requires["compute_capability"]
    if artifact.requires["flavour"] == "tensorrt-rtx":
        assert {"8.6", "8.9"} <= set(artifact.requires["compute_capability"].split(","))
    if not probe_gpus().devices:
        assert artifact.status == "unverified"
        assert (artifact.reason or "").startswith("to be verified where it is first loaded: ")
        assert artifact.parity is None


def test_manifest_reads_back_as_written(digits: Built) -> None:
    text = (digits.bundle.path / MANIFEST).read_text()
    manifest = Manifest.parse(text, MANIFEST)
    assert manifest == digits.bundle.manifest
    assert [str(spec) for spec in manifest.signature.signature().inputs] == ["image: UINT8[*,8,8]"]
    assert [str(spec) for spec in manifest.signature.signature().outputs] == ["logits: FP32[*,10]"]
    assert {"python", "torch", "onnx", "onnxruntime", "openvino"} <= set(manifest.versions)
    assert manifest.hardware["cpu"]
    listed = {file.path for artifact in manifest.artifacts for file in artifact.files}
    listed |= {file.path for file in manifest.files}
    on_disk = {path.relative_to(digits.bundle.path).as_posix() for path in digits.bundle.path.rglob("*.*")}
    assert on_disk == listed | {MANIFEST}


def test_latency_is_measured_for_every_engine_that_runs_here(digits: Built) -> None:
    manifest = digits.bundle.manifest
    for kind in CPU_KINDS:
        table = manifest.latency_of(kind, f"{FORMAT_OF[kind]}-fp32")
        assert table is not None
        assert tuple(point.rows for point in table.points) == manifest.batch_buckets() == (1, 2, 4, 8, 16, 32)
        assert all(0 < point.min_ms <= point.median_ms <= point.p90_ms for point in table.points)
        assert all(point.count >= 3 for point in table.points)
    ready = {artifact.name for artifact in manifest.artifacts if artifact.status == "ready"}
    assert {table.artifact for table in manifest.latency} == ready


def test_the_choice_is_one_of_the_measured_for_each_numerics_class(digits: Built) -> None:
    manifest = digits.bundle.manifest
    assert [chosen.numerics for chosen in manifest.chosen] == ["full", "int8"]
    for chosen in manifest.chosen:
        assert manifest.artifact(chosen.artifact).numerics_class == chosen.numerics
        assert manifest.latency_of(chosen.engine, chosen.artifact) is not None
        assert chosen.reasons


def test_bundle_tells_nothing_about_the_machine_it_was_exported_on(digits: Built) -> None:
    content = (digits.bundle.path / "onnx-fp32" / "model.onnx").read_bytes()
    assert b"digits.py" not in content
    assert b"site-packages" not in content


def test_each_stage_is_told_when_it_starts_and_how_it_ends(digits: Built) -> None:
    stages = ["reference", "convert onnx-fp32", "verify openvino-fp32", "profile", "publish"]
    for stage in stages:
        assert [outcome for name, outcome, _ in digits.progress.events if name == stage] == ["started", "done"]


def test_held_out_digits_need_no_torch() -> None:
    program = "import sys; from examples.digits import held_out; images, labels = held_out(); "
    program += "assert images.shape == (360, 8, 8) and images.dtype == 'uint8' and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
