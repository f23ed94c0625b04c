"""OpenVINO engine: `openvino-cpu`.

One compiled model and one infer request per concurrent caller, because a request that is running refuses every other
call. Callers beyond `EngineOptions.concurrency` wait for a free request. After a failure the model is compiled anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from enginehouse.contract.bounds import InputBounds
from enginehouse.contract.errors import EngineUnavailable, InferenceFailed
from enginehouse.contract.manifest import Artifact, EngineKind, Precision
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse.engines import EngineOptions, value_guards
from enginehouse.engines.hardware import int8_products, probe_cpu
from enginehouse.engines.refusals import refused, told
from enginehouse.engines.slots import Slots
from enginehouse.engines.strict_shapes import StrictShapes

_KIND: EngineKind = "openvino-cpu"
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_INT32 = np.iinfo(np.int32)
#: Bytes that mark an output as not computed yet, and by its rank the extent that marks a free one (the last for more).
#: What was computed and looks like the first mark does not look like the second, whose extents are 1 more.
_BYTES, _EXTENTS = (0xA5, 0x5A), (911, 29, 11, 5, 3)

#: Left to itself OpenVINO computes fp32 models in bf16 where the CPU can. Its int8 operators ignore the hint.
_HINT: Mapping[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


def _hint(precision: Precision) -> str:
    # Asked for f16 on a CPU without it OpenVINO takes bf16, which has 3 bits less; nobody asked for that.
    return "f32" if precision == "fp16" and "fp16" not in probe_cpu().flags else _HINT[precision]


#: Keeps the rounding of an int8 model and computes in fp32, as slowly as that. The second setting goes with the first:
#: OpenVINO would otherwise round the inputs of layers as it goes, and answered with nothing at all on AVX2 (2026.4.1).
_WITHOUT_INT8_KERNELS: Mapping[str, Any] = {"LP_TRANSFORMS_MODE": False, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}

_PRECISION_OF_TYPE = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}


class OpenVinoCpu:
    """OpenVINO on this machine's CPU. Raises EngineUnavailable if the model cannot be loaded.

    Whole numbers must fit 32 bits: `infer` raises InferenceFailed for larger ones, so that another engine may answer.
    `precision` is read back from the compiled model: a CPU without fp16 arithmetic runs fp16 models in fp32. So does
    one without VNNI an int8 model that was not made for such a CPU: its int8 products would be cut off.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.signature: Signature = options.signature
        self.inputs_only: InputBounds = options.artifact.bounds_on(_KIND)
        specs = options.signature.inputs + options.signature.outputs
        if any(spec.dtype.hasobject for spec in specs):
            # Observed with 2026.4.1: one inference with a string tensor corrupts the heap and the process aborts.
            raise EngineUnavailable(_KIND, "OpenVINO's string tensors are not safe; use onnxruntime-cpu for BYTES")
        graph = _read(options)
        if reason := value_guards.unsafe(graph):
            raise EngineUnavailable(_KIND, f"{reason}; use onnxruntime-cpu")
        self._shapes = StrictShapes(graph, options.signature)
        self._guards = value_guards.guard(graph, options.signature)
        compiled = _compile(options, graph)
        in_fp32 = _would_saturate(options.artifact)
        self.precision: str = "fp32" if in_fp32 else _effective_precision(compiled, options.artifact.precision)
        self._ports = _output_ports(compiled, options.signature)
        is_free = any(output.get_partial_shape().is_dynamic for node in graph.get_ops() for output in node.outputs())
        self._marked = {port: compiled.outputs[port].partial_shape.is_dynamic for port in self._ports if is_free}
        self._options = options
        requests = [_Request(compiled.create_infer_request()) for _ in range(options.concurrency)]
        self._requests: Slots[_Request] = Slots(_KIND, requests)

    def infer(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Run one batch, waiting for a free request if there is none; see `Engine.infer`."""
        self.signature.check(inputs)
        _check_integers(inputs)
        if reason := self._shapes.refusal(inputs):
            raise refused(_KIND, reason, inputs)
        with self._requests.use() as slot:
            suspects = list(self._marked.items())
            for turn in range(2):
                answers = self._run(slot, inputs, turn)
                suspects = [(port, is_free) for port, is_free in suspects if _is_marked(answers[port], is_free, turn)]
                if not suspects:
                    break
                self._renew(slot)
            else:
                # Why it gave up is not known. Models that have been warmed up do so over what is in a request.
                raise refused(_KIND, "the model cannot run with this", inputs)
            for each in self._guards:
                if count := int(answers[each.port]):
                    raise refused(_KIND, f"{each.fault}: {count}", inputs)
            return {
                spec.name: _array(answers[port], spec.dtype)
                for spec, port in zip(self.signature.outputs, self._ports, strict=True)
            }

    def _run(self, slot: _Request, inputs: Tensors, turn: int) -> Any:
        """The answers by output; those that are not computed keep the mark of this turn."""
        try:
            for port, is_free in self._marked.items():
                _mark(slot.request.get_output_tensor(port), is_free, turn)
            # Outputs are copied by OpenVINO itself; inputs are read in place where they can be.
            return slot.request.infer({name: _tensor(array) for name, array in inputs.items()}, share_inputs=True)
        except Exception as error:
            self._renew(slot)
            raise told(_KIND, str(error), inputs) from error

    def _renew(self, slot: _Request) -> None:
        """Compile the model anew after a failure, in place of the one that failed.

        Observed with 2026.4.1: one request whose shapes a MatMul, Conv, Pad, MaxPool or LayerNormalization refuses, and
        the compiled model refuses the next good one too, of the same shape as before or of any, for ever.
        """
        slot.request = None
        graph = _read(self._options)
        value_guards.guard(graph, self.signature)
        slot.request = _compile(self._options, graph).create_infer_request()

    def close(self) -> None:
        """Drop the free requests now and those in use when their `infer` returns."""
        self._requests.close()


@dataclass(slots=True)
class _Request:
    """A place for one infer request."""

    request: Any


def _read(options: EngineOptions) -> Any:
    try:
        import openvino
    except ImportError as error:
        raise EngineUnavailable(_KIND, f"{error}; install enginehouse[cpu]") from None
    model = _model_file(options.files)
    core = openvino.Core()
    # Mapped weights would be those of the file as it is now: what was verified has to answer, whatever becomes of it.
    core.set_property({"ENABLE_MMAP": False})
    try:
        graph = core.read_model(model)
    except Exception as error:
        raise EngineUnavailable(_KIND, f"{model}: {error}") from error
    for node in graph.get_ops():
        if node.get_type_name() == "TopK" and node.get_attributes()["sort"] == "value":
            # ONNX has the first of equal values first. Left to itself OpenVINO has any.
            node.set_attribute("stable", True)
    return graph


def _compile(options: EngineOptions, graph: Any) -> Any:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": _hint(options.artifact.precision),
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": min(options.concurrency, options.threads),
        # Pinning starts at core 0 in every process, so replicas on one host would share the same few cores.
        "ENABLE_CPU_PINNING": False,
    }
    if _would_saturate(options.artifact):
        settings |= _WITHOUT_INT8_KERNELS
    try:
        return openvino.Core().compile_model(graph, "CPU", settings)
    except Exception as error:
        raise EngineUnavailable(_KIND, f"{_model_file(options.files)}: {error}") from error


def _would_saturate(artifact: Artifact) -> bool:
    """Whether the int8 kernels of this CPU would cut products of this artifact, whose weights have all 8 bits."""
    if artifact.precision != "int8" or artifact.int8_products == "saturating":
        return False
    return int8_products() == "saturating"


def _model_file(files: Sequence[Path]) -> Path:
    models = [file for file in files if file.suffix == ".xml"]
    if len(models) != 1:
        raise EngineUnavailable(_KIND, f"the artifact has {len(models)} .xml files, it needs exactly 1")
    return models[0]


def _effective_precision(compiled: Any, asked: Precision) -> str:
    if asked == "int8":
        operators = compiled.get_runtime_model().get_ops()
        ran = {
            str(info["runtimePrecision"].value) for op in operators if "runtimePrecision" in (info := op.get_rt_info())
        }
        if ran & {"i8", "u8"}:
            return "int8"
    hint: str = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return _PRECISION_OF_TYPE.get(hint, hint)


def _output_ports(compiled: Any, signature: Signature) -> list[int]:
    """Position of each output of the signature among the compiled model's outputs, after checking all names."""
    inputs = [port.get_names() for port in compiled.inputs]
    outputs = [port.get_names() for port in compiled.outputs]
    fits = len(inputs) == len(signature.inputs) and all(
        any(spec.name in names for names in have)
        for specs, have in ((signature.inputs, inputs), (signature.outputs, outputs))
        for spec in specs
    )
    if not fits:
        have = [sorted(min(names, default="") for names in side) for side in (inputs, outputs)]
        want = [sorted(spec.name for spec in side) for side in (signature.inputs, signature.outputs)]
        raise EngineUnavailable(_KIND, f"the model has inputs and outputs {have}, the manifest says {want}")
    return [next(port for port, names in enumerate(outputs) if spec.name in names) for spec in signature.outputs]


def _check_integers(inputs: Tensors) -> None:
    # The CPU plugin computes 64-bit integers in 32 bits and wraps silently (observed with 2026.4.1).
    for name, array in inputs.items():
        if (
            array.dtype in (np.int64, np.uint64)
            and array.size
            and (array.max() > _INT32.max or array.min() < _INT32.min)
        ):
            raise InferenceFailed(
                f"{_KIND}: input {name!r} has values beyond 32 bits, which OpenVINO would cut; use onnxruntime-cpu"
            )


def _tensor(array: np.ndarray) -> Any:
    if array.dtype != _BFLOAT16:
        return array
    import openvino

    words = np.ascontiguousarray(array).view(np.uint16)
    return openvino.Tensor(words, words.shape, openvino.Type.bf16)


def _mark(output: Any, is_free: bool, turn: int) -> None:
    """Make `output` look as inferences hardly leave it, in each `turn` otherwise.

    With one thread OpenVINO 2026.4.1 swallows failures of free dimensions: `infer` returns as if all were well, and the
    outputs are still those of the request's previous caller.
    """
    if is_free:
        output.set_shape(_marked_shape(len(output.shape), turn))
    else:
        output.data.reshape(-1).view(np.uint8)[...] = _BYTES[turn]


def _is_marked(answer: np.ndarray, is_free: bool, turn: int) -> bool:
    if is_free:
        return answer.shape == _marked_shape(answer.ndim, turn)
    return bool(answer.size) and bool((answer.reshape(-1).view(np.uint8) == _BYTES[turn]).all())


def _marked_shape(rank: int, turn: int) -> tuple[int, ...]:
    # Not 0 entries, for many an answer is empty.
    return (_EXTENTS[min(rank, len(_EXTENTS)) - 1] + turn,) * rank


def _array(answer: np.ndarray, dtype: np.dtype) -> np.ndarray:
    # OpenVINO hands out bfloat16 bits labelled as float16.
    return answer.view(_BFLOAT16) if dtype == _BFLOAT16 else answer
