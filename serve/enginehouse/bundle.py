"""The on-disk contract between the build stage and serving: a bundle is one folder with one `manifest.json`.

    STORE/<model>/<version>/manifest.json       what is here, how it was checked, how fast it is
    STORE/<model>/<version>/<artifact>/...      the files of one format in one precision

A bundle is immutable once published. Facts about a model live in its manifest only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from enginehouse.errors import ArtifactMissing, DigestMismatch, ManifestInvalid
from enginehouse.tensors import DTYPES, Signature, TensorSpec, datatype

MANIFEST = "manifest.json"

Format: TypeAlias = Literal["onnx", "openvino", "tensorrt"]
Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]
NumericsClass: TypeAlias = Literal["full", "int8"]
Status: TypeAlias = Literal["ready", "failed", "unavailable"]
EngineKind: TypeAlias = Literal["onnxruntime-cpu", "onnxruntime-cuda", "openvino-cpu", "tensorrt"]
Accelerator: TypeAlias = Literal["cpu", "gpu"]

ENGINE_KINDS: tuple[EngineKind, ...] = get_args(EngineKind)
#: The one format that each kind of engine loads, and the hardware that it needs.
FORMAT_OF: Mapping[EngineKind, Format] = {
    "onnxruntime-cpu": "onnx",
    "onnxruntime-cuda": "onnx",
    "openvino-cpu": "openvino",
    "tensorrt": "tensorrt",
}
ACCELERATOR_OF: Mapping[EngineKind, Accelerator] = {
    "onnxruntime-cpu": "cpu",
    "onnxruntime-cuda": "gpu",
    "openvino-cpu": "cpu",
    "tensorrt": "gpu",
}


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorRecord(_Record):
    """A TensorSpec as JSON: the protocol's datatype, and -1 for a free dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, spec: TensorSpec) -> TensorRecord:
        shape = tuple(-1 if dim is None else dim for dim in spec.shape)
        return cls(name=spec.name, datatype=datatype(spec.dtype), shape=shape)

    def spec(self) -> TensorSpec:
        shape = tuple(None if dim == -1 else dim for dim in self.shape)
        return TensorSpec(self.name, DTYPES[self.datatype], shape)


class SignatureRecord(_Record):
    """A Signature as JSON."""

    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    batched: bool = True

    @classmethod
    def of(cls, signature: Signature) -> SignatureRecord:
        return cls(
            inputs=tuple(TensorRecord.of(spec) for spec in signature.inputs),
            outputs=tuple(TensorRecord.of(spec) for spec in signature.outputs),
            batched=signature.batched,
        )

    def signature(self) -> Signature:
        return Signature(
            tuple(record.spec() for record in self.inputs),
            tuple(record.spec() for record in self.outputs),
            self.batched,
        )


class File(_Record):
    """One file of an artifact; `path` is relative to the bundle."""

    path: str
    sha256: str
    bytes: int


class Parity(_Record):
    """How far an artifact is from the fp32 reference, worst case over all checked rows and outputs.

    `relative_l2` = |a - r| / |r| over a whole batch; `worst_row` = the same for the worst single row;
    `top1_agreement` = share of rows with the same argmax over the last axis (None where that has no meaning);
    `limit` = the largest relative_l2 the gate lets pass.
    """

    engine: str
    rows: tuple[int, ...]
    relative_l2: float
    worst_row: float
    cosine: float
    top1_agreement: float | None
    limit: float


class Artifact(_Record):
    """One file set of one format in one precision. Only `ready` ones are served; the others say why not.

    `requires` is what the process that loads it must match exactly (TensorRT flavour, version, compute capability).
    """

    name: str
    format: Format
    precision: Precision
    effective_precision: str | None = None
    status: Status
    reason: str | None = None
    files: tuple[File, ...] = ()
    parity: Parity | None = None
    requires: dict[str, str] = Field(default_factory=dict)

    @property
    def numerics_class(self) -> NumericsClass:
        """`int8` answers differ from the reference by more than rounding, so they are a class of their own."""
        return "int8" if self.precision == "int8" else "full"


class LatencyPoint(_Record):
    """Measured time of one `Engine.infer` call with this many rows, in milliseconds."""

    rows: int
    median_ms: float
    p90_ms: float
    min_ms: float
    count: int


class LatencyTable(_Record):
    """T(engine, rows) of one artifact, measured on `host` with `threads` intra-op threads."""

    engine: str
    artifact: str
    threads: int
    host: str
    points: tuple[LatencyPoint, ...]

    def predict_ms(self, rows: int) -> float:
        """Time of a call with `rows` rows: linear between measured points, proportional past the last one."""
        if rows > self.points[-1].rows:
            return self.points[-1].median_ms * rows / self.points[-1].rows
        measured = [point.rows for point in self.points]
        return float(np.interp(rows, measured, [point.median_ms for point in self.points]))


class Manifest(_Record):
    """Everything known about one model version."""

    schema_version: Literal[1] = 1
    name: str
    version: str
    created: str
    source: str
    signature: SignatureRecord
    max_batch: int = Field(ge=1)
    artifacts: tuple[Artifact, ...]
    latency: tuple[LatencyTable, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | bytes, path: str) -> Manifest:
        """Read a manifest's JSON; `path` only serves the message of ManifestInvalid."""
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ManifestInvalid(path, f"{where}: {first['msg']}") from None
        for record in manifest.signature.inputs + manifest.signature.outputs:
            if record.datatype not in DTYPES:
                raise ManifestInvalid(path, f"tensor {record.name!r} has unknown datatype {record.datatype!r}")
        return manifest

    def artifact(self, name: str) -> Artifact:
        """The artifact called `name`, or ArtifactMissing listing what there is."""
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact
        have = ", ".join(artifact.name for artifact in self.artifacts) or "none"
        raise ArtifactMissing(f"{self.name}@{self.version}", f"no artifact {name!r}; the bundle has {have}")

    def latency_of(self, engine: str, artifact: str) -> LatencyTable | None:
        """The latency table measured for this engine on this artifact, if there is one."""
        for table in self.latency:
            if (table.engine, table.artifact) == (engine, artifact):
                return table
        return None

    def batch_buckets(self) -> tuple[int, ...]:
        """Batch sizes that are measured and warmed up: 1, 2, 4 ... and the maximum."""
        sizes = {1, self.max_batch}
        size = 2
        while size < self.max_batch:
            sizes.add(size)
            size *= 2
        return tuple(sorted(sizes))


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle in a local folder."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read the manifest in `path`. Raises ManifestInvalid. Artifacts are checked when they are loaded."""
        file = path / MANIFEST
        try:
            text = file.read_bytes()
        except OSError as error:
            raise ManifestInvalid(str(file), error.strerror or str(error)) from None
        return cls(path, Manifest.parse(text, str(file)))

    def verified_files(self, artifact: Artifact) -> list[Path]:
        """Local paths of the artifact's files after checking every digest.

        Raises ArtifactMissing for an artifact that is not `ready` or whose file is gone, and DigestMismatch.
        """
        if artifact.status != "ready":
            raise ArtifactMissing(str(self.path), f"artifact {artifact.name!r} is {artifact.status}: {artifact.reason}")
        return [self._verified(file) for file in artifact.files]

    def _verified(self, file: File) -> Path:
        path = self.path / file.path
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise ArtifactMissing(str(path), "the manifest points outside its bundle")
        try:
            actual = sha256_of(path)
        except OSError as error:
            raise ArtifactMissing(str(path), error.strerror or str(error)) from None
        if actual != file.sha256:
            raise DigestMismatch(str(path), file.sha256, actual)
        return path


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
