"""ONNX Runtime's quantizer, as it is used here: what it is given, asked for, and what is put right behind it."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from enginehouse.contract.errors import EngineUnavailable
from enginehouse.engines.hardware import int8_products
from enginehouse_build.convert.best_of import Calibration
from enginehouse_build.convert.qdq import drop_unused, free_residuals, spare_others, unshare_weights, widen_constants
from enginehouse_build.graph.graph import PREPROCESS, name_nodes

#: Operators that carry a model's cost; the second input holds what was learned.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CONVOLUTIONS = ("Conv", "ConvTranspose")
#: The answer of a linear layer goes on in fp32: what follows is rarely int8, and its range is wide (ViT: relative L2
#: 0.07 -> 0.03, and faster).
_ASYMMETRIC: Mapping[str, Any] = {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]}
_SYMMETRIC: Mapping[str, Any] = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": [*LAYERS, "Add"],
}
#: Where signed numbers leave half of their range unused behind a Relu, cutting off the rarest values can be worth it
#: (ResNet-18: relative L2 0.054 -> 0.046); uint8 gains nothing by it.
METHODS = ("MinMax", "Percentile")
_PERCENTILE: Mapping[str, Any] = {"CalibPercentile": 99.999, "CalibStridedMinMax": 1}


def prepare(source: Path, target: Path) -> onnx.ModelProto:
    """Write `source` with batch normalisation and constants folded, types inferred and every node named.

    Raises EngineUnavailable without ONNX Runtime.
    """
    try:
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise EngineUnavailable("onnxruntime-cpu", f"{error}; install enginehouse[cpu]") from None
    proto = onnx.load(source)
    name_nodes(proto)
    onnx.save(proto, target)
    # Its symbolic inference fails on some models; element types, which ONNX itself infers, are all that is needed.
    quant_pre_process(target, target, skip_symbolic_shape=True)
    proto = onnx.load(target)
    name_nodes(proto)
    onnx.save(proto, target)
    return proto


def quantize(
    prepared: Path,
    target: Path,
    chosen: Sequence[onnx.NodeProto],
    method: str,
    calibration: Calibration,
    *,
    symmetric: bool,
    kept_ranges: Path | None = None,
) -> Path:
    """Write the `prepared` model with the `chosen` nodes in int8 to `target`, and return that.

    Ranges are found by `method` in the requests of `calibration`. Those in the file `kept_ranges` are used if it is
    there, and written there if it is not; they have to be those of all nodes that are ever chosen.
    """
    import onnxruntime.quantization as library

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
        extra_options={
            **(_SYMMETRIC if symmetric else _ASYMMETRIC),
            **(_PERCENTILE if method == "Percentile" else {}),
        },
        calibration_cache_path=kept_ranges,
    )
    proto = onnx.load(target)
    spare_others(proto.graph, {node.name for node in chosen})
    if symmetric:
        free_residuals(proto.graph, CONVOLUTIONS)
    else:
        widen_constants(proto, PREPROCESS)
        if int8_products() == "saturating":
            unshare_weights(proto.graph)
    drop_unused(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, target)
    return target


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The quantizer prints its steps and warns of what is meant to be so; what matters comes as an exception."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


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
