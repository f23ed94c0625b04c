"""An OpenVINO model in int8: what NNCF makes of it, and what stays in fp32 because int8 loses too much there."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from enginehouse.contract.errors import ConversionFailed, EngineUnavailable
from enginehouse.contract.parity import LIMITS
from enginehouse.contract.tensors import Tensors
from enginehouse.engines.hardware import int8_products
from enginehouse_build.convert import fallback
from enginehouse_build.convert.agreement import Agreement, some
from enginehouse_build.convert.best_of import Answers, Calibration, best_of
from enginehouse_build.graph.graph import POSTPROCESS, PREPROCESS

_CONVOLUTIONS = frozenset(
    {"Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData"}
)
#: What may stand between the Softmax of an attention and the product with its values.
_PASS_ON = frozenset({"Convert", "Reshape", "Select", "Squeeze", "Unsqueeze"})
#: What int8 does to them adds up from step to step (a small LSTM: relative L2 0.25 instead of 0.002).
_RECURRENT = ("GRUSequence", "LSTMSequence")
#: Layers and what makes their cost.
_HEAVY = frozenset({*_CONVOLUTIONS, *_RECURRENT, "MatMul"})
#: NNCF puts its rounding before them for what is behind them.
_AGNOSTIC = frozenset(
    {"Concat", "Convert", "Gather", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "StridedSlice", "Tile"}
    | {"Transpose", "Unsqueeze", "VariadicSplit"}
)
_ROUNDING = "FakeQuantize"
#: OpenVINO calls an ONNX operator with a bias so, without it.
_BIASED = "/WithoutBiases"
#: Between weights of a byte each and the layer that takes them.
_SCALING = frozenset({"Convert", "Multiply", "Reshape", "Subtract", "Transpose"})


class _Setting(NamedTuple):
    """What NNCF may do to weights before it rounds them."""

    smoothing: float
    correct_bias: bool


#: NNCF's defaults first. Smoothing tames the outliers of trained transformers and costs accuracy where there are none
#: (random BERT and ViT: relative L2 0.05 and 0.07 with it, 0.02 and 0.04 without); correcting biases helps most
#: convolutional networks, but not all (random ResNet-18: 0.047 with it, 0.042 without).
_WITH_ATTENTION = (_Setting(0.95, correct_bias=True), _Setting(-1.0, correct_bias=True))
_WITHOUT_ATTENTION = (_Setting(-1.0, correct_bias=True), _Setting(-1.0, correct_bias=False))


def quantized(model: Any, calibration: Calibration, agreement: Agreement | None) -> tuple[Any, str]:
    """`model` in int8 as far as its answers stay within the limits of `agreement`, and a remark for its reader, or "".

    By default the limits are those of int8, on the calibration data, which is one request at least. Raises
    EngineUnavailable without NNCF, ConversionFailed for a model of which less than half of the multiplications can be
    in int8, and NothingHelps where it loses too much all the same.
    """
    layers = [node for node in model.get_ops() if _is_layer(node)]
    if not layers:
        kinds = ", ".join(sorted({node.get_type_name() for node in model.get_ops()} - {"Constant"}))
        raise ConversionFailed(f"nothing to quantize: no convolution or product with constant weights, only {kinds}")
    quantize = _quantizer(model)
    judge = agreement or Agreement.of("openvino-int8", calibration, _run(model), LIMITS["int8"])
    counted = _macs(model, calibration[0])
    total = max(sum(counted.values()), 1)
    setting = best_of(
        _WITH_ATTENTION if _has_attention(model) else _WITHOUT_ATTENTION,
        calibration,
        lambda setting, seen, unseen: _answers(quantize(seen, setting, ()), unseen),
        lambda unseen: _answers(model, unseen),
    )
    made: list[Any] = []
    known: list[str] = []

    def rounded() -> int:
        return sum(counted.get(node.get_friendly_name(), 0) for node in made[0].get_ops() if _is_rounded(node))

    def attempt(left: Sequence[str]) -> str:
        made[:] = [quantize(calibration, setting, left)]
        if not any(node.get_type_name() == _ROUNDING for node in made[0].get_ops()):
            raise ConversionFailed("nothing was quantized: NNCF left all layers as they are")
        fallback.check_share(rounded() / total, "int8")
        return judge.found(_run(made[0])).fault

    def names() -> Sequence[str]:
        known[:] = [
            node.get_friendly_name() for node in made[0].get_ordered_ops() if _takes_rounded(node) or _is_rounded(node)
        ]
        return known

    def loss(alone: Sequence[str]) -> float:
        others = [name for name in known if name not in alone]
        return judge.few().found(_run(quantize(some(calibration), setting, others))).loss

    left = fallback.fewest_left(attempt, names, loss, counted, lambda: rounded() - fallback.LEAST_SHARE * total)
    (found,) = made
    return found, fallback.remark([name.removesuffix(_BIASED) for name in left], "int8")


def _quantizer(model: Any) -> Callable[[Calibration, _Setting, Collection[str]], Any]:
    """Quantizes `model` with the ranges of some requests, leaving the nodes of some names alone."""
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
    # Without VNNI oneDNN's kernels cut sums of two products at 16 bits, which weights of 7 bits cannot reach. These
    # take no longer (ResNet-18 on AVX2: 127 ms either way, relative L2 0.051 with 8 bits and 0.036 with 7; a small
    # attention: 0.38 and 0.02). NNCF's default does so in first layers only, whose inputs use all of their range.
    saturates = int8_products() == "saturating"
    fix = nncf.OverflowFix.ENABLE if saturates else nncf.OverflowFix.FIRST_LAYER

    def quantize(requests: Calibration, setting: _Setting, left: Collection[str]) -> Any:
        return nncf.quantize(
            model.clone(),
            nncf.Dataset([dict(request) for request in requests]),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if _has_attention(model) else None,
            subset_size=len(requests),
            ignored_scope=nncf.IgnoredScope(
                names=sorted(left),
                patterns=[f"{PREPROCESS}.*", f"{POSTPROCESS}.*"],
                types=list(_RECURRENT),
                validate=False,
            ),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=fix,
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=setting.smoothing),
                disable_bias_correction=not setting.correct_bias,
            ),
        )

    return quantize


def _takes_rounded(node: Any) -> bool:
    return any(value.get_node().get_type_name() == _ROUNDING for value in node.input_values())


def _is_rounded(node: Any) -> bool:
    """Whether all that a layer multiplies is rounded to int8, directly or before what only moves it."""
    return node.get_type_name() in _HEAVY and all(
        _comes_rounded(value) or _is_stored_rounded(value) for value in node.input_values()[:2]
    )


def _comes_rounded(value: Any) -> bool:
    node = value.get_node()
    if node.get_type_name() == _ROUNDING:
        return True
    if node.get_type_name() not in _AGNOSTIC:
        return False
    moved = node.input_values() if node.get_type_name() == "Concat" else node.input_values()[:1]
    return all(_comes_rounded(each) for each in moved)


def _is_stored_rounded(value: Any) -> bool:
    """Whether these are weights that are kept as bytes, with scales behind them."""
    node = value.get_node()
    while node.get_type_name() in _SCALING:
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in ("i8", "u8")


def _macs(model: Any, request: Tensors) -> Mapping[str, int]:
    """Multiply-accumulates that `request` takes, by name of the layer."""
    sized = model.clone()
    sized.reshape(
        {name: list(request[name].shape) for value in sized.inputs for name in value.get_names() if name in request}
    )
    return {
        node.get_friendly_name(): _products(node)
        for node in sized.get_ops()
        if node.get_type_name() in _HEAVY and not node.get_friendly_name().startswith((PREPROCESS, POSTPROCESS))
    }


def _products(node: Any) -> int:
    kind = node.get_type_name()
    first, second = (_shape(value) for value in node.input_values()[:2])
    if kind in _RECURRENT:
        # Both weights: of the input and of the state.
        weights = [_shape(value) for value in node.input_values()[-3:-1]]
        return math.prod(first[:2]) * sum(math.prod(shape) for shape in weights)
    if kind == "MatMul":
        return math.prod(_shape(node.output(0))) * first[-2 if node.get_attributes()["transpose_a"] else -1]
    # The weights of groups have an axis more.
    beyond = math.prod(second[2 if kind.startswith("Group") else 1 :])
    return math.prod(first if kind.endswith("BackpropData") else _shape(node.output(0))) * beyond


def _shape(value: Any) -> tuple[int, ...]:
    """Its extents, with 1 for those that depend on values."""
    return tuple(extent.get_length() if extent.is_static else 1 for extent in value.get_partial_shape())


def _run(model: Any) -> Callable[[Tensors], Tensors]:
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(request: Tensors) -> Tensors:
        answer = compiled(dict(request))
        # An output may have several names, of which the reference knows one.
        return {name: np.array(answer[output]) for output in compiled.outputs for name in sorted(output.get_names())}

    return run


def _answers(model: Any, requests: Calibration) -> Answers:
    run = _run(model)
    return [list(run(request).values()) for request in requests]


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
