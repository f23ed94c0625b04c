"""One artifact from the fp32 reference: which converter makes which format and precision."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Mapping
from pathlib import Path

from enginehouse.contract import tensor_file
from enginehouse.contract.errors import ConversionFailed
from enginehouse.contract.manifest import Format, Precision
from enginehouse.contract.parity import Limits
from enginehouse.contract.tensors import Tensors
from enginehouse.engines.hardware import int8_products
from enginehouse_build.convert import fallback, fp16, int8_lint, openvino, quantize, tensorrt
from enginehouse_build.convert.agreement import Agreement
from enginehouse_build.convert.tensorrt import Converted
from enginehouse_build.inputs.last_words import telling
from enginehouse_build.reference import conditioning
from enginehouse_build.reference.reference import ANSWERS, CALIBRATION, MODEL, REQUESTS, Reference

#: How int8 is kept from saturating where this CPU's products would (`enginehouse.engines.hardware.int8_products`).
_PRECISE: Mapping[Format, str] = {
    "onnx": "this CPU has no VNNI: ONNX Runtime computes int8 in its precise mode (uint8 weights), which takes longer",
    "openvino": "this CPU has no VNNI: the weights have 7 bits, so that no product of int8 saturates",
}
#: Rows that conversions are tried on: those of the gate, which asks all, would take a ResNet-18 longer than the rest.
_ROWS = 64


def convert(
    folder: Path,
    format: Format,
    precision: Precision,
    reference: Reference,
    source: Path,
    limits: Limits,
    timing_cache: Path,
) -> Converted:
    """Write the artifact's files into `folder`, from the reference's files in `source`.

    What would take its answers beyond `limits` stays in fp32, as far as can be known here. Raises ConversionFailed or
    EngineUnavailable with the converter's reason.
    """
    onnx = source / MODEL
    model = folder / "model.onnx"
    requests, answers = tensor_file.read(source / REQUESTS), tensor_file.read(source / ANSWERS)
    name = f"{format}-{precision}"
    agreement = Agreement(name, requests, answers, limits, reference.signature.batched).cut(_ROWS)
    try:
        with telling(f"it was converted to {name}, and tried"):
            if format == "openvino":
                samples = tensor_file.read(source / CALIBRATION) if precision == "int8" else ()
                said = openvino.convert(onnx, folder, precision, samples, agreement)
            else:
                said = _onnx(onnx, model, format, precision, source, agreement)
    except fallback.NothingHelps as error:
        explanation = _explanation(onnx, requests[0], answers[0], precision)
        raise ConversionFailed("; ".join(filter(None, (str(error), explanation)))) from error
    if format != "tensorrt":
        return Converted(remarks=_said(said, _cpu(format, precision)), limits=agreement.same_within())
    remarks = _said(said)
    int8_lint.check_for_tensorrt(model)
    with telling("TensorRT built the engine"):
        built = tensorrt.convert(
            model, folder, reference.signature, reference.max_rows, reference.axes, precision, timing_cache
        )
    return Converted(built.requires, remarks + built.remarks, agreement.same_within())


def _onnx(onnx: Path, model: Path, format: Format, precision: Precision, source: Path, agreement: Agreement) -> str:
    if precision == "fp16":
        return fp16.to_fp16(onnx, model, agreement.requests, agreement)
    if precision == "int8":
        quantized = quantize.quantize_for_tensorrt if format == "tensorrt" else quantize.quantize_for_onnxruntime
        return quantized(onnx, model, tensor_file.read(source / CALIBRATION), agreement)
    shutil.copyfile(onnx, model)
    return ""


def _explanation(onnx: Path, request: Tensors, answer: Tensors, precision: Precision) -> str:
    """What the model itself has to do with it, or ""; that it cannot be told must not hide why it was asked."""
    try:
        return conditioning.explain(onnx, request, answer, precision, 0)
    except Exception:
        traceback.print_exc()
        return ""


def _cpu(format: Format, precision: Precision) -> str:
    """What this CPU has to do with the artifact, or ""."""
    return _PRECISE[format] if precision == "int8" and int8_products() == "saturating" else ""


def _said(*remarks: str) -> tuple[str, ...]:
    return tuple(filter(None, remarks))
