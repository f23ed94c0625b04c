"""The manifest: everything known about one model version, as it is written in its bundle's `manifest.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from enginehouse.contract.bounds import InputBound, InputBounds
from enginehouse.contract.errors import ArtifactMissing, ManifestInvalid
from enginehouse.contract.latency import LatencyTable

# Part of the manifest, and imported from here.
from enginehouse.contract.signature_record import Axis as Axis
from enginehouse.contract.signature_record import Padding, Record, with_free_dims
from enginehouse.contract.signature_record import SignatureRecord as SignatureRecord
from enginehouse.contract.signature_record import TensorRecord as TensorRecord
from enginehouse.contract.tensors import DTYPES, Signature, Tensors

Format: TypeAlias = Literal["onnx", "openvino", "tensorrt"]
Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]
NumericsClass: TypeAlias = Literal["full", "int8"]
#: Which numerics class of a model may answer.
NumericsRule: TypeAlias = Literal["full", "int8", "any"]
#: `ready` was verified where it was built; `unverified` has to pass its gate where it is first loaded.
Status: TypeAlias = Literal["ready", "unverified", "failed", "unavailable"]
Objective: TypeAlias = Literal["latency", "throughput"]
EngineKind: TypeAlias = Literal["onnxruntime-cpu", "onnxruntime-cuda", "openvino-cpu", "tensorrt"]
Accelerator: TypeAlias = Literal["cpu", "gpu"]
#: How a CPU adds up products of uint8 and int8: `saturating` ones are cut at 16 bits (x86-64 without VNNI or AMX).
Int8Products: TypeAlias = Literal["exact", "saturating"]

#: What a manifest may ask of whoever loads it: rows of a batch, bytes of the inputs of one (it is made to warm up), and
#: how many things and dimensions it may name.
MOST_ROWS, MOST_BYTES, MOST_ENTRIES, MOST_DIMS = 65_536, 4 << 30, 4096, 32

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


class File(Record):
    """One file of an artifact; `path` is relative to the bundle."""

    path: str
    sha256: str
    bytes: int


class MetricRecord(Record):
    """A task metric (larger is better) on the labelled samples: of the reference, and of the artifact."""

    name: str
    reference: float
    value: float
    max_drop: float
    rows: int

    @property
    def drop(self) -> float:
        """How much the artifact lost; negative when it gained."""
        return self.reference - self.value


class Parity(Record):
    """How far an artifact is from the fp32 reference, worst case over all checked rows and outputs.

    `relative_l2` = |a - r| / |r| over a whole batch; `worst_row` = the same for the worst single row;
    `top1_agreement` = share of `top1_rows` rows with the same argmax, ties apart (None for what is not rows x classes);
    `differing` = share of wrong values in outputs of text and whole numbers, which have no other figures;
    `limit` = the largest relative_l2 the gate lets pass. `metric` is the task metric, where labels were given.
    `explanation` says more when the figures alone would mislead.
    """

    engine: str
    rows: tuple[int, ...]
    relative_l2: float
    worst_row: float
    cosine: float
    top1_agreement: float | None
    top1_rows: int = 0
    differing: float = 0.0
    limit: float
    output: str = ""
    metric: MetricRecord | None = None
    explanation: str = ""


#: Fields of an artifact that the release before does not know.
_LATE_FIELDS = frozenset({"int8_products", "unproven", "inputs_only", "padding"})


class Artifact(Record):
    """One file set of one format in one precision. Only `ready` and `unverified` ones are served.

    The others say why not in `reason`. `requires` is the engine key: what the process that loads it must match exactly
    (TensorRT flavour, version, compute capability). `remarks` are what the build changed or noticed. `limit` is the
    recipe's own relative L2 limit, for engines that are verified elsewhere; None is that of the precision.
    `int8_products` is the kind of CPU that int8 artifacts for CPUs were made for, verified and timed on. `unproven` are
    outputs in which the samples had nothing to compare: empty or one value all over. `inputs_only` are, by engine, the
    values of inputs for which it answers as the reference (see `contract.bounds`): no other request is sent there.
    `padding` says, by engine, how rows of several lengths may share a call, where that was proven to change no answer.
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
    remarks: tuple[str, ...] = ()
    limit: float | None = None
    int8_products: Int8Products | None = None
    unproven: tuple[str, ...] = ()
    inputs_only: dict[EngineKind, dict[str, InputBound]] = Field(default_factory=dict)
    padding: dict[EngineKind, Padding] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_what_others_refuse(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The release before refuses fields that it does not know: only artifacts that need one of these have it.
        fields: dict[str, Any] = serialize(self)
        return {name: value for name, value in fields.items() if value or name not in _LATE_FIELDS}

    def bounds_on(self, kind: EngineKind) -> InputBounds:
        """For which values of inputs it is right on an engine of this kind, as far as the build knows."""
        return self.inputs_only.get(kind, {})

    @property
    def numerics_class(self) -> NumericsClass:
        """`int8` answers differ from the reference by more than rounding, so they are a class of their own."""
        return "int8" if self.precision == "int8" else "full"


class Step(Record):
    """One step of the build, in the order they ran: how it ended, what it took, and where its log is in the bundle.

    `died`: its process crashed, hung or outgrew its bounds, which need not happen again.
    """

    name: str
    outcome: Literal["done", "cached", "failed", "unavailable"]
    detail: str = ""
    seconds: float = 0.0
    peak_mib: int = 0
    log: str | None = None
    died: bool = False


class Chosen(Record):
    """The artifact that the latency table calls best within one numerics class, on the machine that built it."""

    numerics: NumericsClass
    objective: Objective
    engine: EngineKind
    artifact: str
    rows: int
    reasons: tuple[str, ...] = ()


class Manifest(Record):
    """Everything known about one model version.

    `key` is the content hash of what it was built from (source, samples, recipe, versions, hardware): a build with the
    same key would make the same bundle. `files` are those that belong to no artifact.
    """

    schema_version: Literal[1] = 1
    name: str
    version: str
    created: str
    source: str
    signature: SignatureRecord
    max_batch: int = Field(ge=1, le=MOST_ROWS)
    axes: tuple[Axis, ...] = ()
    preprocess: str = ""
    postprocess: str = ""
    remarks: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...]
    chosen: tuple[Chosen, ...] = ()
    latency: tuple[LatencyTable, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, str] = Field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    recipe: dict[str, Any] = Field(default_factory=dict)
    key: str = ""
    files: tuple[File, ...] = ()

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
        if manifest.numerics not in get_args(NumericsRule):
            raise ManifestInvalid(path, f"recipe.numerics is {manifest.numerics!r}, not full, int8 or any")
        if beyond := manifest._beyond():
            raise ManifestInvalid(path, beyond)
        return manifest

    def _beyond(self) -> str:
        """What goes beyond what a node can be asked for; "" when nothing does. Whoever loads it makes such requests."""
        inputs = {record.name: record for record in self.signature.inputs}
        records = [*self.signature.inputs, *self.signature.outputs]
        if max(len(records), len(self.artifacts), len(self.axes), len(self.latency)) > MOST_ENTRIES:
            return f"more than {MOST_ENTRIES} tensors, artifacts, axes or latency tables"
        for record in records:
            if len(record.shape) > MOST_DIMS or not all(-1 <= dim < MOST_BYTES for dim in record.shape):
                return f"tensor {record.name!r} has the shape {record.shape[: MOST_DIMS + 1]}"
        for axis in self.axes:
            if not axis.min <= axis.opt <= axis.max < MOST_BYTES:
                return f"axis {axis.name!r} is from {axis.min} to {axis.max}, usually {axis.opt}"
            for name, dim in axis.dims:
                if name not in inputs or not 0 <= dim < len(inputs[name].shape):
                    return f"axis {axis.name!r} is dimension {dim} of {name!r}, which no input has"
        extents = {dim: axis.opt for axis in self.axes for dim in axis.dims}
        bytes_ = 0
        for record in inputs.values():
            known = {dim: extent for (name, dim), extent in extents.items() if name == record.name}
            known = {0: self.max_batch} | known
            shape = (known.get(place, 1) if dim == -1 else dim for place, dim in enumerate(record.shape))
            bytes_ += math.prod(shape) * DTYPES[record.datatype].itemsize
        if bytes_ > MOST_BYTES:
            return f"a batch of {self.max_batch} rows of the usual size has {bytes_:,} bytes, more than {MOST_BYTES:,}"
        return ""

    def request_signature(self) -> Signature:
        """The signature that requests are checked against: that of the graph, and what `axes` say of its dimensions."""
        return with_free_dims(self.signature.signature(), self.axes, self.recipe.get("axes", ()))

    @property
    def numerics(self) -> NumericsRule:
        """Which artifacts answer unless the catalog says otherwise: what the recipe declared, else `full`."""
        rule: NumericsRule = self.recipe.get("numerics") or "full"
        return rule

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

    def timed_for(self, products: Int8Products) -> Manifest:
        """The same without what int8 artifacts took on a CPU of the other kind, which says nothing about this one."""
        foreign = {artifact.name for artifact in self.artifacts if artifact.int8_products not in (None, products)}
        on_cpu = {kind for kind in ENGINE_KINDS if ACCELERATOR_OF[kind] == "cpu"}
        kept = tuple(table for table in self.latency if table.engine not in on_cpu or table.artifact not in foreign)
        return self if kept == self.latency else self.model_copy(update={"latency": kept})

    def efficient_rows(self, engine: str, artifact: str) -> int:
        """The batch that is worth waiting for (LatencyTable.efficient_rows); `max_batch` where nothing was measured."""
        table = self.latency_of(engine, artifact)
        size = self.axes[0].opt if self.axes else None
        return table.efficient_rows(self.max_batch, size) if table else self.max_batch

    def rows_of_a_call(self, engine: str, artifact: str, wanted: int | None) -> int:
        """Most rows of an engine call: `wanted` by the catalog, of those that the build has verified; else the best."""
        return min(wanted, self.max_batch) if wanted else self.efficient_rows(engine, artifact)

    def example(self, rows: int, size: int | None = None) -> dict[str, np.ndarray]:
        """Zeros that fit the signature: `rows` rows, the cost axis at `size` and every other axis at its `opt`."""
        extents = {dim: axis.opt for axis in self.axes for dim in axis.dims}
        if size is not None and self.axes:
            extents |= dict.fromkeys(self.axes[0].dims, size)
        return {
            spec.name: spec.example(rows, {dim: extent for (name, dim), extent in extents.items() if name == spec.name})
            for spec in self.signature.signature().inputs
        }

    def size_of(self, inputs: Tensors) -> int | None:
        """Extent of checked `inputs` along the cost axis; None for a model that has none."""
        if not self.axes:
            return None
        name, dim = self.axes[0].dims[0]
        return int(inputs[name].shape[dim])

    def batch_buckets(self, most: int | None = None) -> tuple[int, ...]:
        """Batch sizes that are measured and warmed up: 1, 2, 4 ... and `most`, by default the maximum."""
        largest = min(most or self.max_batch, self.max_batch)
        sizes = {1, largest}
        size = 2
        while size < largest:
            sizes.add(size)
            size *= 2
        return tuple(sorted(sizes))
