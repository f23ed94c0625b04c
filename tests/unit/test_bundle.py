"""What a manifest says is what is loaded, or the error says what differs."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from enginehouse.contract.bundle import Bundle, sha256_of
from enginehouse.contract.errors import ArtifactMissing, DigestMismatch, ManifestInvalid, StoreUnavailable
from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import Artifact, File, Manifest, SignatureRecord
from enginehouse.contract.tensors import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("image", np.dtype(np.uint8), (None, 8, 8)),), (TensorSpec("logits", np.dtype(np.float32), (None, 10)),)
)
POINTS = tuple(
    LatencyPoint(rows=rows, median_ms=time, p90_ms=time, min_ms=time, count=9) for rows, time in ((1, 2.0), (4, 5.0))
)


def manifest(*artifacts: Artifact, max_batch: int = 16) -> Manifest:
    return Manifest(
        name="digits",
        version="1",
        created="2026-01-01T00:00:00Z",
        source="tests",
        signature=SignatureRecord.of(SIGNATURE),
        max_batch=max_batch,
        artifacts=artifacts,
        latency=(LatencyTable(engine="openvino-cpu", artifact="ov", threads=1, host="here", points=POINTS),),
    )


def artifact(folder: Path, content: bytes = b"weights") -> Artifact:
    path = folder / "model.onnx"
    path.write_bytes(content)
    file = File(path="model.onnx", sha256=sha256_of(path), bytes=len(content))
    return Artifact(name="onnx-fp32", format="onnx", precision="fp32", status="ready", files=(file,))


def test_a_manifest_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    written = manifest(artifact(tmp_path))
    (tmp_path / "manifest.json").write_text(written.model_dump_json())
    bundle = Bundle.open(tmp_path)
    assert bundle.manifest == written
    assert bundle.manifest.signature.signature() == SIGNATURE


def _shaped(*shape: int) -> dict[str, object]:
    tensor = {"name": "x", "datatype": "FP32", "shape": shape}
    return {"signature": {"inputs": [tensor], "outputs": []}}


def _axis(opt: int) -> dict[str, object]:
    return {"name": "n", "min": 1, "opt": opt, "max": opt, "dims": [["x", 1]]}


def test_a_large_one_is_read() -> None:
    change = _shaped(-1, -1, 64) | {"max_batch": 32, "axes": [_axis(65_536)]}
    record = json.loads(manifest().model_dump_json()) | change
    assert Manifest.parse(json.dumps(record), "m").max_batch == 32


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"max_batch": 0}, "max_batch"),
        ({"max_batch": 1 << 40}, "max_batch"),
        ({"axes": [{"name": "n", "min": 1, "opt": 1 << 40, "max": 1 << 41, "dims": [["image", 1]]}]}, "axis 'n'"),
        ({"axes": [{"name": "n", "min": 4, "opt": 2, "max": 8, "dims": [["image", 1]]}]}, "axis 'n' is from 4 to 8"),
        ({"axes": [{"name": "n", "min": 1, "opt": 2, "max": 8, "dims": [["mask", 1]]}]}, "'mask', which no input"),
        ({"axes": [{"name": "n", "min": 1, "opt": 2, "max": 8, "dims": [["image", 3]]}]}, "dimension 3"),
        ({"axes": [{"name": "n", "min": 1, "opt": 2, "max": 8, "dims": [["image", -1]]}]}, "dimension -1"),
        ({"axes": [{"name": "n", "min": 1, "opt": 2, "max": 8, "dims": [["image", 1]]}] * 5000}, "more than 4096"),
        (_shaped(-1, 1 << 33), "'x' has the shape"),
        (_shaped(-1, -2), "'x' has the shape"),
        (_shaped(*[-1] * 33), "'x' has the shape"),
        (_shaped(-1, 1 << 20, 1 << 10), "bytes, more than"),
        (_shaped(-1, -1) | {"axes": [_axis(1 << 27)]}, "a batch of 16 rows of the usual size has 8,589,934,592 bytes"),
        ({"surprise": 1}, "surprise"),
        ({"signature": {"inputs": [{"name": "x", "datatype": "FP8", "shape": [-1]}], "outputs": []}}, "'FP8'"),
    ],
)
def test_an_unusable_manifest_says_which_field(change: dict[str, object], told: str) -> None:
    record = json.loads(manifest().model_dump_json()) | change
    with pytest.raises(ManifestInvalid, match=told):
        Manifest.parse(json.dumps(record), "somewhere/manifest.json")


def test_a_missing_or_garbled_manifest_says_where(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid, match=str(tmp_path)):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ManifestInvalid, match=str(tmp_path)):
        Bundle.open(tmp_path)


def test_verified_files_are_those_of_the_manifest(tmp_path: Path) -> None:
    ready = artifact(tmp_path)
    assert Bundle(tmp_path, manifest(ready)).verified_files(ready) == [tmp_path / "model.onnx"]


def test_a_changed_file_is_named_with_both_digests(tmp_path: Path) -> None:
    ready = artifact(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"Weights")
    with pytest.raises(DigestMismatch) as refused:
        Bundle(tmp_path, manifest(ready)).verified_files(ready)
    assert refused.value.args == (
        str(tmp_path / "model.onnx"),
        ready.files[0].sha256,
        sha256_of(tmp_path / "model.onnx"),
    )
    assert all(word in str(refused.value) for word in refused.value.args)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    ready = artifact(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ArtifactMissing, match=r"model\.onnx"):
        Bundle(tmp_path, manifest(ready)).verified_files(ready)


@contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """`path` may not be read in the context, not even by root, whose file accesses are then nobody's (setfsuid)."""
    mode, libc = path.stat().st_mode, ctypes.CDLL(None)
    path.chmod(0)
    libc.setfsuid(65534)
    try:
        yield
    finally:
        libc.setfsuid(os.getuid())
        path.chmod(mode)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
def test_a_file_that_may_not_be_read_now_is_an_outage_and_not_taken_for_a_missing_one(
    tmp_path: Path, name: str
) -> None:
    ready = artifact(tmp_path)
    (tmp_path / "manifest.json").write_text(manifest(ready).model_dump_json())
    with forbidden(tmp_path / name), pytest.raises(StoreUnavailable, match="cannot be read: Permission denied"):
        Bundle.open(tmp_path).verified_files(ready)
    assert Bundle.open(tmp_path).verified_files(ready) == [tmp_path / "model.onnx"]


@pytest.mark.parametrize("path", ["../secret", "/etc/hostname"])
def test_a_manifest_cannot_point_outside_its_bundle(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    folder = tmp_path / "bundle"
    folder.mkdir()
    outside = artifact(folder).model_copy(update={"files": (File(path=path, sha256="0", bytes=1),)})
    with pytest.raises(ArtifactMissing, match="outside"):
        Bundle(folder, manifest(outside)).verified_files(outside)


def test_an_artifact_that_is_not_ready_says_why(tmp_path: Path) -> None:
    failed = Artifact(name="trt", format="tensorrt", precision="fp32", status="failed", reason="parser: no Loop")
    with pytest.raises(ArtifactMissing, match="'trt' is failed: parser: no Loop"):
        Bundle(tmp_path, manifest(failed)).verified_files(failed)


def test_an_unknown_artifact_is_told_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="'trt'.*onnx-fp32"):
        manifest(artifact(tmp_path)).artifact("trt")


@pytest.mark.parametrize(("max_batch", "buckets"), [(1, (1,)), (2, (1, 2)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))])
def test_batch_buckets_are_powers_of_two_and_the_maximum(max_batch: int, buckets: tuple[int, ...]) -> None:
    assert manifest(max_batch=max_batch).batch_buckets() == buckets


@pytest.mark.parametrize(("rows", "expected"), [(1, 2.0), (2, 3.0), (4, 5.0), (8, 10.0)])
def test_latency_is_linear_between_points_and_proportional_beyond(rows: int, expected: float) -> None:
    table = manifest().latency_of("openvino-cpu", "ov")
    assert table
    assert table.predict_ms(rows) == pytest.approx(expected)
    assert manifest().latency_of("tensorrt", "ov") is None


def test_a_field_that_the_release_before_refuses_is_only_written_where_it_is_needed() -> None:
    fp32 = Artifact(name="onnx-fp32", format="onnx", precision="fp32", status="ready")
    int8 = Artifact(name="onnx-int8", format="onnx", precision="int8", status="ready", int8_products="exact")
    assert "int8_products" not in fp32.model_dump(mode="json")
    assert "int8_products" not in fp32.model_dump_json()
    assert int8.model_dump(mode="json")["int8_products"] == "exact"
    assert Artifact.model_validate_json(int8.model_dump_json()) == int8
