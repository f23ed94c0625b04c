"""How much memory a decoded request takes beside its body, for admission."""

from __future__ import annotations

import numpy as np

from enginehouse.contract.tensors import Tensors

#: Bytes that Python takes for a string beside its text and the place in the array.
STRING_BYTES = 40


def made(inputs: Tensors) -> int:
    """Bytes of what decoding made; numbers that are views on the body are not among it."""
    return sum(
        array.nbytes + (STRING_BYTES * array.size if array.dtype.hasobject else 0)
        for array in inputs.values()
        if _owner(array).flags.owndata
    )


def _owner(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
