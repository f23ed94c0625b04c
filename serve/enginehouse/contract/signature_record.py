"""A signature as the manifest has it: tensors, the axes along which they may be longer or shorter, and be padded."""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.tensors import DTYPES, Domain, FreeDim, Signature, TensorSpec, datatype


class Record(BaseModel):
    """A part of the manifest: never changed, and refused when it has a field that this release does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorRecord(Record):
    """A TensorSpec as JSON: the protocol's datatype, and -1 for a free dimension.

    `domain` is the lowest value that an input may hold, and the first one beyond the highest.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    domain: tuple[int, int] | None = None

    @model_serializer(mode="wrap")
    def _without_what_others_refuse(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As for artifacts: the release before refuses the field, and one that cannot check it should not answer.
        fields: dict[str, Any] = serialize(self)
        if self.domain is None:
            fields.pop("domain", None)
        return fields

    @classmethod
    def of(cls, spec: TensorSpec) -> TensorRecord:
        shape = tuple(-1 if dim is None else dim for dim in spec.shape)
        domain = (spec.domain.low, spec.domain.high) if spec.domain else None
        return cls(name=spec.name, datatype=datatype(spec.dtype), shape=shape, domain=domain)

    def spec(self) -> TensorSpec:
        shape = tuple(None if dim == -1 else dim for dim in self.shape)
        return TensorSpec(self.name, DTYPES[self.datatype], shape, Domain(*self.domain) if self.domain else None)


class SignatureRecord(Record):
    """A Signature as JSON, without its free dimensions, which the manifest has as `axes`."""

    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    batched: bool = True

    @classmethod
    def of(cls, signature: Signature) -> SignatureRecord:
        return cls(
            inputs=tuple(TensorRecord.of(spec) for spec in signature.inputs),
            outputs=tuple(TensorRecord.of(spec) for spec in signature.outputs),
            batched=signature.batched,
        )

    def signature(self) -> Signature:
        return Signature(
            tuple(record.spec() for record in self.inputs),
            tuple(record.spec() for record in self.outputs),
            self.batched,
        )


class Axis(Record):
    """A free dimension other than the batch: its name, the range that engines are built for, and where it is.

    `dims` are (input, dimension) pairs that always have the same extent. `opt` is the extent that TensorRT tunes for
    and that warm-up uses; `min` may be 0, for what is empty at first (the past of a decoder). The first axis of a
    manifest is the cost axis: the one that latency is measured along. `verified` is the largest extent that its
    artifacts were found right at, where no range was declared; None where nobody looked.
    """

    name: str
    min: int = Field(ge=0)
    opt: int = Field(ge=1)
    max: int = Field(ge=1)
    dims: tuple[tuple[str, int], ...] = Field(min_length=1)
    verified: int | None = Field(default=None, ge=1)

    @model_serializer(mode="wrap")
    def _without_what_others_refuse(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        if self.verified is None:
            fields.pop("verified", None)
        return fields


#: Where in a row the positions are that count: from the first one on without a gap (`start`), up to the last one
#: without a gap (`end`), or in any other places (`holes`).
MaskKind: TypeAlias = Literal["start", "end", "holes"]


class PaddedInput(Record):
    """An input whose dimension `dim` may be made longer with elements of `value`.

    One that `tells` says which of its positions count: each of its rows has to have one of another value, and where
    `mark` is given none but that and `value`.
    """

    name: str
    dim: int = Field(ge=1)
    value: int | float
    tells: bool = False
    mark: int | float | None = None


class Padding(Record):
    """How rows of several lengths share a call: all `inputs` are made as long as the smallest of the `edges` that holds
    the longest, and `outputs`, which are (name, dimension), are cut back to the length of each row.

    Longer rows than the largest edge are not padded, nor are those of other kinds than `masks`, nor those of which an
    input has a value that is not `within` its lowest and highest one: they were not proven. Bundles of before these
    were recorded have no `within`, and nothing of them is padded.
    """

    inputs: tuple[PaddedInput, ...] = Field(min_length=1)
    outputs: tuple[tuple[str, int], ...] = ()
    edges: tuple[int, ...] = Field(min_length=1)
    masks: tuple[MaskKind, ...] = ()
    within: dict[str, tuple[int, int] | tuple[float, float]] | None = None


def parts_of(name: str, names: Collection[str]) -> tuple[str, ...]:
    """The `names` and whole numbers that the extent called `name` is the sum of; empty if it stands for itself."""
    parts = tuple(part.strip() for part in name.split("+"))
    known = len(parts) > 1 and all(part in names or part.isdecimal() for part in parts)
    return parts if known else ()


def with_free_dims(signature: Signature, axes: Sequence[Axis], declared: Container[str] = ()) -> Signature:
    """`signature` with what `axes` say that has to hold in a request.

    An axis of one extent has that from the samples, which forbid no other, unless it is among the `declared` names;
    then it ends where the build stopped verifying, in bundles that say so.
    """
    places = {axis.name: axis.dims[0] for axis in axes}
    free = []
    for axis in axes:
        is_declared = axis.min < axis.max or axis.name in declared
        parts = parts_of(axis.name, places)
        extents = (axis.min, axis.max) if is_declared else None
        is_verified = extents is None and not parts and axis.verified is not None
        if is_verified and axis.verified is not None:
            extents = (1, axis.verified)
        if extents or parts or len(axis.dims) > 1:
            summed = tuple(places[part] for part in parts if part in places)
            plus = sum(int(part) for part in parts if part not in places)
            free.append(FreeDim(axis.name, axis.dims, extents, summed, plus, is_verified))
    return replace(signature, free=tuple(free))


def check_extents(
    model: str, signature: Signature, axes: Sequence[Axis], rows: int, size: int | None = None
) -> tuple[int, int | None]:
    """Rows and size that a request counts as which has `rows` rows and `size` along the first of `axes`.

    Without a batch, rows are the extent of the first dimension. Raises InvalidInput as `Signature.check` does of such a
    request, and for a size where `model` has no axis.
    """
    for what, number in (("rows", rows), ("size", size)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, Integral) or number < 0):
            raise InvalidInput(f"{what} {number!r} is no whole number from 0 on")
    if size is not None and not axes:
        wanted = ", ".join(map(str, signature.inputs))
        raise InvalidInput(
            f"size {size}: requests for {model!r} have no dimension to choose but their rows ({wanted}); leave it out"
        )
    chosen = {} if size is None else dict.fromkeys(axes[0].dims, int(size))
    first = signature.inputs[0]
    if not signature.batched and rows != 1 and first.shape:
        alike = next((axis.dims for axis in axes if (first.name, 0) in axis.dims), None)
        if alike is None:
            alike = tuple((spec.name, 0) for spec in signature.inputs if spec.shape[:1] == first.shape[:1])
        chosen = dict.fromkeys(alike, int(rows)) | chosen
        size = next((extent for place, extent in chosen.items() if axes and place in axes[0].dims), None)
    elif signature.batched:
        chosen |= dict.fromkeys(((spec.name, 0) for spec in signature.inputs), int(rows))
    known = _with_sums(axes, {place: axis.opt for axis in axes for place in axis.dims} | chosen, chosen)
    # Only what depends on what was chosen is looked at: the rest of a request may be as it has to be.
    free = tuple(
        replace(each, parts=()) if each.dims[0] in chosen else each
        for each in signature.free
        if chosen.keys() & {*each.dims, *each.parts}
    )
    specs = tuple(replace(spec, domain=None) for spec in signature.inputs)
    counted = replace(signature, inputs=specs, free=free).check(
        {spec.name: _of_shape(spec, known, f"rows {rows} and size {size}") for spec in specs}
    )
    return counted, size


def _with_sums(
    axes: Sequence[Axis], extents: dict[tuple[str, int], int], chosen: Container[tuple[str, int]]
) -> dict[tuple[str, int], int]:
    """`extents` in which those called sums are the sums, unless they were `chosen` themselves."""
    places = {axis.name: axis.dims[0] for axis in axes}
    for axis in axes:
        parts = parts_of(axis.name, places)
        if parts and axis.dims[0] not in chosen:
            total = sum(extents[places[part]] if part in places else int(part) for part in parts)
            extents |= dict.fromkeys(axis.dims, total)
    return extents


def _of_shape(spec: TensorSpec, extents: dict[tuple[str, int], int], asked: str) -> np.ndarray:
    """An array of this shape, and of one element in memory."""
    shape = [extents.get((spec.name, dim), 1 if have is None else have) for dim, have in enumerate(spec.shape)]
    try:
        return np.broadcast_to(np.zeros((), spec.dtype), shape)
    except ValueError:
        raise InvalidInput(f"{asked}: no array holds so much ({spec})") from None
