"""The ways in which a batch gets to an ONNX Runtime session and back; each is a call that ends with the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.gpu.lab import Lab
from enginehouse.contract.tensors import Tensors


class Plain:
    """Arrays in, arrays out: ONNX Runtime allocates and copies in every call."""

    def __init__(self, session: Any, inputs: Tensors) -> None:
        self._session, self._inputs = session, dict(inputs)
        self._names = [output.name for output in session.get_outputs()]

    def __call__(self) -> dict[str, np.ndarray]:
        return dict(zip(self._names, self._session.run(self._names, self._inputs), strict=True))


class Bound:
    """Device buffers that stay; copies from and to ordinary arrays, or none at all when the data `stays`."""

    def __init__(self, lab: Lab, session: Any, inputs: Tensors, outputs: Tensors, *, stays: bool = False) -> None:
        from onnxruntime import OrtValue

        device = lab.sized("cuda", "cpu")
        self._session, self._binding, self._stays = session, session.io_binding(), stays
        self._inputs = dict(inputs)
        self._given: Mapping[str, Any] = {
            # A copy, because on the CPU the buffer would be the array itself.
            name: OrtValue.ortvalue_from_numpy(array.copy(), device, 0)
            for name, array in inputs.items()
        }
        self._found: Mapping[str, Any] = {
            name: OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, device, 0)
            for name, array in outputs.items()
        }
        for name, value in self._given.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._found.items():
            self._binding.bind_ortvalue_output(name, value)

    def __call__(self) -> dict[str, np.ndarray]:
        if not self._stays:
            for name, array in self._inputs.items():
                self._given[name].update_inplace(array)
        self._session.run_with_iobinding(self._binding)
        return {} if self._stays else self.answers()

    def answers(self) -> dict[str, np.ndarray]:
        """What lies in the output buffers."""
        return {name: np.array(value.numpy()) for name, value in self._found.items()}


class Pinned:
    """Device buffers and pinned host buffers that stay; copies and kernels follow each other on one stream."""

    def __init__(self, stream: Any, session: Any, inputs: Tensors, outputs: Tensors) -> None:
        from enginehouse.engines.tensorrt.device import Buffer

        self._stream, self._session, self._binding = stream, session, session.io_binding()
        self._inputs, self._outputs = dict(inputs), dict(outputs)
        self._buffers = {name: Buffer(array.nbytes) for name, array in {**inputs, **outputs}.items()}
        for name, array in inputs.items():
            self._binding.bind_input(name, "cuda", 0, array.dtype, array.shape, self._buffers[name].device)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cuda", 0, array.dtype, array.shape, self._buffers[name].device)

    def __call__(self) -> dict[str, np.ndarray]:
        from enginehouse.engines.tensorrt.device import cuda

        for name, array in self._inputs.items():
            self._buffers[name].upload(array, self._stream)
        self._session.run_with_iobinding(self._binding)
        views = {
            name: self._buffers[name].download(array.shape, array.dtype, self._stream)
            for name, array in self._outputs.items()
        }
        cuda("cudaStreamSynchronize", self._stream)
        return {name: view.copy() for name, view in views.items()}

    def free(self) -> None:
        """Release the buffers."""
        for buffer in self._buffers.values():
            buffer.free()
