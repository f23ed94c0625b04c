"""Running a TensorRT engine, of either flavour: one code path for both Python modules.

One deserialised engine per process. Each concurrent caller gets a worker of its own: an execution context, a stream,
and device and pinned host buffers that hold the largest shapes of the optimisation profile, allocated once.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse.contract.bounds import InputBounds
from enginehouse.contract.errors import EngineUnavailable, InvalidInput
from enginehouse.contract.tensors import DTYPES, Signature, Tensors
from enginehouse.engines import EngineOptions
from enginehouse.engines.refusals import told
from enginehouse.engines.slots import Slots
from enginehouse.engines.tensorrt.device import Buffer, DeviceError, cuda, stream
from enginehouse.engines.tensorrt.library import KIND, library, listener, readable

_PROFILE = 0

#: Name in the enum `DataType` -> name in the protocol.
_DATATYPE = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    "BF16": "BF16",
    "INT8": "INT8",
    "UINT8": "UINT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "BOOL": "BOOL",
}


class TensorRT:
    """TensorRT on the first GPU that the driver shows to this process.

    `options.files` is the one engine, made for this node (see `enginehouse.engines.tensorrt.fitted`), and
    `options.artifact.requires` says which flavour. Raises EngineUnavailable when TensorRT refuses it, and for shape
    tensors or outputs whose shape depends on data. `infer` raises InvalidInput for shapes outside the profile.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.signature: Signature = options.signature
        self.inputs_only: InputBounds = options.artifact.bounds_on("tensorrt")
        # Networks are strongly typed: what the file was built from is what it computes in.
        self.precision: str = options.artifact.effective_precision or options.artifact.precision
        trt = library(options.artifact.requires["flavour"])
        (file,) = options.files
        engine, log = _deserialize(trt, file)
        _check_tensors(trt, engine, options.signature)
        workers: list[_Worker] = []
        try:
            while len(workers) < options.concurrency:
                workers.append(_Worker(engine, log, options.signature))
        except DeviceError as error:
            for worker in workers:
                worker.free()
            raise EngineUnavailable(KIND, str(error)) from None
        self._profile = {spec.name: _profile_shapes(engine, spec.name) for spec in options.signature.inputs}
        self._workers = Slots(KIND, workers, _Worker.free)

    def infer(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Run one batch, waiting for a free worker if there is none; see `Engine.infer`."""
        self.signature.check(inputs)
        for name, array in inputs.items():
            smallest, largest = self._profile[name]
            if any(not low <= dim <= high for low, dim, high in zip(smallest, array.shape, largest, strict=True)):
                raise InvalidInput(
                    f"input {name!r} has shape {list(array.shape)}; this engine was built for "
                    f"{list(smallest)} to {list(largest)}"
                )
        with self._workers.use() as worker:
            try:
                return worker.run(inputs)
            except DeviceError as error:
                raise told(KIND, str(error), inputs) from None

    def close(self) -> None:
        """Free the workers that are idle now and the others when their `infer` returns."""
        self._workers.close()


class _Worker:
    """What one `infer` call needs for itself. Raises DeviceError; frees what it has when it cannot be made."""

    def __init__(self, engine: Any, log: list[str], signature: Signature) -> None:
        self._log = log
        self._signature = signature
        self._buffers: dict[str, Buffer] = {}
        self._stream: Any = None
        self._context = engine.create_execution_context()
        if self._context is None:
            raise DeviceError(f"no execution context: {_last(log)}")
        try:
            self._allocate(engine)
        except BaseException:
            self.free()
            raise

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Copy in, execute, copy out; the arrays returned are new."""
        try:
            for name, array in inputs.items():
                self._set_shape(name, array.shape)
                self._buffers[name].upload(array, self._stream)
            if not self._context.execute_async_v3(int(self._stream)):
                raise DeviceError(f"execute_async_v3 refused the batch: {_last(self._log)}")
            views = {
                spec.name: self._buffers[spec.name].download(
                    tuple(self._context.get_tensor_shape(spec.name)), spec.dtype, self._stream
                )
                for spec in self._signature.outputs
            }
        finally:
            # Also after a failure: the next caller reuses these buffers.
            cuda("cudaStreamSynchronize", self._stream)
        return {name: view.copy() for name, view in views.items()}

    def free(self) -> None:
        """Release stream, buffers and context."""
        self._context = None
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers.clear()
        if self._stream is not None:
            cuda("cudaStreamDestroy", self._stream)
            self._stream = None

    def _allocate(self, engine: Any) -> None:
        self._stream = stream()
        for spec in self._signature.inputs:
            largest = _profile_shapes(engine, spec.name)[1]
            self._set_shape(spec.name, largest)
            self._bind(spec.name, math.prod(largest) * spec.dtype.itemsize)
        # Known only once every input has its largest shape.
        for spec in self._signature.outputs:
            if -1 in tuple(self._context.get_tensor_shape(spec.name)):
                raise EngineUnavailable(
                    KIND, f"the shape of output {spec.name!r} depends on data, which is not supported"
                )
            self._bind(spec.name, int(self._context.get_max_output_size(spec.name)))

    def _bind(self, name: str, size: int) -> None:
        self._buffers[name] = buffer = Buffer(size)
        if not self._context.set_tensor_address(name, buffer.device):
            raise DeviceError(f"set_tensor_address({name!r}) failed: {_last(self._log)}")

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(name, shape):
            raise DeviceError(f"set_input_shape({name!r}, {shape}) failed: {_last(self._log)}")


def _deserialize(trt: Any, file: Path) -> tuple[Any, list[str]]:
    """The engine in `file`, and the list to which TensorRT's error messages are added from now on."""
    listens = listener(trt)
    loader = trt.Runtime(listens)
    engine = loader.deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise EngineUnavailable(
            KIND, f"{file}: not loadable by {trt.__name__} {trt.__version__}: {_last(listens.errors)}"
        )
    return engine, listens.errors


def _check_tensors(trt: Any, engine: Any, signature: Signature) -> None:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for what, mode, specs in (
        ("inputs", trt.TensorIOMode.INPUT, signature.inputs),
        ("outputs", trt.TensorIOMode.OUTPUT, signature.outputs),
    ):
        have = {name for name in names if engine.get_tensor_mode(name) == mode}
        want = {spec.name for spec in specs}
        if have != want:
            raise EngineUnavailable(KIND, f"the engine's {what} are {sorted(have)}, the manifest says {sorted(want)}")
        for spec in specs:
            found = engine.get_tensor_dtype(spec.name).name
            if DTYPES.get(_DATATYPE.get(found, "")) != spec.dtype:
                raise EngineUnavailable(KIND, f"{spec.name!r} is {found} in the engine, the manifest says {spec}")
            if engine.get_tensor_location(spec.name) != trt.TensorLocation.DEVICE:
                raise EngineUnavailable(KIND, f"{spec.name!r} is a shape tensor, which is not supported")


def _profile_shapes(engine: Any, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Smallest and largest shape of an input."""
    smallest, _, largest = engine.get_tensor_profile_shape(name, _PROFILE)
    return tuple(smallest), tuple(largest)


def _last(log: list[str]) -> str:
    return readable(log[-1]) if log else "TensorRT gave no reason"
