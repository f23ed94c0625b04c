"""fp32 ONNX -> int8 ONNX in two kinds, because none is both fast on ONNX Runtime's CPU kernels and right on TensorRT.

`u8`: uint8 activations with zero points, int8 weights, quantized from layer to layer, for ONNX Runtime on CPUs.
`s8sym`: int8 activations and weights, all zero points 0, only the inputs of layers quantized, for TensorRT.
Weights have a scale per output channel in both. Ranges of activations come from the calibration data.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from enginehouse.contract.errors import ConversionFailed, EngineUnavailable
from enginehouse.engines.hardware import int8_products
from enginehouse_build.convert.best_of import Answers, Calibration, best_of
from enginehouse_build.convert.qdq import drop_unused, free_residuals, spare_others, unshare_weights, widen_constants
from enginehouse_build.convert.ranges import Range, ranges
from enginehouse_build.graph.graph import POSTPROCESS, PREPROCESS, constants, name_nodes, tally
from enginehouse_build.reference.onnx import reason

#: Operators that carry a model's cost; the second input holds what was learned.
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_RECURRENT = ("GRU", "LSTM", "RNN")
#: ONNX Runtime folds them into the layer before where that is quantized, and leaves them alone elsewhere.
_ACTIVATIONS = ("Relu", "Clip")
#: Between convolutions these stay in int8; each step through fp32 costs more than it (ResNet-18: 2.6x -> 3.0x).
_BETWEEN = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul", "Sigmoid"})
#: A Concat has one scale for all of its inputs. One that is this much narrower than the widest is left 32 of 256 steps.
_UNLIKE = 8.0
#: The answer of a linear layer goes on in fp32: what follows is rarely int8, and its range is wide (ViT: relative L2
#: 0.07 -> 0.03, and faster).
_ASYMMETRIC = {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]}
_SYMMETRIC = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": [*_LAYERS, "Add"],
}
#: Where signed numbers leave half of their range unused behind a Relu, cutting off the rarest values can be worth it
#: (ResNet-18: relative L2 0.054 -> 0.046); uint8 gains nothing by it.
_METHODS = ("MinMax", "Percentile")
_PERCENTILE = {"CalibPercentile": 99.999, "CalibStridedMinMax": 1}


def quantize_for_onnxruntime(source: Path, target: Path, calibration: Calibration) -> str:
    """Write the `u8` kind of the ONNX file `source` to `target`; returns a remark for its reader, or "".

    Raises ConversionFailed, also for a model without layers to quantize or of which none was quantized, and
    EngineUnavailable without ONNX Runtime.
    """
    return _quantize(source, target, calibration, symmetric=False)


def quantize_for_tensorrt(source: Path, target: Path, calibration: Calibration) -> str:
    """Write the `s8sym` kind of the ONNX file `source` to `target`; otherwise as `quantize_for_onnxruntime`."""
    return _quantize(source, target, calibration, symmetric=True)


def _quantize(source: Path, target: Path, calibration: Calibration, *, symmetric: bool) -> str:
    if not calibration:
        raise ConversionFailed("int8 needs calibration data, and there is no sample; give real data with --samples")
    try:
        import onnxruntime.quantization as library
    except ImportError as error:
        raise EngineUnavailable("onnxruntime-cpu", f"{error}; install enginehouse[cpu]") from None
    with tempfile.TemporaryDirectory(prefix="enginehouse-") as scratch, _quiet():
        prepared, trial = Path(scratch) / "prepared.onnx", Path(scratch) / "trial.onnx"

        def quantized(method: str, seen: Calibration, path: Path) -> Path:
            _static(library, prepared, path, chosen, method, seen, symmetric=symmetric)
            return path

        try:
            graph = _prepare(source, prepared).graph
            layers = _layers(graph)
            apart = set() if symmetric else _unlike(graph, ranges(prepared, calibration))
            chosen = layers + _between(graph, ("Add",) if symmetric else _BETWEEN, apart)
            if symmetric:
                method = best_of(
                    _METHODS,
                    calibration,
                    lambda method, seen, unseen: _answers(quantized(method, seen, trial), unseen),
                    lambda unseen: _answers(source, unseen),
                )
            else:
                chosen += [node for node in graph.node if node.op_type in _ACTIVATIONS and not _is_processing(node)]
                method = _METHODS[0]
            quantized(method, calibration, target)
        except ConversionFailed:
            raise
        except Exception as error:
            raise ConversionFailed(f"ONNX Runtime cannot quantize the model: {reason(error)}") from error
    heavy = [node for node in graph.node if node.op_type in (*_LAYERS, *_RECURRENT) and not _is_processing(node)]
    done = _in_int8(onnx.load(target).graph)
    if not done:
        raise ConversionFailed(
            f"nothing was quantized: the quantizer left all of {tally(node.op_type for node in layers)} as they are "
            "(it knows fp32 and fp16 only)"
        )
    left = [node.op_type for node in heavy if node.name not in done]
    return f"{len(left)} of {len(heavy)} layers stay in fp32: {tally(left)}" if left else ""


def _in_int8(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes whose activation and weights are both quantized in `graph`, whatever was asked for."""
    rounded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return {node.name for node in graph.node if len(node.input) > 1 and rounded.issuperset(node.input[:2])}


def _static(
    library: Any,
    prepared: Path,
    target: Path,
    chosen: Sequence[onnx.NodeProto],
    method: str,
    calibration: Calibration,
    *,
    symmetric: bool,
) -> None:
    """Write `prepared` with the `chosen` nodes in int8 to `target`."""
    library.quantize_static(
        prepared,
        target,
        _reader(library, calibration),
        op_types_to_quantize=sorted({node.op_type for node in chosen}),
        nodes_to_quantize=[node.name for node in chosen],
        per_channel=True,
        activation_type=library.QuantType.QInt8 if symmetric else library.QuantType.QUInt8,
        weight_type=library.QuantType.QInt8,
        calibrate_method=getattr(library.CalibrationMethod, method),
        extra_options=(_SYMMETRIC if symmetric else _ASYMMETRIC) | (_PERCENTILE if method == "Percentile" else {}),
    )
    proto = onnx.load(target)
    spare_others(proto.graph, {node.name for node in chosen})
    if symmetric:
        free_residuals(proto.graph, _CONVOLUTIONS)
    else:
        widen_constants(proto, PREPROCESS)
        if int8_products() == "saturating":
            unshare_weights(proto.graph)
    drop_unused(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, target)


def _answers(model: Path, requests: Calibration) -> Answers:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Without fusions, which would have int8 kernels compute: TensorRT's do not saturate, and CPUs without VNNI have no
    # others.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [session.run(None, dict(request)) for request in requests]


def _prepare(source: Path, target: Path) -> onnx.ModelProto:
    """Write `source` with batch normalisation and constants folded, types inferred and every node named."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    proto = onnx.load(source)
    name_nodes(proto)
    onnx.save(proto, target)
    # Its symbolic inference fails on some models; element types, which ONNX itself infers, are all that is needed.
    quant_pre_process(target, target, skip_symbolic_shape=True)
    proto = onnx.load(target)
    name_nodes(proto)
    onnx.save(proto, target)
    return proto


def _layers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    weights = constants(graph)
    found = [
        node for node in graph.node if node.op_type in _LAYERS and node.input[1] in weights and not _is_processing(node)
    ]
    if not found:
        raise ConversionFailed(
            "nothing to quantize: the model has no Conv, Gemm or MatMul with constant weights, only "
            f"{tally(node.op_type for node in graph.node)}"
        )
    return found


def _unlike(graph: onnx.GraphProto, seen: Mapping[str, Range]) -> set[str]:
    """Names of the Concats that join tensors of unlike ranges, as boxes in pixels and scores."""
    found = set()
    for node in graph.node:
        widths = [seen[name].width for name in node.input if name in seen and seen[name].width > 0]
        if node.op_type == "Concat" and widths and max(widths) > _UNLIKE * min(widths):
            found.add(node.name)
    return found


def _between(graph: onnx.GraphProto, kinds: Collection[str], apart: Collection[str] = ()) -> list[onnx.NodeProto]:
    """The nodes of these kinds that only convolutions feed, directly or through others between convolutions.

    The nodes called as those in `apart` are not, nor what only they feed.
    Elsewhere, as in the residual stream of a transformer, int8 costs accuracy and hardly saves time.
    """
    weights = constants(graph)
    convolved: set[str] = set()
    found = []
    for node in graph.node:
        if _is_processing(node) or node.name in apart:
            continue
        # A Clip has its limits as further inputs; where a binary operator has a constant it is no step between layers.
        inputs = node.input[:1] if node.op_type == "Clip" else node.input
        if node.op_type in _BETWEEN and convolved.issuperset(inputs) and not weights.keys() & set(inputs):
            convolved.update(node.output)
            found += [node] if node.op_type in kinds else []
        elif node.op_type in _CONVOLUTIONS or (node.op_type in _ACTIVATIONS and convolved.issuperset(inputs)):
            convolved.update(node.output)
    return found


def _is_processing(node: onnx.NodeProto) -> bool:
    """Whether it resizes or normalises what comes in, or ranks what goes out: nothing there was learned."""
    return str(node.name).startswith((PREPROCESS, POSTPROCESS))


def _reader(library: Any, calibration: Calibration) -> Any:
    class Reader(library.CalibrationDataReader):  # type: ignore[misc]
        """Hands out all requests, or those of a range: histograms keep every activation of a range in memory."""

        def __init__(self) -> None:
            self.requests = iter(calibration)

        def __len__(self) -> int:
            return len(calibration)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.requests = iter(calibration[start_index:end_index])

        def get_next(self) -> dict[str, Any] | None:
            request = next(self.requests, None)
            return None if request is None else dict(request)

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer prints its steps and warns of what is meant to be so; what matters comes as an exception."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
