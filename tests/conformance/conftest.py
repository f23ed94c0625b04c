"""Publishes each model as a real bundle, once per format, and loads it with the engine under test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.random import Generator
from tests.conformance.models import Case

from enginehouse.contract.bundle import MANIFEST, Bundle, sha256_of
from enginehouse.contract.errors import EngineUnavailable
from enginehouse.contract.manifest import (
    ACCELERATOR_OF,
    ENGINE_KINDS,
    FORMAT_OF,
    Artifact,
    EngineKind,
    File,
    Format,
    Manifest,
    Precision,
    SignatureRecord,
)
from enginehouse.contract.store import Store
from enginehouse.engines import Engine, load_engine
from enginehouse.engines.hardware import engine_versions, probe_gpus

MAX_ROWS = 8
#: Distributions of which one must be installed for an engine to be tested.
LIBRARIES: dict[EngineKind, tuple[str, ...]] = {
    "onnxruntime-cpu": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime-cuda": ("onnxruntime-gpu",),
    "openvino-cpu": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-rtx"),
}

Publish = Callable[..., Bundle]
Load = Callable[..., Engine]


def why_not_here(kind: EngineKind) -> str | None:
    """Why `kind` cannot run on this machine, or None."""
    if ACCELERATOR_OF[kind] == "gpu" and not probe_gpus().devices:
        return probe_gpus().reason
    if not engine_versions().keys() & set(LIBRARIES[kind]):
        return f"not installed: {' or '.join(LIBRARIES[kind])}"
    return None


@pytest.fixture(params=ENGINE_KINDS)
def kind(request: pytest.FixtureRequest) -> EngineKind:
    """Every engine kind. Those that cannot run here skip, or fail where REQUIRE_GPU=1 promised a GPU."""
    name: EngineKind = request.param
    reason = why_not_here(name)
    if reason:
        if os.environ.get("REQUIRE_GPU") == "1" and ACCELERATOR_OF[name] == "gpu":
            pytest.fail(f"REQUIRE_GPU=1, but {name} cannot run here: {reason}")
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture
def rng() -> Generator:
    return np.random.default_rng(11)


@pytest.fixture(scope="session")
def publish(tmp_path_factory: pytest.TempPathFactory) -> Publish:
    """publish(case, format, precision): a bundle in a store, made once per combination."""
    store = Store(tmp_path_factory.mktemp("store"))
    bundles: dict[tuple[str, Format, Precision], Bundle] = {}

    def published(case: Case, fmt: Format, precision: Precision = "fp32") -> Bundle:
        key = (case.name, fmt, precision)
        if key not in bundles:
            version = str(len(bundles) + 1)
            folder = store.staging()
            write_bundle(folder, case, fmt, precision, version)
            bundles[key] = Bundle.open(Path(store.publish(folder, case.name, version)))
        return bundles[key]

    return published


def write_bundle(folder: Path, case: Case, fmt: Format, precision: Precision, version: str) -> None:
    """One artifact of `case` and its manifest."""
    files = folder / "artifact"
    files.mkdir()
    source = files / "model.onnx" if fmt == "onnx" else folder.parent / f"{folder.name}.onnx"
    onnx.save(case.model(), source)
    requires: dict[str, str] = {}
    if fmt == "openvino":
        import openvino

        openvino.save_model(openvino.Core().read_model(source), files / "model.xml", compress_to_fp16=False)
    elif fmt == "tensorrt":
        from enginehouse_build.convert import tensorrt

        requires = tensorrt.convert(source, files, case.signature, MAX_ROWS, (), precision, None).requires
    artifact = Artifact(
        name="artifact",
        format=fmt,
        precision=precision,
        status="ready",
        files=tuple(
            File(path=f"artifact/{path.name}", sha256=sha256_of(path), bytes=path.stat().st_size)
            for path in sorted(files.iterdir())
        ),
        requires=requires,
    )
    manifest = Manifest(
        name=case.name,
        version=version,
        created="2026-01-01T00:00:00Z",
        source=f"tests.conformance.models:{case.name}",
        signature=SignatureRecord.of(case.signature),
        max_batch=MAX_ROWS if case.signature.batched else 1,
        artifacts=(artifact,),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())


@pytest.fixture
def load(kind: EngineKind, publish: Publish) -> Iterator[Load]:
    """load(case, ...): the case's bundle in the engine under test; closed after the test."""
    engines: list[Engine] = []

    def loaded(case: Case, *, threads: int = 1, concurrency: int = 1, precision: Precision = "fp32") -> Engine:
        if kind in case.unfit:
            pytest.skip(f"{kind}: {case.unfit[kind]}")
        try:
            bundle = publish(case, FORMAT_OF[kind], precision)
        except EngineUnavailable as error:
            pytest.skip(str(error))
        engine = load_engine(kind, bundle, bundle.manifest.artifacts[0], threads=threads, concurrency=concurrency)
        engines.append(engine)
        return engine

    yield loaded
    for engine in engines:
        engine.close()
