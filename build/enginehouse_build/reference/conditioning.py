"""Why an artifact that was converted correctly may still answer differently: models that magnify rounding errors.

What rounding decides is no fault: a difference that moving the reference's own numbers by rounding makes as well.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from enginehouse.contract.errors import EnginehouseError, ParityFailed
from enginehouse.contract.manifest import Precision
from enginehouse.contract.parity import LIMITS, WHOLE, Limits, compare, first_difference
from enginehouse.contract.tensors import Tensors
from enginehouse_build.graph.graph import graphs
from enginehouse_build.reference.onnx import plain_session

#: Unit roundoff of each precision: the relative error of storing one value. int8: half a step of 127.
_ROUNDOFF: Mapping[Precision, float] = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 0.5 / 127}
_FP16_MAX = 65504.0
#: Perturbations of this relative size leave a well-conditioned model's answer within a few times of it.
_PROBE = 2.0**-20
#: Inputs that say where and how much, not what: no rounding moves them, and moved ones are refused. A square of
#: negative numbers is no number with any other exponent, so that nothing would be steady.
_FIXED: Mapping[str, tuple[int, ...]] = {"Pow": (1,), "Range": (0, 1, 2), "Resize": (1, 2), "Upsample": (1,)}
#: A model that magnifies the probe by less than this is not to blame.
_MAGNIFIED = 100.0
SEED = 0
#: About what rounding makes of the values inside a deep network, relative to them.
_BY = 1e-5
SEEDS = (0, 1)
#: How many times as many whole numbers as were seen to change may do so: rounding falls either way.
EITHER_WAY = 4
#: In a short answer a single number is more than the share that may differ.
_FEW = 2


class Rounding:
    """The reference in the ONNX file `model`, its weights and inputs moved by what rounding may make of them.

    Such models are made when they are first asked: few artifacts differ in anything.
    """

    def __init__(self, model: Path, threads: int) -> None:
        self._model = model
        self._threads = threads

    @cached_property
    def _runs(self) -> Sequence[Callable[[Tensors], Tensors]]:
        return [shaken(self._model, self._threads, _BY, seed) for seed in SEEDS]

    def answers(self, request: Tensors) -> list[Tensors]:
        """What the moved references answer, one for each seed; none where they refuse what the reference takes."""
        try:
            return [run(request) for run in self._runs]
        except Exception:
            # A constant that decides of shapes was moved too far; ONNX Runtime raises classes of its own.
            return []

    def difference(self, got: Tensors, want: Tensors, request: Tensors, limits: Limits) -> str | None:
        """In words, where `got` is another answer to `request` than `want`; None where rounding explains it.

        An output that rounding moves past `limits` proves nothing. Whole numbers have to be equal up to the share of
        them that rounding decides; where `limits` allow that some differ, one of them may in any case.
        """
        if first_difference(got, want, limits.relative_l2, limits.worst_row) is None:
            return None
        moved = self.answers(request)
        for name, array in want.items():
            own = {name: array}
            share = self._share(array, [answer[name] for answer in moved], limits)
            there = {name: got[name]} if name in got else {}
            fault = first_difference(there, own, limits.relative_l2, limits.worst_row, {name: share})
            if fault is None:
                continue
            steady = array.dtype.kind in WHOLE or all(
                first_difference(answer, own, limits.relative_l2, limits.worst_row) is None for answer in moved
            )
            if steady:
                return fault
        return None

    @staticmethod
    def _share(want: np.ndarray, moved: Sequence[np.ndarray], limits: Limits) -> float:
        if want.dtype.kind not in WHOLE or not want.size:
            return 0.0
        if limits.differing > LIMITS["fp32"].differing:
            return max(limits.differing, 1 / want.size)
        seen = max((float(np.mean(other != want)) for other in moved if other.shape == want.shape), default=0.0)
        return min(EITHER_WAY * seen, max(limits.differing, _FEW / want.size))


def explain(model: Path, request: Tensors, answer: Tensors, precision: Precision, threads: int) -> str:
    """What in the fp32 model itself makes `precision` answer differently; empty when nothing was found.

    Looks at whether it is quantized, at how far it moves when every weight and float input moves by 2^-20 of itself,
    and at magnitudes beyond fp16.
    """
    found = [quantized] if (quantized := _quantized(model)) else []
    try:
        shift = compare(shaken(model, threads, _PROBE)(request), answer).relative_l2
        changed = "all of its finite values" if shift > 1 else f"its answer by {shift:.1e}"
    except ParityFailed:
        shift, changed = np.inf, "finite answers into infinite ones"
    except EnginehouseError:
        return "; ".join(found)
    if shift > _MAGNIFIED * _PROBE:
        found.append(
            f"the model is ill-conditioned: moving its weights and inputs by {_PROBE:.0e} of themselves changes "
            f"{changed} (relative L2), and {precision} rounds by {_ROUNDOFF[precision]:.0e}"
        )
    largest = max((float(np.abs(array[np.isfinite(array)]).max(initial=0)) for array in _floats(answer)), default=0.0)
    if precision == "fp16" and largest > _FP16_MAX:
        found.append(f"its answers reach {largest:.1e}, and fp16 ends at {_FP16_MAX:.0f}")
    return "; ".join(found)


def _quantized(path: Path) -> str:
    """What it means that the model is quantized already; empty where it is not."""
    model = onnx.load(path, load_external_data=False)
    steps = Counter(node.op_type for graph in graphs(model) for node in graph.node if _is_step(node.op_type))
    if not steps:
        return ""
    counted = ", ".join(f"{op} {count}" for op, count in steps.items())
    return (
        f"the source is quantized already ({counted}): engines compute it in whole numbers, and what rounding moves "
        "past the edge of a step comes out a whole step away, so that the limits of a model in floats say little about "
        "it; if steps are good enough for you, say so with --limit, or give the source in floats and have int8 made"
    )


def _is_step(op_type: str) -> bool:
    return op_type.startswith("QLinear") or op_type in ("QuantizeLinear", "DynamicQuantizeLinear")


def shaken(model: Path, threads: int, by: float, seed: int = SEED) -> Callable[[Tensors], dict[str, np.ndarray]]:
    """The fp32 model in the ONNX file `model`, each weight and float input moved by at most `by` of itself."""
    run = _perturbed(model, threads, by, np.random.default_rng(seed))
    return lambda request: run(_shaken(request, by, np.random.default_rng(seed)))


def _floats(tensors: Tensors) -> list[np.ndarray]:
    return [array for array in tensors.values() if array.dtype.kind == "f"]


def _perturbed(
    path: Path, threads: int, by: float, generator: np.random.Generator
) -> Callable[[Tensors], dict[str, np.ndarray]]:
    model = onnx.load(path)
    _write_out(model.graph)
    fixed = {
        node.input[at]
        for graph in graphs(model)
        for node in graph.node
        for at in _FIXED.get(node.op_type, ())
        if at < len(node.input)
    }
    for weights in model.graph.initializer:
        if weights.data_type == onnx.TensorProto.FLOAT and weights.name not in fixed:
            weights.CopyFrom(
                numpy_helper.from_array(_moved(numpy_helper.to_array(weights), by, generator), weights.name)
            )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "perturbed.onnx"
        onnx.save(model, target)
        return plain_session(target, threads)


def _write_out(graph: onnx.GraphProto) -> None:
    """Make weights of what the graph itself fills with one value: as such they could all move only together."""
    shapes = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "ConstantOfShape" and node.input[0] in shapes]:
        filled = [numpy_helper.to_array(attribute.t) for attribute in node.attribute] or [np.zeros(1, np.float32)]
        weights = np.full(numpy_helper.to_array(shapes[node.input[0]]), filled[0].item(), filled[0].dtype)
        graph.initializer.append(numpy_helper.from_array(weights, node.output[0]))
        graph.node.remove(node)


def _shaken(request: Tensors, by: float, generator: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        name: _moved(array, by, generator) if array.dtype == np.float32 else array for name, array in request.items()
    }


def _moved(array: np.ndarray, by: float, generator: np.random.Generator) -> np.ndarray:
    # The largest number may become infinite.
    with np.errstate(over="ignore"):
        return np.asarray(array * (1 + generator.uniform(-by, by, array.shape)), dtype=np.float32)
