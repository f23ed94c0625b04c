"""ONNX -> OpenVINO IR in fp32, fp16, bf16 or int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from enginehouse.contract.errors import ConversionFailed, EngineUnavailable
from enginehouse.contract.manifest import Precision
from enginehouse.engines.value_guards import unsafe
from enginehouse_build.convert.agreement import Agreement
from enginehouse_build.convert.best_of import Calibration
from enginehouse_build.convert.fallback import NothingHelps
from enginehouse_build.convert.half_graph import LARGEST
from enginehouse_build.convert.openvino_int8 import quantized


def convert(
    source: Path, folder: Path, precision: Precision, calibration: Calibration, agreement: Agreement | None = None
) -> str:
    """Write the ONNX file `source` as `model.xml` and `model.bin` into `folder`; returns a remark or "".

    fp16 weights are compressed; bf16 has the weights of fp32, which the engine rounds as it loads them; int8 is what
    NNCF makes of the OpenVINO model and `calibration` within the limits of `agreement` (see `openvino_int8`). Raises
    EngineUnavailable without OpenVINO or NNCF, and ConversionFailed with the converter's reason, or for a model that
    OpenVINO must not run (see `enginehouse.engines.value_guards`), and NothingHelps as `openvino_int8`.
    """
    try:
        import openvino
    except ImportError as error:
        raise EngineUnavailable("openvino-cpu", f"{error}; install enginehouse[cpu]") from None
    try:
        # `openvino.convert_model` would also report to a statistics server that it was used.
        model = openvino.Core().read_model(source)
        if reason := unsafe(model):
            raise ConversionFailed(f"OpenVINO is not safe for this model: {reason}")
        remark = _cut(model) if precision == "fp16" else ""
        if precision == "int8":
            model, remark = quantized(model, calibration, agreement)
        # The default halves the weights to fp16 and would still be called fp32.
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=precision == "fp16")
    except (ConversionFailed, EngineUnavailable, NothingHelps):
        raise
    except Exception as error:
        raise ConversionFailed(f"OpenVINO cannot convert the model to {precision}: {_reason(error)}") from error
    return remark


def _cut(model: Any) -> str:
    """A remark about the weights that fp16 cannot hold."""
    largest = {
        node.get_friendly_name(): float(np.abs(node.data[np.isfinite(node.data)]).max(initial=0.0))
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() == "f32"
    }
    beyond = {name: value for name, value in largest.items() if value > LARGEST}
    if not beyond:
        return ""
    name = max(beyond, key=lambda name: beyond[name])
    return f"{len(beyond)} weights have values beyond fp16's {LARGEST:.0f}, the largest {beyond[name]:.1e} in {name!r}"


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # OpenVINO begins with where in its own source it noticed.
    told = [line for line in lines if not line.startswith(("Check '", "Exception from", "While validating"))]
    return " ".join(told or lines)[:400] or type(error).__name__
