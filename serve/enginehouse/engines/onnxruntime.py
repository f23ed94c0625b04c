"""ONNX Runtime engines: `onnxruntime-cpu` and `onnxruntime-cuda`.

A session may be run from any number of threads at once. Where ONNX Runtime would go on with less than was asked for
(a CPU session for a CUDA one, a retry on the CPU) these classes raise instead.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from enginehouse.contract.bounds import InputBounds
from enginehouse.contract.errors import EngineUnavailable, InvalidInput
from enginehouse.contract.manifest import EngineKind
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse.engines import EngineOptions
from enginehouse.engines.hardware import int8_products, probe_gpus
from enginehouse.engines.refusals import told

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_ONNX_BFLOAT16 = 16  # TensorProto.BFLOAT16
_LOG_ERRORS_ONLY = 3

#: Without VNNI ONNX Runtime's uint8 x int8 kernels saturate (relative L2 of 0.4 and 0.6 in small networks). With this
#: setting it makes weights beyond +-64 uint8, whose kernels are exact and take 1.2 (BERT) to 1.4 times (ResNet-18) as
#: long. Weights of 7 bits would take no longer, but round twice as coarsely on every CPU that the file goes to; int8
#: activations take longer than fp32.
_PRECISE_INT8: Mapping[str, str] = {"session.x64quantprecision": "1"}
#: Keeps the rounding of an int8 model and computes in fp32.
_WITHOUT_INT8_KERNELS: Mapping[str, str] = {"session.disable_quant_qdq": "1"}

#: Operators that carry a model's cost. ONNX Runtime leaves shape arithmetic on the CPU on purpose; never one of these.
_COMPUTE = frozenset(
    {"Attention", "Conv", "ConvInteger", "ConvTranspose", "Einsum", "Gemm", "GRU", "LSTM"}
    | {"MatMul", "MatMulInteger", "QLinearConv", "QLinearMatMul", "Resize", "RNN"}
)


class _OnnxRuntime:
    """What both providers share: one session, run by name, outputs copied out."""

    kind: EngineKind
    precision: str

    def __init__(self, options: EngineOptions, providers: Sequence[Any], settings: Mapping[str, str]) -> None:
        self.signature: Signature = options.signature
        self.inputs_only: InputBounds = options.artifact.bounds_on(self.kind)
        self._outputs = [spec.name for spec in options.signature.outputs]
        specs = options.signature.inputs + options.signature.outputs
        self._has_bfloat16 = any(spec.dtype == _BFLOAT16 for spec in specs)
        self._session: Any = self._load(options, providers, settings)

    def infer(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Run one batch; see `Engine.infer`. BYTES go in as str or bytes and come out as bytes (UTF-8)."""
        # Alive until this call returns, whatever close() does meanwhile.
        session = self._session
        if session is None:
            raise EngineUnavailable(self.kind, "it was closed")
        self.signature.check(inputs)
        feed = {name: _text(name, array) if array.dtype.kind in "OSU" else array for name, array in inputs.items()}
        try:
            if self._has_bfloat16:
                answers = _run_bfloat16(session, self._outputs, feed)
            else:
                answers = session.run(self._outputs, feed)
        except Exception as error:
            # The binding raises a class of its own for each status, none of them public.
            raise told(self.kind, str(error), inputs) from error
        return {name: _owned(answer) for name, answer in zip(self._outputs, answers, strict=True)}

    def close(self) -> None:
        """Drop the model; its memory goes when the last running `infer` returns."""
        self._session = None

    def _load(self, options: EngineOptions, providers: Sequence[Any], settings: Mapping[str, str]) -> Any:
        onnxruntime = _library(self.kind)
        session_options = onnxruntime.SessionOptions()
        # Callers compute too, each with its own thread: as many threads as cores in all.
        session_options.intra_op_num_threads = max(1, options.threads - options.concurrency + 1)
        session_options.inter_op_num_threads = 1
        session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        session_options.log_severity_level = _LOG_ERRORS_ONLY
        # Threads that spin between requests take the cores of the other replicas on this host.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for key, value in settings.items():
            session_options.add_session_config_entry(key, value)
        model = _model_file(self.kind, options.files)
        try:
            session = onnxruntime.InferenceSession(model, session_options, providers=list(providers))
        except Exception as error:
            raise EngineUnavailable(self.kind, f"{model}: {error}") from error
        # Without this a failing run prints to stdout and is repeated on the CPU.
        session.disable_fallback()
        _check_names(self.kind, session, self.signature)
        return session


def cpu_settings() -> Mapping[str, str]:
    """What a session on this CPU is configured with, so that int8 does not saturate."""
    # Where there is VNNI, too, ONNX Runtime 1.31 would make the weights uint8 (ResNet-18: 2.3 times as long).
    return _PRECISE_INT8 if int8_products() == "saturating" else {}


class OnnxRuntimeCpu(_OnnxRuntime):
    """ONNX Runtime on this machine's CPU. Raises EngineUnavailable if the model cannot be loaded."""

    kind = "onnxruntime-cpu"

    def __init__(self, options: EngineOptions) -> None:
        settings, asked = cpu_settings(), options.artifact.precision
        try:
            super().__init__(options, ["CPUExecutionProvider"], settings)
        except EngineUnavailable:
            if not settings:
                raise
            # ONNX Runtime 1.31 fails to make weights uint8 that several layers share.
            super().__init__(options, ["CPUExecutionProvider"], _WITHOUT_INT8_KERNELS)
            asked = "fp32" if asked == "int8" else asked
        # On x86 the CPU provider has no fp16 arithmetic: its optimised graphs have casts around fp32 kernels.
        emulated = asked == "fp16" and platform.machine() in ("x86_64", "AMD64")
        self.precision = "fp32" if emulated else asked


class OnnxRuntimeCuda(_OnnxRuntime):
    """ONNX Runtime on the first GPU that the driver shows to this process.

    Only the CUDA provider is asked for. ONNX Runtime always appends its CPU provider for shape arithmetic; a session
    that would compute there is refused. Raises EngineUnavailable without a GPU, a CUDA build or a fitting model.
    """

    kind = "onnxruntime-cuda"

    def __init__(self, options: EngineOptions) -> None:
        gpus = probe_gpus()
        if not gpus.devices:
            raise EngineUnavailable(self.kind, gpus.reason)
        asked = options.artifact.precision
        cuda = {"device_id": "0", "use_tf32": "0" if asked == "fp32" else "1"}
        settings = {"session.record_ep_graph_assignment_info": "1"}
        super().__init__(options, [("CUDAExecutionProvider", cuda)], settings)
        # Q/DQ stay around float kernels: the CUDA provider fuses none (ONNX Runtime docs, "Quantization on GPU").
        self.precision = "fp32" if asked == "int8" else asked

    def _load(self, options: EngineOptions, providers: Sequence[Any], settings: Mapping[str, str]) -> Any:
        # The provider's own library does not say where CUDA's are; those of pip's packages have to be loaded before it.
        _library(self.kind).preload_dlls()
        session = super()._load(options, providers, settings)
        active = session.get_providers()
        if active[0] != "CUDAExecutionProvider":
            raise EngineUnavailable(
                self.kind,
                f"ONNX Runtime opened {active[0]} instead of CUDAExecutionProvider: the wheel is a CPU build or its "
                "CUDA libraries do not load (see `enginehouse doctor`; install enginehouse[gpu] without [cpu])",
            )
        stranded = sorted(
            {
                node.op_type
                for part in session.get_provider_graph_assignment_info()
                if part.ep_name != "CUDAExecutionProvider"
                for node in part.get_nodes()
                if node.op_type in _COMPUTE
            }
        )
        if stranded:
            raise EngineUnavailable(
                self.kind, f"the CUDA provider has no kernel for {', '.join(stranded)} of {options.artifact.name!r}"
            )
        return session


def _library(kind: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineUnavailable(kind, f"{error}; install enginehouse[cpu] or enginehouse[gpu]") from None
    return onnxruntime


def _model_file(kind: str, files: Sequence[Path]) -> Path:
    models = [file for file in files if file.suffix == ".onnx"]
    if len(models) != 1:
        raise EngineUnavailable(kind, f"the artifact has {len(models)} .onnx files, it needs exactly 1")
    return models[0]


def _check_names(kind: str, session: Any, signature: Signature) -> None:
    for what, nodes, specs in (
        ("inputs", session.get_inputs(), signature.inputs),
        ("outputs", session.get_outputs(), signature.outputs),
    ):
        have, want = {node.name for node in nodes}, {spec.name for spec in specs}
        if not want <= have or (what == "inputs" and want != have):
            raise EngineUnavailable(kind, f"the model's {what} are {sorted(have)}, the manifest says {sorted(want)}")


def _text(name: str, array: np.ndarray) -> np.ndarray:
    """`array` as an object array of str: ONNX Runtime takes bytes for their repr and misreads numpy's fixed width."""
    if array.dtype.kind == "U":
        return array.astype(object)
    try:
        words = [item if isinstance(item, str) else bytes(item).decode() for item in array.ravel().tolist()]
    except (UnicodeDecodeError, TypeError) as error:
        raise InvalidInput(f"input {name!r} has an element that is not UTF-8 text: {error}") from None
    return np.array(words, dtype=object).reshape(array.shape)


def _owned(answer: np.ndarray) -> np.ndarray:
    """`answer` in memory of its own: ONNX Runtime's arrays borrow from its arena."""
    if answer.dtype.hasobject:
        return np.array([str(item).encode() for item in answer.ravel()], dtype=object).reshape(answer.shape)
    return answer if answer.flags.owndata else answer.copy()


def _run_bfloat16(session: Any, names: Sequence[str], feed: Tensors) -> list[np.ndarray]:
    """Run a model that has bfloat16 inputs or outputs, which the numpy interface of `run` does not know."""
    from onnxruntime import OrtValue

    values = {}
    for name, array in feed.items():
        if array.dtype == _BFLOAT16:
            words = np.ascontiguousarray(array).view(np.uint16)
            values[name] = OrtValue.ortvalue_from_numpy_with_onnx_type(words, _ONNX_BFLOAT16)
        else:
            values[name] = OrtValue.ortvalue_from_numpy(array)
    return [_to_numpy(value) for value in session.run_with_ort_values(list(names), values)]


def _to_numpy(value: Any) -> np.ndarray:
    if value.element_type() != _ONNX_BFLOAT16:
        return np.asarray(value.numpy())
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(data, _BFLOAT16).reshape(value.shape()).copy()
