"""fp32 ONNX -> int8 ONNX in two kinds, because none is both fast on ONNX Runtime's CPU kernels and right on TensorRT.

`u8`: uint8 activations with zero points, int8 weights, quantized from layer to layer, for ONNX Runtime on CPUs.
`s8sym`: int8 activations and weights, all zero points 0, only the inputs of layers quantized, for TensorRT.
Weights have a scale per output channel in both. Ranges of activations come from the calibration data.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import onnx

from enginehouse.contract.errors import ConversionFailed, EngineUnavailable
from enginehouse.contract.parity import LIMITS
from enginehouse_build.convert import fallback
from enginehouse_build.convert.agreement import Agreement, Found
from enginehouse_build.convert.best_of import Answers, Calibration, best_of
from enginehouse_build.convert.macs import PRODUCTS, macs
from enginehouse_build.convert.quantizer import CONVOLUTIONS, LAYERS, METHODS, prepare, quantize, quiet
from enginehouse_build.convert.ranges import ranges
from enginehouse_build.convert.unlike import unlike_ends, unlike_joins
from enginehouse_build.graph.graph import POSTPROCESS, PREPROCESS, constants, tally
from enginehouse_build.reference.onnx import plain_session, reason

#: ONNX Runtime folds them into the layer before where that is quantized, and leaves them alone elsewhere.
_ACTIVATIONS = ("Relu", "Clip")
#: Between convolutions these stay in int8; each step through fp32 costs more than it (ResNet-18: 2.6x -> 3.0x).
_BETWEEN = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul", "Sigmoid"})
#: The worst slice of an answer is further off than the whole by this where one scale was too coarse for it.
_COARSE = 4.0


def quantize_for_onnxruntime(
    source: Path, target: Path, calibration: Calibration, agreement: Agreement | None = None
) -> str:
    """Write the `u8` kind of the ONNX file `source` to `target`; returns a remark for its reader, or "".

    What loses so much in int8 that the answers leave the limits of `agreement` (by default those of int8, on the
    calibration data, which is one request at least) stays in fp32. Raises ConversionFailed, also where less than half
    of the multiplications can be in int8, NothingHelps, and EngineUnavailable without ONNX Runtime.
    """
    return _quantize(source, target, calibration, agreement, symmetric=False)


def quantize_for_tensorrt(
    source: Path, target: Path, calibration: Calibration, agreement: Agreement | None = None
) -> str:
    """Write the `s8sym` kind of the ONNX file `source` to `target`; otherwise as `quantize_for_onnxruntime`."""
    return _quantize(source, target, calibration, agreement, symmetric=True)


def _quantize(
    source: Path, target: Path, calibration: Calibration, agreement: Agreement | None, *, symmetric: bool
) -> str:
    with tempfile.TemporaryDirectory(prefix="enginehouse-") as scratch, quiet():
        try:
            return _converted(source, target, calibration, agreement, Path(scratch), symmetric=symmetric)
        except (ConversionFailed, EngineUnavailable, fallback.NothingHelps):
            raise
        except Exception as error:
            raise ConversionFailed(f"ONNX Runtime cannot quantize the model: {reason(error)}") from error


def _converted(
    source: Path,
    target: Path,
    calibration: Calibration,
    agreement: Agreement | None,
    scratch: Path,
    *,
    symmetric: bool,
) -> str:
    prepared, trial, kept = (scratch / name for name in ("prepared.onnx", "trial.onnx", "ranges.json"))
    graph = prepare(source, prepared).graph
    layers = _layers(graph)
    heavy = [node for node in graph.node if node.op_type in PRODUCTS and not _is_processing(node)]
    counted = macs(prepared, calibration[0])
    total = max(sum(counted[node.name] for node in heavy), 1)
    apart = set() if symmetric else unlike_joins(graph, ranges(prepared, calibration))
    chosen = layers + _between(graph, ("Add",) if symmetric else _BETWEEN, apart)
    method, folded = METHODS[0], []
    if symmetric:
        method = best_of(
            METHODS,
            calibration,
            lambda method, seen, unseen: _answers(
                quantize(prepared, trial, chosen, method, seen, symmetric=symmetric), unseen
            ),
            lambda unseen: _answers(source, unseen),
        )
    else:
        folded = [node for node in graph.node if node.op_type in _ACTIVATIONS and not _is_processing(node)]
    judge = agreement or Agreement.of(
        "tensorrt-int8" if symmetric else "onnx-int8", calibration, plain_session(source), LIMITS["int8"]
    )

    def made(nodes: Sequence[onnx.NodeProto], path: Path) -> Path:
        return quantize(prepared, path, [*nodes, *folded], method, calibration, symmetric=symmetric, kept_ranges=kept)

    latest: list[Found] = []

    def attempt(left: Sequence[str]) -> str:
        nodes = [node for node in chosen if node.name not in left]
        latest[:] = [judge.found(plain_session(made(nodes, target)))]
        return latest[0].fault

    def loss(names: Sequence[str]) -> float:
        alone = [node for node in chosen if node.name in names]
        return judge.few().found(plain_session(made(alone, trial))).loss

    possible = sum(counted[node.name] for node in layers)
    fallback.check_share(possible / total, "int8")
    spare = possible - fallback.LEAST_SHARE * total
    left = fallback.fewest_left(attempt, lambda: [node.name for node in chosen], loss, counted, lambda: spare)
    (before,) = latest
    if not symmetric and before.slice > _COARSE * before.relative_l2:
        names = {node.name for node in chosen} - set(left)
        ends = unlike_ends(graph, names, {node.name for node in layers}, prepared, calibration)
        finer = (*left, *ends)
        if ends and sum(counted.get(name, 0) for name in finer) <= spare:
            if not attempt(finer) and latest[0].slice < before.slice / 2:
                left = finer
            else:
                attempt(left)
    done = _in_int8(onnx.load(target).graph)
    if not done:
        raise ConversionFailed(
            f"nothing was quantized: the quantizer left all of {tally(node.op_type for node in layers)} as they are "
            "(it knows fp32 and fp16 only)"
        )
    fallback.check_share(sum(counted[node.name] for node in heavy if node.name in done) / total, "int8")
    others = [node.op_type for node in heavy if node.name not in done and node.name not in left]
    remarks = [
        f"{len(others)} of {len(heavy)} layers stay in fp32: {tally(others)}" if others else "",
        fallback.remark(left, "int8"),
    ]
    return "; ".join(filter(None, remarks))


def _in_int8(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes whose activation and weights are both quantized in `graph`, whatever was asked for."""
    rounded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return {node.name for node in graph.node if len(node.input) > 1 and rounded.issuperset(node.input[:2])}


def _answers(model: Path, requests: Calibration) -> Answers:
    # Without fusions, which would have int8 kernels compute: TensorRT's do not saturate, and CPUs without VNNI have no
    # others.
    run = plain_session(model)
    return [list(run(request).values()) for request in requests]


def _layers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    weights = constants(graph)
    found = [
        node for node in graph.node if node.op_type in LAYERS and node.input[1] in weights and not _is_processing(node)
    ]
    if not found:
        raise ConversionFailed(
            "nothing to quantize: the model has no Conv, Gemm or MatMul with constant weights, only "
            f"{tally(node.op_type for node in graph.node)}"
        )
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
        elif node.op_type in CONVOLUTIONS or (node.op_type in _ACTIVATIONS and convolved.issuperset(inputs)):
            convolved.update(node.output)
    return found


def _is_processing(node: onnx.NodeProto) -> bool:
    """Whether it resizes or normalises what comes in, or ranks what goes out: nothing there was learned."""
    return str(node.name).startswith((PREPROCESS, POSTPROCESS))
