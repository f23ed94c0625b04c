"""One artifact from the fp32 reference: which converter makes which format and precision."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from enginehouse.contract import tensor_file
from enginehouse.contract.errors import ConversionFailed
from enginehouse.contract.manifest import Format, Precision
from enginehouse.contract.tensors import Tensors
from enginehouse_build.convert import fp16, int8_lint, openvino, quantize, tensorrt
from enginehouse_build.convert.tensorrt import Converted
from enginehouse_build.reference.reference import CALIBRATION, MODEL, Reference


def convert(
    folder: Path, format: Format, precision: Precision, reference: Reference, source: Path, timing_cache: Path
) -> Converted:
    """Write the artifact's files into `folder`, from the reference's files in `source`.

    Raises ConversionFailed or EngineUnavailable with the converter's reason.
    """
    onnx = source / MODEL
    if format == "openvino":
        samples = _calibration(source) if precision == "int8" else ()
        return Converted(remarks=_said(openvino.convert(onnx, folder, precision, samples)))
    model = folder / "model.onnx"
    remarks = _said(_onnx(onnx, model, format, precision, source))
    if format == "onnx":
        return Converted(remarks=remarks)
    int8_lint.check_for_tensorrt(model)
    built = tensorrt.convert(
        model, folder, reference.signature, reference.max_rows, reference.axes, precision, timing_cache
    )
    return Converted(built.requires, remarks + built.remarks)


def _onnx(onnx: Path, model: Path, format: Format, precision: Precision, source: Path) -> str:
    if precision == "fp16":
        return fp16.to_fp16(onnx, model)
    if precision == "int8":
        quantized = quantize.quantize_for_tensorrt if format == "tensorrt" else quantize.quantize_for_onnxruntime
        return quantized(onnx, model, _calibration(source))
    shutil.copyfile(onnx, model)
    return ""


def _calibration(source: Path) -> Sequence[Tensors]:
    if not (source / CALIBRATION).exists():
        raise ConversionFailed(
            "int8 takes its ranges from real data: give --samples FILE.npz or --calibration FILE.npz"
        )
    return tensor_file.read(source / CALIBRATION)


def _said(remark: str) -> tuple[str, ...]:
    return (remark,) if remark else ()
