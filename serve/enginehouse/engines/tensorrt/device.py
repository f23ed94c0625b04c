"""The CUDA runtime as the engine uses it: calls that raise, and buffers that exist on both sides."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np


class DeviceError(Exception):
    """A CUDA runtime or TensorRT call failed; the text says which and why."""


def cuda(function: str, *arguments: Any) -> Any:
    """Call the CUDA runtime; its result, several as a tuple. Raises DeviceError with the runtime's own words."""
    from cuda.bindings import runtime

    error, *result = getattr(runtime, function)(*arguments)
    if error != runtime.cudaError_t.cudaSuccess:
        text = runtime.cudaGetErrorString(error)[1]
        raise DeviceError(f"{function} failed with {error.name} ({text.decode()})")
    return (result[0] if len(result) == 1 else tuple(result)) if result else None


def stream() -> Any:
    """A new stream that does not wait for the default one."""
    from cuda.bindings import runtime

    return cuda("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)


class Buffer:
    """The same number of bytes on the device and, pinned, on the host."""

    def __init__(self, size: int) -> None:
        size = max(size, 1)
        self.device: int = cuda("cudaMalloc", size)
        try:
            self._pinned: int = cuda("cudaMallocHost", size)
        except DeviceError:
            cuda("cudaFree", self.device)
            raise
        self._host: np.ndarray = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._pinned))

    def upload(self, array: np.ndarray, stream: Any) -> None:
        """Start copying `array` to the device; it may be changed as soon as this returns."""
        from cuda.bindings import runtime

        np.copyto(self._view(array.shape, array.dtype), array)
        self._copy(self.device, self._pinned, array.nbytes, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def download(self, shape: tuple[int, ...], dtype: np.dtype, stream: Any) -> np.ndarray:
        """Start copying from the device; the view that is returned holds the data once `stream` is synchronised."""
        from cuda.bindings import runtime

        view = self._view(shape, dtype)
        self._copy(self._pinned, self.device, view.nbytes, runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)
        return view

    def free(self) -> None:
        """Release both sides."""
        cuda("cudaFree", self.device)
        cuda("cudaFreeHost", self._pinned)

    def _view(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return self._host[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    @staticmethod
    def _copy(target: int, source: int, size: int, kind: Any, stream: Any) -> None:
        cuda("cudaMemcpyAsync", target, source, size, kind, stream)
