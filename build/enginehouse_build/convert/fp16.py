"""fp32 ONNX -> fp16 ONNX whose inputs and outputs keep their types, as far as fp16 answers like fp32."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx

from enginehouse.contract.errors import ConversionFailed
from enginehouse.contract.tensors import Tensors
from enginehouse_build.convert import fallback
from enginehouse_build.convert.agreement import Agreement, Found
from enginehouse_build.convert.half_arithmetic import simulated
from enginehouse_build.convert.half_graph import HalfGraph
from enginehouse_build.convert.ranges import Range, ranges
from enginehouse_build.graph.graph import name_nodes
from enginehouse_build.reference.onnx import reason


def to_fp16(source: Path, target: Path, requests: Sequence[Tensors] = (), agreement: Agreement | None = None) -> str:
    """Write the ONNX file `source` with its arithmetic in fp16 to `target`.

    What makes or takes tensors that fp16 cannot hold on `requests` stays in fp32: values near its end, whole numbers
    beyond 2048, and what a normalisation would square beyond it. With an `agreement` fp16 is simulated, and what takes
    the answers beyond its limits stays in fp32 too.

    Returns what its reader should know: operators that stay in fp32 and why, and why a weight is not what it was, or
    "". Weights beyond fp16's range become its largest number. Raises ConversionFailed when no operator can be in fp16,
    and NothingHelps where it loses too much all the same.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(onnx.load(source), data_prop=True)
        name_nodes(proto)
        seen = ranges(source, requests)
        if agreement is None:
            return _converted(proto, target, seen).remark
        with tempfile.TemporaryDirectory(prefix="enginehouse-") as scratch:
            return _agreeing(proto, target, seen, agreement, Path(scratch))
    except (ConversionFailed, fallback.NothingHelps):
        raise
    except Exception as error:
        raise ConversionFailed(f"the model cannot be converted to fp16: {reason(error)}") from error


def _agreeing(
    proto: onnx.ModelProto, target: Path, seen: Mapping[str, Range], agreement: Agreement, scratch: Path
) -> str:
    """Convert with as few nodes left in fp32 as the agreement needs; the remark."""
    trial, wide = scratch / "trial.onnx", scratch / "wide.onnx"
    made: list[tuple[HalfGraph, Found]] = []

    def attempt(left: Sequence[str]) -> str:
        conversion = _converted(proto, target, seen, left)
        made[:] = [(conversion, agreement.found(simulated(target, conversion.half, wide)))]
        return made[0][1].fault

    def loss(names: Sequence[str]) -> float:
        alone = _converted(proto, trial, seen, set(made[0][0].halved).difference(names))
        return agreement.few().found(simulated(trial, alone.half, wide)).loss

    left = fallback.fewest_left(attempt, lambda: made[0][0].halved, loss)
    ((conversion, found),) = made
    told = (
        conversion.remark,
        fallback.remark(left, "fp16"),
        f"its arithmetic in fp16, simulated because CPUs compute it in fp32, is {found.relative_l2:.1e} from the "
        "reference (relative L2)",
    )
    return "; ".join(filter(None, told))


def _converted(
    proto: onnx.ModelProto, target: Path, seen: Mapping[str, Range], left: Collection[str] = ()
) -> HalfGraph:
    """Write `proto` in fp16, except the nodes called as those in `left`, to `target`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    conversion = HalfGraph(copy, seen, left)
    conversion.run()
    onnx.checker.check_model(copy, full_check=True)
    onnx.save(copy, target)
    return conversion
