"""Requests that a model is warmed up and timed with: known to be right where the bundle says which are.

Zeros are none of a model that divides by a number of the request; those of the build were answered by its reference.
"""

from __future__ import annotations

import numpy as np

from enginehouse.contract import tensor_file
from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import ArtifactMissing
from enginehouse.contract.manifest import Axis
from enginehouse.contract.tensors import Tensors

#: Where a bundle keeps requests of the build, in the format of `contract.tensor_file`.
CHECK_REQUESTS = "check/requests.npz"


class UsualRequests:
    """`of` makes them, of as many rows as are wanted, every axis at its `opt`. Raises DigestMismatch."""

    def __init__(self, bundle: Bundle) -> None:
        self._manifest = bundle.manifest
        self._known = _known(bundle)

    def of(self, rows: int) -> dict[str, np.ndarray]:
        """Zeros where the bundle carries no requests."""
        if self._known is None:
            return self._manifest.example(rows)
        request = dict(self._known)
        if self._manifest.signature.batched:
            request = {name: _repeated(array, rows, 0) for name, array in request.items()}
        for axis in self._manifest.axes:
            request = _along(request, axis)
        return request


def _known(bundle: Bundle) -> Tensors | None:
    """The largest request of the usual extents; None where there is none."""
    carried = [file for file in bundle.manifest.files if file.path == CHECK_REQUESTS]
    try:
        requests = tensor_file.read(bundle.verified(carried[0])) if carried else []
    except ArtifactMissing:
        # It is carried for other machines, and may have been left there.
        return None
    if not requests:
        return None
    usual = _extents(requests[0])
    return max((each for each in requests if _extents(each) == usual), key=_size)


def _extents(request: Tensors) -> list[tuple[int, ...]]:
    return [array.shape[1:] for array in request.values()]


def _size(request: Tensors) -> int:
    return sum(array.size for array in request.values())


def _along(request: dict[str, np.ndarray], axis: Axis) -> dict[str, np.ndarray]:
    return request | {name: _repeated(request[name], axis.opt, dim) for name, dim in axis.dims}


def _repeated(array: np.ndarray, size: int, dim: int) -> np.ndarray:
    """`array` cut or repeated to `size` along `dim`; what is empty there has nothing to repeat."""
    extent = array.shape[dim]
    return array if extent in (0, size) else np.take(array, np.arange(size) % extent, axis=dim)
