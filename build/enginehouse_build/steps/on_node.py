"""The TensorRT step where the GPU is: build, verify and measure one artifact of an unfinished bundle on another node.

order_of(bundle, artifact)    here: everything that the node needs
make(order)                   there, by whatever means the order got there
taken_over(made, ...)         here: what came of it, in the bundle
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginehouse.contract import parity, probes, tensor_file
from enginehouse.contract.bounds import InputBound, described
from enginehouse.contract.bundle import MANIFEST, Bundle, sha256_of
from enginehouse.contract.errors import EngineUnavailable, ParityFailed
from enginehouse.contract.latency import LatencyTable
from enginehouse.contract.manifest import Artifact, File, Parity
from enginehouse.contract.parity import Limits
from enginehouse.engines import load_engine
from enginehouse.engines.hardware import physical_cores
from enginehouse.engines.recheck import CHECK_ANSWERS, CHECK_PROBES
from enginehouse.engines.tensorrt.kept_engines import ENGINE_FILE
from enginehouse.engines.usual import CHECK_REQUESTS
from enginehouse_build.convert.tensorrt import ONNX_FILE, convert
from enginehouse_build.judge import profile


@dataclass(frozen=True, slots=True)
class Order:
    """An artifact to make: `files` of its bundle by path, among them the manifest and the check requests."""

    artifact: str
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Made:
    """What came of it, as far as it came.

    Without `engine` the node could not build, without `parity` it could not run what it built, and `reason` says why.
    `parity` has yet to pass its gate. `table` is missing where measuring failed, and `reason` says why. `inputs_only`
    are the values for which it is right.
    """

    requires: dict[str, str]
    remarks: tuple[str, ...]
    engine: bytes | None = None
    parity: Parity | None = None
    table: LatencyTable | None = None
    reason: str = ""
    inputs_only: dict[str, InputBound] = field(default_factory=dict)


def order_of(bundle: Bundle, artifact: str) -> Order:
    """What a node needs to make the TensorRT artifact of this name, whose ONNX model is there. Raises OSError."""
    paths = (MANIFEST, CHECK_REQUESTS, CHECK_ANSWERS, CHECK_PROBES, f"{artifact}/{ONNX_FILE}")
    return Order(artifact, {path: (bundle.path / path).read_bytes() for path in paths})


def make(order: Order) -> Made:
    """Build the engine with this node's TensorRT, let it answer the check requests, and time it.

    Raises ConversionFailed with what TensorRT said, ParityFailed for answers that cannot be compared, InferenceFailed.
    """
    with tempfile.TemporaryDirectory(prefix="enginehouse-") as temporary:
        folder = Path(temporary)
        for path, content in order.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        manifest = Bundle.open(folder).manifest
        artifact = manifest.artifact(order.artifact)
        files = folder / artifact.name
        built = convert(
            files / ONNX_FILE,
            files,
            manifest.signature.signature(),
            manifest.max_batch,
            manifest.axes,
            artifact.precision,
            None,
        )
        engine = files / ENGINE_FILE
        if not engine.exists():
            return Made(built.requires, (), reason=built.remarks[-1])
        artifact = artifact.model_copy(
            update={"status": "ready", "requires": built.requires, "files": tuple(map(_file, sorted(files.iterdir())))}
        )
        bundle = Bundle(folder, manifest.model_copy(update={"artifacts": (artifact,)}))
        return _judged(bundle, artifact, Made(built.requires, built.remarks, engine.read_bytes()))


def taken_over(made: Made, artifact: Artifact, folder: Path, limits: Limits) -> Artifact:
    """`artifact` of the bundle in `folder` as the node made it: its engine written, its parity judged."""
    update: dict[str, Any] = {
        "requires": made.requires,
        "remarks": artifact.remarks + made.remarks,
        "parity": made.parity,
        "inputs_only": {"tensorrt": made.inputs_only} if made.inputs_only else {},
        "effective_precision": artifact.precision if made.parity else None,
        "status": "ready",
        "reason": None,
    }
    if made.engine is not None:
        engine = folder / artifact.name / ENGINE_FILE
        # Linked files belong to the kept step as well.
        engine.unlink(missing_ok=True)
        engine.write_bytes(made.engine)
        update["files"] = tuple(_file(file) for file in sorted((folder / artifact.name).iterdir()))
    if made.parity is None:
        update |= {"status": "unverified", "reason": f"to be verified where it is first loaded: {made.reason}"}
    else:
        try:
            parity.gate(artifact.name, limits, made.parity)
        except ParityFailed as error:
            update |= {"status": "failed", "reason": str(error)}
    return artifact.model_copy(update=update)


def _judged(bundle: Bundle, artifact: Artifact, made: Made) -> Made:
    """`made` with what running it on this node told."""
    threads = physical_cores()
    try:
        engine = load_engine("tensorrt", bundle, artifact, threads=threads)
    except EngineUnavailable as error:
        return Made(made.requires, made.remarks, made.engine, reason=str(error))
    requests, answers = (tensor_file.read(bundle.path / path) for path in (CHECK_REQUESTS, CHECK_ANSWERS))
    try:
        limit = parity.LIMITS[artifact.precision].relative_l2
        figures = parity.compare_all("tensorrt", engine.infer, zip(requests, answers, strict=True), limit)
        probed = probes.read(bundle.path / CHECK_PROBES)
        bounds, differences = probes.found("tensorrt", engine.infer, artifact, probed)
    finally:
        engine.close()
    (bundle.path / MANIFEST).write_text(bundle.manifest.model_dump_json())
    largest = max(requests, key=lambda request: sum(array.size for array in request.values()))
    tables, faults = profile.measure(bundle, [("tensorrt", artifact.name)], largest, threads)
    remarks = (f"tensorrt answers {described(bounds)} only: {'; '.join(differences)}",) if bounds else ()
    return Made(
        made.requires,
        made.remarks + remarks,
        made.engine,
        figures,
        table=tables[0] if tables else None,
        reason="; ".join(faults.values()),
        inputs_only=bounds,
    )


def _file(path: Path) -> File:
    return File(path=f"{path.parent.name}/{path.name}", sha256=sha256_of(path), bytes=path.stat().st_size)
