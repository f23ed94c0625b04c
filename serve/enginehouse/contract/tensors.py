"""Tensors and signatures: what goes into a model and what comes out, checked once at the door.

A request is a mapping from input name to numpy array. In a batched model dimension 0 of every input and output is the
batch; its length is called *rows*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, permutations
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from enginehouse.contract.errors import InvalidInput

Tensors: TypeAlias = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds a request waited for its batch and the batch took to compute, and the rows of that batch."""

    queue_ms: float
    compute_ms: float
    batch_rows: int


#: What an engine made of requests, and how long it took.
Computed: TypeAlias = tuple[dict[str, np.ndarray], Timing]

#: Open Inference Protocol datatype <-> numpy dtype (the protocol's "Tensor Data Types" table, and Triton's BF16).
DTYPES: Mapping[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.dtype(np.object_),
}
#: Dimensions of which every order is tried, when a request is refused.
_MOST_TRANSPOSED = 6
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def datatype(dtype: np.dtype) -> str:
    """Name of `dtype` in the Open Inference Protocol; every string dtype is BYTES. Raises InvalidInput."""
    if dtype.kind in "OSU":
        return "BYTES"
    try:
        return _NAMES[dtype]
    except KeyError:
        known = ", ".join(DTYPES)
        raise InvalidInput(f"dtype {dtype} has no place in the protocol; use one of {known}") from None


@dataclass(frozen=True, slots=True)
class Domain:
    """The whole numbers that an input may hold because they index a table: from `low` up to, not including, `high`."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low} to {self.high - 1}"

    def check(self, name: str, array: np.ndarray) -> None:
        """Raises InvalidInput with the first value of input `name` that is outside, and where it is."""
        # Two passes without a copy: most requests are right, and only one that is not is looked at more closely.
        if not array.size or (
            np.maximum.reduce(array, axis=None) < self.high and np.minimum.reduce(array, axis=None) >= self.low
        ):
            return
        where = tuple(np.argwhere((array < self.low) | (array >= self.high))[0].tolist())
        raise InvalidInput(
            f"input {name!r} has the value {array[where]} at {list(where)}; the model looks it up in a table that "
            f"takes {self}"
        )


@dataclass(frozen=True, slots=True)
class FreeDim:
    """A free dimension by its name: the (input, dimension) pairs that have one extent in each request.

    `range` is the smallest and the largest extent that is let in, None where any is: what was declared for it or, with
    `verified`, as far as the build found artifacts right. One that is a sum has `parts`, the places of other
    dimensions, to whose extents `plus` is added.
    """

    name: str
    dims: tuple[tuple[str, int], ...]
    range: tuple[int, int] | None = None
    parts: tuple[tuple[str, int], ...] = ()
    plus: int = 0
    verified: bool = False

    def check(self, inputs: Tensors) -> None:
        """Raises InvalidInput for an extent that is not that of the other inputs, naming them, or is out of range."""
        first, dim = self.dims[0]
        extent = inputs[first].shape[dim]
        for name, other in self.dims:
            if inputs[name].shape[other] != extent:
                raise InvalidInput(
                    f"inputs disagree on the dimension {self.name!r}: it is {extent} in {first!r} (dimension {dim}) "
                    f"and {inputs[name].shape[other]} in {name!r} (dimension {other})"
                )
        if self.parts and extent != (total := self.plus + sum(inputs[name].shape[other] for name, other in self.parts)):
            of = " and ".join(
                f"{inputs[name].shape[other]} in {name!r} (dimension {other})" for name, other in self.parts
            )
            raise InvalidInput(
                f"dimension {self.name!r} is {extent} (dimension {dim} of input {first!r}), and has to be {total}: "
                f"there are {of}"
            )
        if self.range is not None and not self.range[0] <= extent <= self.range[1]:
            taken = f"the model takes {self.range[0]} to {self.range[1]}"
            if self.verified:
                taken += (
                    ": larger ones were not verified when it was built; "
                    f"building it with --axis {self.name}=MIN:OPT:MAX verifies and allows that range"
                )
            raise InvalidInput(f"dimension {self.name!r} is {extent} (dimension {dim} of input {first!r}); {taken}")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. In `shape`, None is a free dimension; in a batched model dim 0 is the batch.

    `domain` is what an input of whole numbers may hold, None where the model takes any.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]
    domain: Domain | None = None

    def __str__(self) -> str:
        dims = ",".join("*" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name}: {datatype(self.dtype)}[{dims}]"

    def example(self, rows: int, extents: Mapping[int, int] | None = None) -> np.ndarray:
        """Zeros; free dimensions have the extent given, without one dim 0 has `rows`, and others 1."""
        # Dim 0 has an extent of its own where a model without a batch has it free.
        known = {0: rows, **(extents or {})}
        shape = [known.get(axis, 1) if dim is None else dim for axis, dim in enumerate(self.shape)]
        return np.full(shape, b"", dtype=object) if self.dtype.hasobject else np.zeros(shape, self.dtype)


@dataclass(frozen=True, slots=True)
class Signature:
    """Names, dtypes and shapes of a model's inputs and outputs.

    With `batched`, dim 0 of every tensor is the batch; without, a request is one row and is never merged with others.
    `free` are the other free dimensions of which something has to hold: one extent in several places, or a range.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool = True
    free: tuple[FreeDim, ...] = ()

    def check(self, inputs: Tensors) -> int:
        """Number of rows in `inputs`, or InvalidInput naming the tensor at fault and what was expected.

        On the path of every request, in each face and once more in the engine.
        """
        if inputs.keys() != {spec.name for spec in self.inputs}:
            raise InvalidInput(_names_at_fault(inputs, self.inputs))
        rows = 1
        is_full = True
        first: TensorSpec | None = None
        for spec in self.inputs:
            array = inputs[spec.name]
            _check_tensor(array, spec)
            is_full = is_full and array.size != 0
            if spec.domain is not None:
                spec.domain.check(spec.name, array)
            if self.batched:
                if first is None:
                    first, rows = spec, array.shape[0]
                elif array.shape[0] != rows:
                    raise InvalidInput(
                        f"inputs disagree on the batch: {first.name!r} has {rows} rows, "
                        f"{spec.name!r} has {array.shape[0]}"
                    )
        if rows < 1:
            raise InvalidInput(f"input {self.inputs[0].name!r} has 0 rows; send at least 1")
        if not is_full:
            self._check_empty(inputs)
        for free in self.free:
            free.check(inputs)
        return rows

    def _check_empty(self, inputs: Tensors) -> None:
        """Raises InvalidInput for an extent of 0 that nobody declared: engines crash there, or answer old memory."""
        known = {place: free for free in self.free for place in free.dims}
        for spec in self.inputs:
            for dim, extent in enumerate(inputs[spec.name].shape):
                if extent or spec.shape[dim] is not None or (self.batched and dim == 0):
                    continue
                free = known.get((spec.name, dim))
                # A sum of 0 has parts of 0, which are looked at themselves.
                if free is not None and (free.parts or (free.range is not None and free.range[0] == 0)):
                    continue
                called = f"dimension {free.name!r}" if free else "a free dimension"
                taken = f"; the model takes {free.range[0]} to {free.range[1]}" if free and free.range else ""
                raise InvalidInput(
                    f"{called} is 0 (dimension {dim} of input {spec.name!r}){taken}; what a model makes of nothing is "
                    f"verified and allowed only if it is built with --axis {free.name if free else 'NAME'}=0:OPT:MAX"
                )

    def check_values(self, inputs: Tensors) -> None:
        """The part of `check` that looks at elements, for inputs that have passed the others. Raises InvalidInput."""
        for spec in self.inputs:
            if spec.domain is not None:
                spec.domain.check(spec.name, inputs[spec.name])


def _names_at_fault(inputs: Tensors, specs: Sequence[TensorSpec]) -> str:
    wanted = ", ".join(str(spec) for spec in specs)
    known = {spec.name for spec in specs}
    unknown = sorted(set(inputs) - known)
    missing = sorted(known - set(inputs))
    faults = [f"input {name!r} is missing" for name in missing]
    faults += [f"input {name!r} is not known" for name in unknown]
    return f"{'; '.join(faults)}; the model wants {wanted}"


def _check_tensor(array: np.ndarray, spec: TensorSpec) -> None:
    if not isinstance(array, np.ndarray):
        raise InvalidInput(f"input {spec.name!r} is a {type(array).__name__}; send a numpy array ({spec})")
    fits_dtype = array.dtype.kind in "OSU" if spec.dtype.hasobject else array.dtype == spec.dtype
    if not fits_dtype:
        raise InvalidInput(
            f"input {spec.name!r} has dtype {array.dtype} ({_label(array.dtype)}); "
            f"the model wants {spec.dtype} ({datatype(spec.dtype)})"
        )
    fits_shape = len(array.shape) == len(spec.shape) and all(
        want is None or want == have for have, want in zip(array.shape, spec.shape, strict=True)
    )
    if not fits_shape:
        dims = ", ".join("*" if dim is None else str(dim) for dim in spec.shape)
        told = f"input {spec.name!r} has shape {list(array.shape)}; the model wants [{dims}]"
        raise InvalidInput(told + _transposed(array.shape, spec))


def _transposed(shape: tuple[int, ...], spec: TensorSpec) -> str:
    """What to say where the dimensions are right but for their order, as of pixels in another layout."""
    if not 3 <= len(shape) == len(spec.shape) <= _MOST_TRANSPOSED or spec.shape[0] not in (None, shape[0]):
        return ""
    for order in permutations(range(1, len(shape))):
        if all(want in (None, shape[dim]) for dim, want in zip(order, spec.shape[1:], strict=True)):
            return f"; transpose(0, {', '.join(map(str, order))}) of it would fit"
    return ""


def _label(dtype: np.dtype) -> str:
    return "BYTES" if dtype.kind in "OSU" else _NAMES.get(dtype, "not in the protocol")


def stack(requests: Sequence[Tensors]) -> Tensors:
    """Join requests along dim 0. A single request is passed through without a copy."""
    if len(requests) == 1:
        return requests[0]
    return {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}


def split(outputs: Tensors, rows: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Undo `stack`: one mapping of views for each entry of `rows`, in order."""
    if len(rows) == 1:
        return [dict(outputs)]
    ends = list(accumulate(rows))
    return [
        {name: array[end - count : end] for name, array in outputs.items()}
        for end, count in zip(ends, rows, strict=True)
    ]


def checked_arrays(inputs: Any) -> Tensors:
    """`inputs` from a Python caller, if they are numpy arrays by name; raises InvalidInput naming what is not."""
    if not isinstance(inputs, Mapping):
        raise InvalidInput(f"inputs are {_type_of(inputs)}; send a dictionary of numpy arrays by the names of inputs")
    for name, array in inputs.items():
        if not isinstance(array, np.ndarray):
            raise InvalidInput(f"input {name!r} is {_type_of(array)}; send a numpy array")
        if isinstance(array, np.ma.MaskedArray):
            raise InvalidInput(f"input {name!r} is a masked array; fill what it masks, with filled()")
        if array.dtype == np.bool_ and array.size and (most := array.view(np.uint8).max()) > 1:
            # Some other array's bytes, viewed as booleans: engines compute with them as they are.
            raise InvalidInput(f"input {name!r} has the byte {most}; booleans are bytes of 0 or 1")
    return inputs


def checked_name(model: Any) -> str:
    """`model` from a Python caller, if it is text; raises InvalidInput."""
    if not isinstance(model, str):
        raise InvalidInput(f"the name of a model is text, not {model!r}")
    return model


def _type_of(value: object) -> str:
    kind = type(value)
    return f"of type {kind.__name__}" if kind.__module__ == "builtins" else f"a {kind.__module__}.{kind.__name__}"


def nbytes(tensors: Tensors) -> int:
    """Bytes of all arrays together, those of strings included."""
    return sum(array.nbytes + (_text_bytes(array) if array.dtype.hasobject else 0) for array in tensors.values())


def _text_bytes(array: np.ndarray) -> int:
    return sum(len(element) for element in array.ravel().tolist() if isinstance(element, str | bytes))
