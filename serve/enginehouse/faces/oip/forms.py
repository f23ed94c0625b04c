"""Forms: what the JSON of a binary request says, kept, because clients send the same text again and again.

The text decides everything but the elements of the tensors: a request of the same text, with as many bytes after it,
is as valid as the first one was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from enginehouse.contract.elements import from_bytes
from enginehouse.contract.tensors import Signature

#: Longer texts are not kept, nor more of them than that: both bound what a process holds for its clients.
MAX_BYTES, MAX_FORMS = 2048, 1024

_forms: dict[tuple[bytes, int], Form] = {}


class Form(NamedTuple):
    """What a request says that was checked against `signature`, but for its tensors, which take `size` bytes."""

    signature: Signature
    size: int
    tensors: tuple[tuple[str, np.dtype, tuple[int, ...], int, int], ...]
    said: tuple[Any, ...]

    def inputs(self, tail: memoryview) -> dict[str, np.ndarray]:
        """The tensors, as `from_bytes` gives and checks them."""
        return {
            name: from_bytes(name, dtype, shape, tail[start:end]) for name, dtype, shape, start, end in self.tensors
        }


def find(text: memoryview, size: int, signature: Signature) -> Form | None:
    """That of a request with this text and so many bytes of tensors."""
    form = _forms.get((bytes(text), id(signature))) if len(text) <= MAX_BYTES else None
    # Another signature may have come to lie where one was.
    return form if form and form.signature is signature and form.size == size else None


def keep(
    text: memoryview, size: int, signature: Signature, inputs: Mapping[str, np.ndarray], said: tuple[Any, ...]
) -> None:
    """Remember a valid request whose `inputs` lie in the order of its bytes; without strings, whose sizes vary."""
    ends = np.cumsum([array.nbytes for array in inputs.values()]).tolist()
    if len(text) > MAX_BYTES or any(array.dtype.hasobject for array in inputs.values()) or ends[-1:] != [size]:
        return
    if len(_forms) >= MAX_FORMS:
        _forms.clear()
    tensors = tuple(
        (name, array.dtype, array.shape, end - array.nbytes, end)
        for (name, array), end in zip(inputs.items(), ends, strict=True)
    )
    _forms[bytes(text), id(signature)] = Form(signature, size, tensors, said)
