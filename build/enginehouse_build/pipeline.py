"""The build, start to end: reference -> convert -> verify -> profile -> publish, all of it or nothing.

Artifacts stand alone: what goes wrong with one is recorded in its status and reason, and the others go on.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, TypeVar

from enginehouse.bundle import (
    ENGINE_KINDS,
    FORMAT_OF,
    MANIFEST,
    Artifact,
    Bundle,
    EngineKind,
    File,
    Format,
    LatencyTable,
    Manifest,
    Parity,
    SignatureRecord,
    sha256_of,
)
from enginehouse.errors import BuildError, EngineUnavailable
from enginehouse.hardware import probe_cpu, probe_gpus
from enginehouse.store import Store
from enginehouse_build import openvino, parity, profile, tensorrt
from enginehouse_build.recipe import Recipe, next_version
from enginehouse_build.reference import Reference, make_reference

_T = TypeVar("_T")
Outcome: TypeAlias = Literal["started", "done", "failed", "unavailable"]

#: Distributions whose version can change what a bundle holds.
_DISTRIBUTIONS = (
    "enginehouse", "numpy", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt",
    "tensorrt-rtx",
)  # fmt: skip


class Progress(Protocol):
    """Told about each stage twice: when it starts, and how it ended."""

    def __call__(self, stage: str, outcome: Outcome, detail: str = "") -> None: ...


def build(recipe: Recipe, progress: Progress | None = None) -> Bundle:
    """Run `recipe` and return the published bundle.

    Raises BuildError (ExportFailed for the source) when nothing can be served; the store is unchanged then, as it is
    after Ctrl-C or a crash.
    """
    store = Store(recipe.store)
    version = recipe.version or next_version(store, recipe.name)
    if version in store.versions(recipe.name):
        raise BuildError(f"{recipe.name} version {version} is already in {store.url}; choose another --version")
    staging = store.staging()
    try:
        return _Build(recipe, version, store, staging, progress or _silent).run()
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Build:
    recipe: Recipe
    version: str
    store: Store
    staging: Path
    progress: Progress

    def run(self) -> Bundle:
        reference = self._stage("reference", self._reference)
        # A folder of its own: the staging folder is private to this user, a published bundle is not.
        folder = self.staging / self.version
        folder.mkdir()
        artifacts = [
            self._converted(folder, reference, format, f"{format}-{precision}")
            for format in self.recipe.formats
            for precision in self.recipe.precisions
        ]
        manifest = self._manifest(reference, artifacts)
        bundle = _write(folder, manifest)
        verified = [self._verified(bundle, artifact, reference) for artifact in artifacts]
        checked = [artifact for artifact, _ in verified]
        if not any(artifact.status == "ready" for artifact in checked):
            reasons = "; ".join(f"{artifact.name} is {artifact.status}: {artifact.reason}" for artifact in checked)
            raise BuildError(f"no artifact of {self.recipe.name} can be served: {reasons}")
        bundle = _write(folder, manifest.model_copy(update={"artifacts": tuple(checked)}))
        targets = [(kind, artifact.name) for artifact, kinds in verified for kind in kinds]
        tables = self._stage("profile", lambda: self._profiled(bundle, targets, reference))
        bundle = _write(folder, bundle.manifest.model_copy(update={"latency": tuple(tables)}))
        self._stage("publish", lambda: self.store.publish(folder, self.recipe.name, self.version))
        return self.store.open(self.recipe.name, self.version)

    def _stage(self, stage: str, work: Callable[[], _T]) -> _T:
        self.progress(stage, "started")
        try:
            result = work()
        except Exception as error:
            self.progress(stage, "failed", str(error))
            raise
        self.progress(stage, "done")
        return result

    def _reference(self) -> Reference:
        return make_reference(self.recipe, self.staging)

    def _converted(self, folder: Path, reference: Reference, format: Format, name: str) -> Artifact:
        stage = f"convert {name}"
        self.progress(stage, "started")
        blank = Artifact(name=name, format=format, precision="fp32", status="ready")
        target = folder / name
        target.mkdir()
        try:
            requires, remark = _convert(format, reference, target, self.recipe.max_rows)
        except Exception as error:
            shutil.rmtree(target)
            return self._out(stage, blank, error)
        self.progress(stage, "done", remark)
        files = tuple(
            File(path=file.relative_to(folder).as_posix(), sha256=sha256_of(file), bytes=file.stat().st_size)
            for file in sorted(target.rglob("*"))
            if file.is_file()
        )
        return blank.model_copy(update={"files": files, "requires": requires, "reason": remark or None})

    def _verified(
        self, bundle: Bundle, artifact: Artifact, reference: Reference
    ) -> tuple[Artifact, tuple[EngineKind, ...]]:
        """The artifact with its parity and final status, and the engines of this machine that it passed on."""
        if artifact.status != "ready":
            return artifact, ()
        stage = f"verify {artifact.name}"
        self.progress(stage, "started")
        requests = parity.batches(reference.samples, self.recipe.max_rows, self.recipe.batched)
        worst: Parity | None = None
        passed: list[EngineKind] = []
        absent: list[str] = []
        effective: str = artifact.precision
        for kind in (kind for kind in ENGINE_KINDS if FORMAT_OF[kind] == artifact.format):
            try:
                figures, precision = parity.verify(kind, bundle, artifact, reference.run, requests, self.recipe.threads)
                worst = figures if worst is None or figures.relative_l2 > worst.relative_l2 else worst
                parity.gate(artifact, figures)
            except EngineUnavailable as error:
                absent.append(str(error))
                continue
            except Exception as error:
                return self._out(stage, artifact.model_copy(update={"parity": worst}), error), ()
            # The first kind is the one for machines without a GPU; precision is reported for that.
            effective = effective if passed else precision
            passed.append(kind)
        if worst is None:
            unverified = EngineUnavailable(artifact.format, "; ".join(absent))
            reason = "; ".join(["built, but not verified: " + "; ".join(absent), *filter(None, [artifact.reason])])
            return self._out(stage, artifact, unverified, reason), ()
        self.progress(stage, "done", f"relative L2 {worst.relative_l2:.1e} on {', '.join(passed)}")
        return artifact.model_copy(update={"parity": worst, "effective_precision": effective}), tuple(passed)

    def _profiled(
        self, bundle: Bundle, targets: list[tuple[EngineKind, str]], reference: Reference
    ) -> list[LatencyTable]:
        tables, faults = profile.measure(bundle, targets, reference.samples, self.recipe.threads)
        for (kind, artifact), fault in faults.items():
            self.progress(f"profile {artifact} on {kind}", "failed", fault)
        return tables

    def _out(self, stage: str, artifact: Artifact, error: Exception, reason: str | None = None) -> Artifact:
        """`artifact` taken out of service because of `error`."""
        status: Literal["unavailable", "failed"] = "unavailable" if isinstance(error, EngineUnavailable) else "failed"
        known = isinstance(error, BuildError | EngineUnavailable)
        reason = reason or (str(error) if known else f"{type(error).__name__}: {error}")
        self.progress(stage, status, reason)
        return artifact.model_copy(update={"status": status, "reason": reason})

    def _manifest(self, reference: Reference, artifacts: list[Artifact]) -> Manifest:
        return Manifest(
            name=self.recipe.name,
            version=self.version,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            source=f"{self.recipe.source} ({reference.origin})",
            signature=SignatureRecord.of(reference.signature),
            max_batch=self.recipe.max_rows,
            artifacts=tuple(artifacts),
            versions=_versions(),
            hardware=_hardware(),
        )


def _convert(format: Format, reference: Reference, folder: Path, max_rows: int) -> tuple[dict[str, str], str]:
    """Write the artifact's files into `folder`; returns `Artifact.requires`, and a remark for whoever reads it."""
    if format == "tensorrt":
        return tensorrt.convert(reference.onnx, folder, reference.signature, max_rows)
    if format == "openvino":
        openvino.convert(reference.onnx, folder)
    else:
        shutil.copyfile(reference.onnx, folder / "model.onnx")
    return {}, ""


def _write(folder: Path, manifest: Manifest) -> Bundle:
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return Bundle.open(folder)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _hardware() -> dict[str, str]:
    cpu, gpus = probe_cpu(), probe_gpus()
    devices = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in gpus.devices)
    return {
        "cpu": cpu.model,
        "cpu_cores": str(cpu.cores),
        "cpu_threads": str(cpu.threads),
        "cpu_flags": " ".join(cpu.flags),
        "gpu": devices or f"none: {gpus.reason}",
        "host": platform.node(),
        "os": f"{platform.system()} {os.uname().release} {platform.machine()}",
    }


def _silent(stage: str, outcome: Outcome, detail: str = "") -> None:
    """The progress of a build that nobody watches."""
