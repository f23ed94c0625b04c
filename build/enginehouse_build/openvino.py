"""ONNX -> OpenVINO IR, without changing the precision."""

from __future__ import annotations

from pathlib import Path

from enginehouse.errors import ConversionFailed, EngineUnavailable


def convert(onnx: Path, folder: Path) -> None:
    """Write `model.xml` and `model.bin` into `folder`.

    Raises EngineUnavailable without OpenVINO, ConversionFailed with its reason.
    """
    try:
        import openvino
    except ImportError as error:
        raise EngineUnavailable("openvino-cpu", f"{error}; install enginehouse[cpu]") from None
    try:
        model = openvino.convert_model(onnx)
        # The default halves the weights to fp16 and would still be called fp32.
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    except Exception as error:
        raise ConversionFailed(f"OpenVINO cannot convert the model: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # OpenVINO begins with where in its own source it noticed.
    told = [line for line in lines if not line.startswith(("Check '", "Exception from", "While validating"))]
    return " ".join(told or lines)[:400] or type(error).__name__
