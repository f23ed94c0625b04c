"""Cache of parsed requests: a client usually sends the same JSON with every request, and only other tensor bytes.

The JSON determines everything but the elements of binary tensors. So a request with the JSON of an earlier valid one,
and as many bytes after it, is valid too, except that the elements themselves are still checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from enginehouse.contract.elements import from_bytes
from enginehouse.contract.tensors import Signature

#: Limits of one JSON text and of the number of entries, which bound the memory of the cache.
MAX_BYTES, MAX_FORMS = 2048, 1024

_forms: dict[tuple[bytes, int], Form] = {}


class Form(NamedTuple):
    """A request that was checked against `signature`, without its tensors, which take `size` bytes.

    `tensors` are (name, dtype, shape, start, end) in these bytes; `fields` are those of InferRequest after `inputs`.
    """

    signature: Signature
    size: int
    tensors: tuple[tuple[str, np.dtype, tuple[int, ...], int, int], ...]
    fields: tuple[Any, ...]

    def inputs(self, tail: memoryview) -> dict[str, np.ndarray]:
        """The tensors in `tail`, the bytes after the JSON. Raises InvalidInput as `from_bytes` does."""
        return {
            name: from_bytes(name, dtype, shape, tail[start:end]) for name, dtype, shape, start, end in self.tensors
        }


def find(text: memoryview, size: int, signature: Signature) -> Form | None:
    """The form of a request with this JSON `text` and `size` bytes after it, if it is cached."""
    form = _forms.get((bytes(text), id(signature))) if len(text) <= MAX_BYTES else None
    # The id may have been reused for another signature.
    return form if form and form.signature is signature and form.size == size else None


def keep(
    text: memoryview, size: int, signature: Signature, inputs: Mapping[str, np.ndarray], fields: tuple[Any, ...]
) -> None:
    """Cache a valid request if its `inputs` are all binary and none is of strings, whose sizes vary."""
    ends = np.cumsum([array.nbytes for array in inputs.values()]).tolist()
    if len(text) > MAX_BYTES or any(array.dtype.hasobject for array in inputs.values()) or ends[-1:] != [size]:
        return
    if len(_forms) >= MAX_FORMS:
        _forms.clear()
    tensors = tuple(
        (name, array.dtype, array.shape, end - array.nbytes, end)
        for (name, array), end in zip(inputs.items(), ends, strict=True)
    )
    _forms[bytes(text), id(signature)] = Form(signature, size, tensors, fields)
