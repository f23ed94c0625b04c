"""Decoding of request bodies into InferRequest; InvalidInput names the value at fault and what was expected."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from enginehouse.contract import elements
from enginehouse.contract.elements import BINARY_ONLY, NUMBER_BYTES, Work, finished, json_text
from enginehouse.contract.errors import InvalidInput, RequestTooLarge
from enginehouse.contract.magic import recognised
from enginehouse.contract.tensors import Signature, Tensors, TensorSpec, datatype
from enginehouse.faces.oip import forms
from enginehouse.faces.oip.document import MAX_DEPTH, parsed

Parameters: TypeAlias = Mapping[str, str | int | float | bool]

R = TypeVar("R")

MAX_PARAMETERS = 1000


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """How one output is to be encoded; `classification` = k > 0 asks for the k largest values instead of the tensor."""

    name: str
    binary: bool
    classification: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request that has passed the check of the model's signature.

    `outputs` are the requested ones in the order of the response, all of the model's when the request names none.
    """

    inputs: dict[str, np.ndarray]
    id: str | None
    outputs: tuple[RequestedOutput, ...]
    parameters: Parameters
    rows: int


def parse_header_length(value: str | None) -> int | None:
    """The number in an `Inference-Header-Content-Length` header, None without the header. Raises InvalidInput."""
    if value is None:
        return None
    digits = value.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise InvalidInput(f"Inference-Header-Content-Length is {json_text(value)}; send the number of bytes of JSON")
    return int(digits)


def decode_request(body: bytes | memoryview, json_length: int | None, signature: Signature) -> InferRequest:
    """Decode an inference request and check it against `signature`. Raises InvalidInput.

    `json_length` is the value of `Inference-Header-Content-Length`: None when the whole body is JSON, 0 for a raw
    request (the body is the bytes of the only input), else the bytes of JSON before the binary tensors. Binary inputs
    are read-only views on `body` where its alignment allows.
    """
    return finished(decoding(body, json_length, signature))


def decoding(
    body: bytes | memoryview, json_length: int | None, signature: Signature, max_strings: int | None = None
) -> Work[InferRequest]:
    """`decode_request` in pieces. Raises RequestTooLarge for more than `max_strings` strings in all its inputs."""
    view = memoryview(body)
    if json_length is None:
        json_length = len(view)
    elif json_length == 0:
        return (yield from _raw_request(view, signature))
    elif not 0 < json_length <= len(view):
        raise InvalidInput(
            f"Inference-Header-Content-Length is {json_length}; the body has {len(view)} bytes, "
            "so it must be between 0 and that"
        )
    text, tail = view[:json_length], view[json_length:]
    if tail and (form := forms.find(text, len(tail), signature)):
        inputs = form.inputs(tail)
        # Names, dtypes and shapes are those of the earlier request; the values are new.
        yield from _checked(signature.check_values, inputs)
        return InferRequest(inputs, *form.fields)
    document = yield from parsed(text, signature)
    request = yield from of_document(document, signature, _Body(tail), max_strings)
    # With an id in it, the text will not be sent again.
    if tail and request.id is None:
        forms.keep(
            text, len(tail), signature, request.inputs, (None, request.outputs, request.parameters, request.rows)
        )
    return request


class Contents(Protocol):
    """Where the elements of a document's inputs are."""

    def read(
        self, item: Mapping[str, Any], parameters: Parameters, spec: TensorSpec, shape: list[int]
    ) -> Work[np.ndarray]:
        """Those of the input `item`, which has these `parameters`; asked for each in the document's order."""
        ...

    def end(self) -> None:
        """Raises InvalidInput when some are left."""
        ...


def of_document(
    document: Mapping[str, Any],
    signature: Signature,
    contents: Contents,
    max_strings: int | None = None,
    binary: bool = False,
) -> Work[InferRequest]:
    """The request that a document describes, checked; one of `contents` has its elements.

    With `binary`, outputs have no other form. Raises InvalidInput, and RequestTooLarge for more than `max_strings`.
    """
    identifier = document.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise InvalidInput(f"'id' is {json_text(identifier)}; send a string")
    parameters = _parameters(document, "the request")
    inputs = yield from _inputs(document, signature, contents, max_strings)
    outputs = _outputs(document, signature, binary or _flag(parameters, "binary_data_output", "the request"))
    rows = yield from _checked(signature.check, inputs)
    return InferRequest(inputs, identifier, outputs, parameters, rows)


def _checked(check: Callable[[Tensors], R], inputs: Tensors) -> Work[R]:
    """What `check` returns, which looks at every element and so takes long for many."""
    if sum(array.nbytes for array in inputs.values()) > NUMBER_BYTES:
        result: R = yield functools.partial(check, inputs)
        return result
    return check(inputs)


def _raw_request(body: memoryview, signature: Signature) -> Work[InferRequest]:
    """A request whose body is the bytes of the only input; its outputs are all binary, as in Triton."""
    if len(signature.inputs) != 1:
        names = ", ".join(repr(spec.name) for spec in signature.inputs)
        raise InvalidInput(
            "Inference-Header-Content-Length is 0, which is a raw request for a model of one input; "
            f"this one has {names}"
        )
    spec = signature.inputs[0]
    if spec.dtype.hasobject:
        # One string needs no length prefix: it is the body.
        array = np.empty(1, dtype=object)
        array[0] = bytes(body)
        array = array.reshape([1] * len(spec.shape))
    else:
        array = yield from elements.decoding(spec.name, spec.dtype, _raw_shape(spec, body), body)
    inputs = {spec.name: array}
    outputs = tuple(RequestedOutput(output.name, binary=True) for output in signature.outputs)
    return InferRequest(inputs, None, outputs, {}, (yield from _checked(signature.check, inputs)))


def _raw_shape(spec: TensorSpec, body: memoryview) -> list[int]:
    free = [axis for axis, dim in enumerate(spec.shape) if dim is None]
    fixed = spec.dtype.itemsize
    for dim in spec.shape:
        fixed *= 1 if dim is None else dim
    if len(free) > 1:
        raise InvalidInput(f"a raw request cannot tell the shape of {spec}; send JSON or binary tensors with a shape")
    size = len(body)
    if (size != fixed) if not free else (fixed == 0 or size % fixed):
        kind = recognised(body)
        seems = f" and seems to be {kind.name}" if size and kind and kind.family != "other" else ""
        takes = f"a multiple of {fixed} bytes" if free else f"{fixed} bytes"
        raise InvalidInput(f"a raw request for {spec} takes {takes}; the body has {size}{seems}")
    return [size // fixed if dim is None else dim for dim in spec.shape]


def _parameters(owner: Mapping[str, Any], what: str) -> Parameters:
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidInput(f"'parameters' of {what} is {json_text(parameters)}; send an object")
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidInput(f"'parameters' of {what} has {len(parameters)} entries; send at most {MAX_PARAMETERS}")
    for key, value in parameters.items():
        if not isinstance(value, str | int | float | bool):
            raise InvalidInput(
                f"parameter {json_text(key)} of {what} is {json_text(value)}; "
                "parameters are strings, numbers or booleans"
            )
        if key.startswith("shared_memory"):
            raise InvalidInput(f"parameter {json_text(key)} of {what}: shared memory is not supported; use binary data")
    return parameters


def _flag(parameters: Parameters, key: str, what: str, default: bool = False) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"parameter {key!r} of {what} is {json_text(value)}; send true or false")
    return value


def _integer(parameters: Parameters, key: str, what: str) -> int | None:
    value = parameters.get(key)
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise InvalidInput(f"parameter {key!r} of {what} is {json_text(value)}; send a whole number of at least 0")
    return value


def _items(document: Mapping[str, Any], key: str, count: int) -> list[tuple[str, dict[str, Any]]]:
    """Name and object of each entry in `inputs` or `outputs`. Raises InvalidInput, also for a repeated name.

    The model has `count` of them: one of the first that are more is at fault, and what follows is not looked at.
    """
    items = document.get(key)
    if items is None:
        items = []
    if not isinstance(items, list):
        raise InvalidInput(f"{key!r} is {json_text(items)}; send an array of objects")
    named: dict[str, dict[str, Any]] = {}
    for item in items[: count + 1]:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise InvalidInput(f"{key!r} has the entry {json_text(item)}; each is an object with a 'name'")
        if name in named:
            raise InvalidInput(f"{key[:-1]} {json_text(name)} is given twice")
        named[name] = item
    return list(named.items())


def _inputs(
    document: Mapping[str, Any], signature: Signature, contents: Contents, max_strings: int | None
) -> Work[dict[str, np.ndarray]]:
    specs = {spec.name: spec for spec in signature.inputs}
    arrays: dict[str, np.ndarray] = {}
    strings = 0
    for name, item in _items(document, "inputs", len(specs)):
        what = f"input {json_text(name)}"
        if name not in specs:
            wanted = ", ".join(str(spec) for spec in signature.inputs)
            raise InvalidInput(f"{what} is not known; the model wants {wanted}")
        spec = specs[name]
        shape = _shape(item, spec)
        if spec.dtype.hasobject and max_strings is not None:
            strings += math.prod(shape)
            if strings > max_strings:
                raise RequestTooLarge(
                    f"{what} has the shape {shape}, which makes {strings} strings in this request; one request may "
                    f"have {max_strings} (max_strings of the router): send fewer rows in a request"
                )
        arrays[name] = yield from contents.read(item, _parameters(item, what), spec, shape)
    contents.end()
    return arrays


class _Body:
    """Elements in the JSON, or in the bytes after it."""

    def __init__(self, tail: memoryview) -> None:
        self._tail = tail
        self._offset = 0

    def read(
        self, item: Mapping[str, Any], parameters: Parameters, spec: TensorSpec, shape: list[int]
    ) -> Work[np.ndarray]:
        what = f"input {json_text(spec.name)}"
        size = _integer(parameters, "binary_data_size", what)
        if size is None:
            if "data" not in item:
                raise InvalidInput(f"{what} has neither 'data' nor the parameter 'binary_data_size'")
            return (yield from elements.reading(spec.name, spec.dtype, shape, item["data"]))
        if "data" in item:
            raise InvalidInput(f"{what} has both 'data' and the parameter 'binary_data_size'; send one of them")
        left = len(self._tail) - self._offset
        if size > left:
            raise InvalidInput(
                f"{what} says binary_data_size {size}; {left} bytes are left after the JSON "
                "(whose length goes into the header Inference-Header-Content-Length)"
            )
        begin, self._offset = self._offset, self._offset + size
        return (yield from elements.decoding(spec.name, spec.dtype, shape, self._tail[begin : self._offset]))

    def end(self) -> None:
        if self._offset != len(self._tail):
            raise InvalidInput(f"the body has {len(self._tail) - self._offset} bytes after the last input")


def _shape(item: Mapping[str, Any], spec: TensorSpec) -> list[int]:
    what = f"input {spec.name!r}"
    kind = datatype(spec.dtype)
    if item.get("datatype") != kind:
        raise InvalidInput(f"{what} has the datatype {json_text(item.get('datatype'))}; the model wants {kind}")
    shape = item.get("shape")
    if not isinstance(shape, list) or any(type(dim) is not int or dim < 0 for dim in shape[:MAX_DEPTH]):
        raise InvalidInput(f"{what} has the shape {json_text(shape)}; send an array of whole numbers of at least 0")
    if len(shape) != len(spec.shape):
        raise InvalidInput(
            f"{what} has the shape {json_text(shape)} of {len(shape)} dimensions; the model wants {spec}"
        )
    return shape


def _outputs(document: Mapping[str, Any], signature: Signature, binary_default: bool) -> tuple[RequestedOutput, ...]:
    specs = {spec.name: spec for spec in signature.outputs}
    items = _items(document, "outputs", len(specs)) or [(name, {}) for name in specs]
    outputs = []
    for name, item in items:
        what = f"output {json_text(name)}"
        if name not in specs:
            wanted = ", ".join(str(spec) for spec in signature.outputs)
            raise InvalidInput(f"{what} is not known; the model has {wanted}")
        parameters = _parameters(item, what)
        binary = _flag(parameters, "binary_data", what, binary_default)
        classes = _integer(parameters, "classification", what) or 0
        kind = datatype(specs[name].dtype)
        if classes and kind in ("BYTES", "BOOL"):
            raise InvalidInput(f"{what} is {kind}, which has no order; classification takes numbers")
        if kind in BINARY_ONLY and not (binary or classes):
            raise InvalidInput(
                f"{what} is {kind}, which has no JSON form; ask for it with the parameter binary_data true "
                "(binary_data_output true for all outputs)"
            )
        outputs.append(RequestedOutput(name, binary, classes))
    return tuple(outputs)
