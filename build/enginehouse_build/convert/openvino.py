"""ONNX -> OpenVINO IR in fp32, fp16, bf16 or int8."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from enginehouse.contract.errors import ConversionFailed, EngineUnavailable
from enginehouse.contract.manifest import Precision
from enginehouse.engines.hardware import int8_products
from enginehouse_build.convert.best_of import Answers, Calibration, best_of
from enginehouse_build.convert.fp16 import LARGEST
from enginehouse_build.graph.graph import POSTPROCESS, PREPROCESS

_CONVOLUTIONS = frozenset(
    {"Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData"}
)
#: What may stand between the Softmax of an attention and the product with its values.
_PASS_ON = frozenset({"Convert", "Reshape", "Select", "Squeeze", "Unsqueeze"})
#: What int8 does to them adds up from step to step (a small LSTM: relative L2 0.25 instead of 0.002).
_RECURRENT = ("GRUSequence", "LSTMSequence")


class _Setting(NamedTuple):
    """What NNCF may do to weights before it rounds them."""

    smoothing: float
    correct_bias: bool


#: NNCF's defaults first. Smoothing tames the outliers of trained transformers and costs accuracy where there are none
#: (random BERT and ViT: relative L2 0.05 and 0.07 with it, 0.02 and 0.04 without); correcting biases helps most
#: convolutional networks, but not all (random ResNet-18: 0.047 with it, 0.042 without).
_WITH_ATTENTION = (_Setting(0.95, correct_bias=True), _Setting(-1.0, correct_bias=True))
_WITHOUT_ATTENTION = (_Setting(-1.0, correct_bias=True), _Setting(-1.0, correct_bias=False))


def convert(source: Path, folder: Path, precision: Precision, calibration: Calibration) -> str:
    """Write the ONNX file `source` as `model.xml` and `model.bin` into `folder`; returns a remark or "".

    fp16 weights are compressed; bf16 has the weights of fp32, which the engine rounds as it loads them; int8 is what
    NNCF makes of the OpenVINO model and `calibration`. Raises EngineUnavailable without OpenVINO or NNCF, and
    ConversionFailed with the converter's reason or for a model without layers to quantize.
    """
    try:
        import openvino
    except ImportError as error:
        raise EngineUnavailable("openvino-cpu", f"{error}; install enginehouse[cpu]") from None
    try:
        # `openvino.convert_model` would also report to a statistics server that it was used.
        model = openvino.Core().read_model(source)
        if precision == "int8":
            model = _quantized(model, calibration)
        remark = _cut(model) if precision == "fp16" else ""
        # The default halves the weights to fp16 and would still be called fp32.
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=precision == "fp16")
    except (ConversionFailed, EngineUnavailable):
        raise
    except Exception as error:
        raise ConversionFailed(f"OpenVINO cannot convert the model to {precision}: {_reason(error)}") from error
    return remark


def _quantized(model: Any, calibration: Calibration) -> Any:
    if not calibration:
        raise ConversionFailed("int8 needs calibration data, and there is no sample; give real data with --samples")
    if not any(_is_layer(node) for node in model.get_ops()):
        kinds = ", ".join(sorted({node.get_type_name() for node in model.get_ops()} - {"Constant"}))
        raise ConversionFailed(f"nothing to quantize: no convolution or product with constant weights, only {kinds}")
    # Read as NNCF is imported; without it each call is reported to a statistics server.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
        from openvino import passes
    except ImportError as error:
        raise EngineUnavailable("openvino-cpu", f"{error}; install enginehouse[build]") from None
    nncf.set_log_level(logging.ERROR)
    # Where a bias is still an expression NNCF cannot correct it, and OpenVINO 2026.4.1 compiled such a ResNet-18 to
    # int8 that was off by 0.22 instead of 0.04 (relative L2).
    folding = passes.Manager()
    folding.register_pass(passes.ConstantFolding())
    folding.run_passes(model)
    attends = _has_attention(model)
    # Without VNNI oneDNN's kernels cut sums of two products at 16 bits, which weights of 7 bits cannot reach. These
    # take no longer (ResNet-18 on AVX2: 127 ms either way, relative L2 0.051 with 8 bits and 0.036 with 7; a small
    # attention: 0.38 and 0.02). NNCF's default does so in first layers only, whose inputs use all of their range.
    saturates = int8_products() == "saturating"
    fix = nncf.OverflowFix.ENABLE if saturates else nncf.OverflowFix.FIRST_LAYER

    def quantized(requests: Calibration, setting: _Setting) -> Any:
        return nncf.quantize(
            model.clone(),
            nncf.Dataset([dict(request) for request in requests]),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if attends else None,
            subset_size=len(requests),
            ignored_scope=nncf.IgnoredScope(
                patterns=[f"{PREPROCESS}.*", f"{POSTPROCESS}.*"], types=list(_RECURRENT), validate=False
            ),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=fix,
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=setting.smoothing),
                disable_bias_correction=not setting.correct_bias,
            ),
        )

    setting = best_of(
        _WITH_ATTENTION if attends else _WITHOUT_ATTENTION,
        calibration,
        lambda setting, seen, unseen: _answers(quantized(seen, setting), unseen),
        lambda unseen: _answers(model, unseen),
    )
    found = quantized(calibration, setting)
    if not any(node.get_type_name() == "FakeQuantize" for node in found.get_ops()):
        raise ConversionFailed("nothing was quantized: NNCF left all layers as they are")
    return found


def _answers(model: Any, requests: Calibration) -> Answers:
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [[np.array(array) for array in compiled(dict(request)).values()] for request in requests]


def _is_layer(node: Any) -> bool:
    """Whether `node` is a convolution or product with learned weights."""
    if node.get_friendly_name().startswith((PREPROCESS, POSTPROCESS)):
        return False
    if node.get_type_name() in _CONVOLUTIONS:
        return True
    return node.get_type_name() == "MatMul" and any(
        source.get_node().get_type_name() == "Constant" for source in node.input_values()
    )


def _has_attention(model: Any) -> bool:
    """Whether a Softmax weighs the rows of a product, as in transformers, which NNCF then treats more carefully."""
    waiting = [node for node in model.get_ops() if node.get_type_name() == "Softmax"]
    while waiting:
        for user in _users(waiting.pop()):
            if user.get_type_name() == "MatMul" and not _is_layer(user):
                return True
            waiting += [user] if user.get_type_name() in _PASS_ON else []
    return any(node.get_type_name() == "ScaledDotProductAttention" for node in model.get_ops())


def _users(node: Any) -> Iterator[Any]:
    for output in node.outputs():
        for target in output.get_target_inputs():
            yield target.get_node()


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
