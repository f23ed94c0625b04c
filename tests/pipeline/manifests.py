"""Made-up manifests with plausible figures, for tests of what is drawn from a manifest: nothing here was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import (
    Artifact,
    Axis,
    Chosen,
    File,
    Format,
    Manifest,
    MetricRecord,
    Parity,
    Precision,
    SignatureRecord,
    Step,
    TensorRecord,
)

ROWS = (1, 2, 4, 8, 16, 32)
DISTANCES: dict[Precision, tuple[float, float]] = {
    "fp32": (4.1e-7, 1e-4),
    "fp16": (6.2e-4, 5e-3),
    "bf16": (7.9e-3, 2e-2),
    "int8": (3.3e-2, 5e-2),
}
ENGINE = {"onnx": "onnxruntime-cpu", "openvino": "openvino-cpu", "tensorrt": "tensorrt"}
#: Milliseconds for one row of ResNet-18, and for each further one.
COSTS = {
    "onnx-fp32": (11.8, 10.4),
    "onnx-fp16": (14.9, 13.1),
    "onnx-int8": (4.4, 2.95),
    "openvino-fp32": (12.0, 9.5),
    "openvino-fp16": (12.1, 9.6),
    "openvino-bf16": (6.2, 4.7),
    "openvino-int8": (3.2, 2.45),
}


def artifact(format: Format, precision: Precision, **changes: Any) -> Artifact:
    """A verified artifact; `changes` are its other fields."""
    name = f"{format}-{precision}"
    distance, limit = DISTANCES[precision]
    distance *= {"onnx": 1.0, "openvino": 1.13, "tensorrt": 0.94}[format]
    files = (
        File(path=f"{name}/model.onnx", sha256=f"{len(name):02x}" * 32, bytes=46_800_000 // (1 + ("8" in name) * 3)),
    )
    drop = {"fp32": 0.0, "fp16": 0.0, "bf16": 0.0004, "int8": 0.0031}[precision]
    parity = Parity(
        engine=ENGINE[format],
        rows=(1, 2, 32),
        relative_l2=distance,
        worst_row=distance * 3.1,
        cosine=1 - distance**2,
        top1_agreement=1 - drop * 2,
        top1_rows=500,
        limit=limit,
        output="logits",
        metric=MetricRecord(name="accuracy", reference=0.6976, value=0.6976 - drop, max_drop=0.005, rows=2000),
    )
    fields = {"effective_precision": precision, "status": "ready", "files": files, "parity": parity}
    return Artifact(name=name, format=format, precision=precision, **(fields | changes))


def without(format: Format, precision: Precision, status: str, reason: str, **changes: Any) -> Artifact:
    """An artifact that was not compared with the reference, and why."""
    return artifact(format, precision, status=status, reason=reason, parity=None, effective_precision=None, **changes)


def steps(artifacts: Sequence[Artifact]) -> tuple[Step, ...]:
    """A build of them: the reference was cached, int8 took longest."""
    made = [Step(name="reference", outcome="cached", log="logs/reference.txt")]
    for each in artifacts:
        outcome = each.status if each.status in ("failed", "unavailable") else "done"
        longer = 12 if each.precision == "int8" else 1
        made.append(
            Step(
                name=f"convert {each.name}",
                outcome=outcome,
                detail="" if outcome == "done" else each.reason or "",
                seconds=1.73 * longer,
                peak_mib=590 + 130 * longer,
                log=f"logs/convert-{each.name}.txt",
            )
        )
    made += [
        Step(name=f"verify {each.name}", outcome="done", detail=f"cosine {each.parity.cosine:.4f}", seconds=1.4)
        for each in artifacts
        if each.parity is not None
    ]
    return (*made, Step(name="profile", outcome="done", seconds=41.9, peak_mib=1370, log="logs/profile.txt"))


def table(
    engine: str, artifact: str, one: float, more: float, sizes: Sequence[int | None] = (None,), **changes: Any
) -> LatencyTable:
    """`one` ms for the first row and `more` for each further one, proportional to the size over 128."""
    points = tuple(
        LatencyPoint(
            rows=rows,
            size=size,
            median_ms=(median := (one + more * (rows - 1)) * (1 if size is None else (size / 128) ** 1.2)),
            p90_ms=median * (1.06 + 0.01 * (rows % 5)),
            min_ms=median * 0.97,
            count=max(12, round(1500 / median)),
            spread=0.021,
        )
        for rows in ROWS
        for size in sizes
    )
    return LatencyTable(engine=engine, artifact=artifact, threads=2, host="workstation", points=points, **changes)


def resnet18() -> Manifest:
    """Three formats in four precisions on a machine without a GPU: seven measured, four for elsewhere, one refused."""
    absent = "no TensorRT engine was loaded here: the NVIDIA driver is not installed; verified where it is first loaded"
    cast = {"effective_precision": "fp32", "remarks": ("ONNX Runtime has no fp16 kernels on CPUs: it casts to fp32",)}
    key = {"flavour": "tensorrt-rtx", "version": "1.7.0", "compute_capability": "8.6,8.9,12.0"}
    elsewhere = {"requires": key, "remarks": ("built for 8.6, 8.9, 12.0",)}
    artifacts = [
        artifact("onnx", "fp32"),
        artifact("onnx", "fp16", **cast),
        without("onnx", "bf16", "failed", "ONNX Runtime has no bf16 kernels on CPUs; take openvino-bf16", files=()),
        artifact("onnx", "int8"),
        *(artifact("openvino", precision) for precision in DISTANCES),
        *(without("tensorrt", precision, "unverified", absent, **elsewhere) for precision in ("fp32", "fp16", "int8")),
        without("tensorrt", "bf16", "unavailable", "TensorRT-RTX 1.7 has no bf16 for 7.5; drop it or 7.5", files=()),
    ]
    noisy = {
        "verdict": "INVALID",
        "reason": "at 4 rows the medians of the rounds are 14.2 % apart, 10 % is the limit; measured 3 times",
    }
    tables = [
        table(ENGINE[name.partition("-")[0]], name, *cost, **(noisy if name == "openvino-fp16" else {}))
        for name, cost in COSTS.items()
    ]
    return Manifest(
        name="resnet18",
        version="3",
        created="2026-02-11T09:41:22+00:00",
        source="examples.resnet:resnet18 (torch 2.13.0, opset 20)",
        signature=SignatureRecord(
            inputs=(TensorRecord(name="image", datatype="UINT8", shape=(-1, 224, 224, 3)),),
            outputs=(TensorRecord(name="logits", datatype="FP32", shape=(-1, 1000)),),
        ),
        max_batch=32,
        preprocess="uint8 NHWC [224, 224, 3] -> scale 1/255 -> normalise (imagenet) -> NCHW",
        remarks=("The samples are 500 of the 2,000 labelled images.",),
        artifacts=tuple(artifacts),
        chosen=(
            Chosen(
                numerics="full",
                objective="throughput",
                engine="openvino-cpu",
                artifact="openvino-bf16",
                rows=32,
                reasons=(
                    "211 rows/s at 32 rows, 2.02 times the runner-up openvino-fp32 (105 rows/s)",
                    "every call of 32 rows was faster than the slowest of the others",
                ),
            ),
            Chosen(
                numerics="int8",
                objective="throughput",
                engine="openvino-cpu",
                artifact="openvino-int8",
                rows=32,
                reasons=("1.20 times the runner-up onnx-int8 on onnxruntime-cpu",),
            ),
        ),
        latency=tuple(tables),
        versions={
            "python": "3.11.7",
            "enginehouse": "0.1.0",
            "torch": "2.13.0",
            "onnxruntime": "1.31.1",
            "openvino": "2026.4.1",
        },
        hardware={
            "cpu": "AMD EPYC 9555",
            "cpu_cores": "2",
            "cpu_flags": "avx2 avx512f avx512_vnni avx512_bf16",
            "gpu": "none: the NVIDIA driver is not installed",
            "os": "Linux 6.1.0 x86_64",
        },
        steps=steps(artifacts),
        recipe={
            "formats": ["onnx", "openvino", "tensorrt"],
            "precisions": ["fp32", "fp16", "bf16", "int8"],
            "max_batch": 32,
            "preprocess": "imagenet",
            "objective": "throughput",
            "max_drop": 0.005,
            "threads": 2,
            "samples": "samples.npz",
        },
        key="9f2c6b1d" * 8,
        files=(
            File(path="check/requests.npz", sha256="ab" * 32, bytes=4_816_896),
            File(path="check/answers.npz", sha256="cd" * 32, bytes=128_000),
        ),
    )


def encoder() -> Manifest:
    """A transformer measured along its sequence length; the same ONNX on two kinds of engine."""
    sizes = (16, 64, 128, 512)
    artifacts = tuple(artifact(format, precision) for format in ("onnx", "openvino") for precision in ("fp32", "int8"))
    return resnet18().model_copy(
        update={
            "name": "encoder",
            "signature": SignatureRecord(
                inputs=tuple(TensorRecord(name=name, datatype="INT64", shape=(-1, -1)) for name in ("ids", "mask")),
                outputs=(TensorRecord(name="embedding", datatype="FP32", shape=(-1, 384)),),
            ),
            "axes": (Axis(name="sequence", min=1, opt=100, max=512, dims=(("ids", 1), ("mask", 1))),),
            "preprocess": "",
            "postprocess": "softmax of embedding",
            "artifacts": artifacts,
            "latency": (
                table("onnxruntime-cpu", "onnx-fp32", 9.0, 7.7, sizes),
                table("onnxruntime-cuda", "onnx-fp32", 2.1, 0.21, sizes),
                table("onnxruntime-cpu", "onnx-int8", 4.9, 3.6, sizes),
                table("openvino-cpu", "openvino-fp32", 8.8, 7.0, sizes),
                table("openvino-cpu", "openvino-int8", 3.6, 2.9, sizes),
            ),
            "chosen": (
                Chosen(numerics="full", objective="latency", engine="onnxruntime-cuda", artifact="onnx-fp32", rows=1),
            ),
            "steps": (),
        }
    )


def hopeless() -> Manifest:
    """Nothing passed, and what went wrong was said at length; the model is not batched."""
    said = "Unsupported op NonZero in node /head/NonZero; " * 40 + "the last word"
    far = artifact("openvino", "fp32", status="failed", reason="relative L2 8.31e-01 of output 'logits', limit 1e-04")
    assert far.parity is not None
    cut = "64-bit whole numbers were cut to 32 bits: values up to 9.2e18 come back as 2147483647"
    parity = far.parity.model_copy(
        update={"relative_l2": 0.831, "top1_agreement": None, "top1_rows": 0, "metric": None, "explanation": cut}
    )
    return resnet18().model_copy(
        update={
            "name": "hopeless",
            "signature": resnet18().signature.model_copy(update={"batched": False}),
            "max_batch": 1,
            "artifacts": (
                far.model_copy(update={"parity": parity}),
                artifact("tensorrt", "fp32", status="failed", reason=said, parity=None, files=()),
            ),
            "chosen": (),
            "latency": (),
            "steps": (
                Step(
                    name="convert tensorrt-fp32",
                    outcome="failed",
                    detail=said,
                    seconds=3.2,
                    log="logs/convert tensorrt-fp32.txt",
                ),
            ),
        }
    )


def bare() -> Manifest:
    """One artifact measured at one row, and no more than the schema asks for."""
    point = LatencyPoint(rows=1, median_ms=0.0412, p90_ms=0.05, min_ms=0.04, count=9000)
    return Manifest(
        name="bare",
        version="1",
        created="2026-02-11T09:41:22+00:00",
        source="bare.onnx",
        signature=SignatureRecord(inputs=(), outputs=()),
        max_batch=1,
        artifacts=(Artifact(name="onnx-fp32", format="onnx", precision="fp32", status="ready"),),
        latency=(
            LatencyTable(engine="onnxruntime-cpu", artifact="onnx-fp32", threads=1, host="here", points=(point,)),
        ),
    )
