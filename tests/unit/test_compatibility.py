"""Which signatures may follow which: each difference is listed, and what is not listed lets every old request in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.contract.compatibility import differences
from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.tensors import Domain, FreeDim, Signature, TensorSpec

F32, I64, U8, TEXT = (np.dtype(kind) for kind in ("float32", "int64", "uint8", "object"))


def spec(name: str, dtype: np.dtype, *shape: int | None, domain: tuple[int, int] | None = None) -> TensorSpec:
    return TensorSpec(name, dtype, shape, Domain(*domain) if domain else None)


Y = spec("y", F32, None, 10)


def signature(*inputs: TensorSpec, out: Sequence[TensorSpec] = (Y,), **others: Any) -> Signature:
    return Signature(inputs, tuple(out), **others)


X = spec("x", F32, None, 4)
IDS, MASK = spec("ids", I64, None, None, domain=(0, 100)), spec("mask", I64, None, None)


def free(low: int | None = None, high: int | None = None, *dims: tuple[str, int]) -> tuple[FreeDim, ...]:
    return (FreeDim("sequence", dims or (("ids", 1),), None if low is None or high is None else (low, high)),)


TIED = (("ids", 1), ("mask", 1))

WIDER = {
    "the same": (signature(X), signature(X)),
    "a free dimension for a fixed one": (signature(X), signature(spec("x", F32, None, None))),
    "a wider range": (signature(IDS, free=free(1, 64)), signature(IDS, free=free(1, 128))),
    "any extent for a range": (signature(IDS, free=free(1, 64)), signature(IDS)),
    "a range around a fixed extent": (signature(spec("ids", I64, None, 8)), signature(IDS, free=free(8, 16))),
    "more ids": (signature(IDS), signature(spec("ids", I64, None, None, domain=(-5, 200)))),
    "ids that nobody had looked at": (signature(spec("ids", I64, None, None)), signature(IDS)),
    "ids that nobody looks at any more": (signature(IDS), signature(spec("ids", I64, None, None))),
    "a batch where there was none": (signature(spec("x", F32, 1, 4), batched=False), signature(X)),
    "dimensions that need not agree any more": (
        signature(IDS, MASK, free=free(None, None, *TIED)),
        signature(IDS, MASK),
    ),
    "dimensions that were equal have to agree": (
        signature(spec("ids", I64, None, 8), spec("mask", I64, None, 8)),
        signature(IDS, MASK, free=free(None, None, *TIED)),
    ),
    "another order of inputs": (signature(IDS, MASK), signature(MASK, IDS)),
    "one output more": (signature(X), signature(X, out=(spec("y", F32, None, 10), spec("z", F32, None)))),
    "an output of a known extent": (
        signature(X, out=(spec("y", F32, None, None),)),
        signature(X, out=(spec("y", F32, None, 10),)),
    ),
}

BREAKING = {
    "an input is renamed": (
        signature(X),
        signature(spec("image", F32, None, 4)),
        ["input 'x' is gone", "input image: FP32[*,4] is new"],
    ),
    "an input is removed": (signature(IDS, MASK), signature(IDS), ["input 'mask' is gone"]),
    "an input is added": (signature(IDS), signature(IDS, MASK), ["input mask: INT64[*,*] is new"]),
    "another dtype": (signature(X), signature(spec("x", U8, None, 4)), ["input 'x' is UINT8 and was FP32"]),
    "text for numbers": (signature(X), signature(spec("x", TEXT, None, 4)), ["input 'x' is BYTES and was FP32"]),
    "another extent": (
        signature(X),
        signature(spec("x", F32, None, 8)),
        ["dimension 1 of input 'x' takes 8 and took 4"],
    ),
    "a fixed dimension for a free one": (
        signature(spec("x", F32, None, None)),
        signature(X),
        ["dimension 1 of input 'x' takes 4 and took any extent"],
    ),
    "a narrower range": (
        signature(IDS, free=free(1, 128)),
        signature(IDS, free=free(8, 128)),
        ["dimension 1 of input 'ids' takes 8 to 128 and took 1 to 128"],
    ),
    "a range for any extent": (
        signature(IDS),
        signature(IDS, free=free(1, 128)),
        ["dimension 1 of input 'ids' takes 1 to 128 and took any extent"],
    ),
    "more dimensions": (
        signature(X),
        signature(spec("x", F32, None, 4, 1)),
        ["input 'x' has 3 dimensions and had 2: x: FP32[*,4,1], x: FP32[*,4]"],
    ),
    "fewer ids": (
        signature(IDS),
        signature(spec("ids", I64, None, None, domain=(0, 99))),
        ["input 'ids' takes the values 0 to 98 and took 0 to 99"],
    ),
    "no batch": (signature(X), signature(X, batched=False), ["a request is one whole input and was a batch of rows"]),
    "a batch that inputs have to agree on": (
        signature(spec("a", F32, 3), spec("b", F32, 5), batched=False),
        signature(spec("a", F32, None), spec("b", F32, None)),
        ["the inputs have to have as many rows each, which they had not"],
    ),
    "dimensions that have to agree": (
        signature(IDS, MASK),
        signature(IDS, MASK, free=free(None, None, *TIED)),
        ["dimension 1 of input 'mask' has to be that of dimension 1 of 'ids', and had not"],
    ),
    "an output is gone": (
        signature(X, out=(spec("y", F32, None), spec("z", F32, None))),
        signature(X, out=(spec("y", F32, None),)),
        ["output 'z' is gone"],
    ),
    "an output of another dtype": (
        signature(X),
        signature(X, out=(spec("y", I64, None, 10),)),
        ["output 'y' is INT64 and was FP32"],
    ),
    "an output of another extent": (
        signature(X),
        signature(X, out=(spec("y", F32, None, 5),)),
        ["dimension 1 of output 'y' is 5 and was 10"],
    ),
    "all of it": (
        signature(X, MASK),
        signature(spec("x", U8, None, 4), IDS, out=()),
        [
            "input 'mask' is gone",
            "input 'x' is UINT8 and was FP32",
            "input ids: INT64[*,*] is new",
            "output 'y' is gone",
        ],
    ),
}


@pytest.mark.parametrize("case", WIDER)
def test_what_only_widens_breaks_nobody(case: str) -> None:
    assert differences(*WIDER[case]) == []


@pytest.mark.parametrize("case", BREAKING)
def test_every_difference_that_breaks_a_client_is_told(case: str) -> None:
    old, new, told = BREAKING[case]
    assert differences(old, new) == told


EXTENTS = st.sampled_from([None, None, None, 1, 2])
SPANS = st.sampled_from([None, None, (1, 2), (1, 3), (2, 3)])
DOMAINS = st.sampled_from([None, (0, 2), (0, 3), (-1, 3)])


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    batched = draw(st.booleans())
    inputs = [
        spec(name, draw(st.sampled_from([I64, U8])), None if batched else draw(EXTENTS), draw(EXTENTS))
        for name in draw(st.sampled_from(["a", "ab", "ab"]))
    ]
    inputs = [
        TensorSpec(one.name, one.dtype, one.shape, Domain(*d) if (d := draw(DOMAINS)) else None) for one in inputs
    ]
    return signature(*inputs, batched=batched, free=draw(frees(inputs)))


@st.composite
def frees(draw: st.DrawFn, inputs: Sequence[TensorSpec]) -> tuple[FreeDim, ...]:
    """Nothing, a range, or one extent in all of the inputs' last dimensions that are free."""
    loose = tuple((one.name, 1) for one in inputs if one.shape[1] is None)
    loose = loose[: draw(st.sampled_from([0, 1, 2, 2]))]
    return (FreeDim("n", loose, draw(SPANS)),) if loose else ()


@st.composite
def variants(draw: st.DrawFn, of: Signature) -> Signature:
    """Other ties and ranges, and at most one thing else that is not the same."""
    inputs, batched, change = list(of.inputs), of.batched, draw(st.sampled_from(["", "extent", "values", "batch"]))
    last = inputs[-1]
    if change == "extent":
        inputs[-1] = TensorSpec(last.name, last.dtype, (last.shape[0], draw(EXTENTS)), last.domain)
    elif change == "values":
        domain = draw(DOMAINS)
        inputs[-1] = TensorSpec(last.name, last.dtype, last.shape, Domain(*domain) if domain else None)
    elif change == "batch":
        batched = not batched
        inputs = [TensorSpec(one.name, one.dtype, (None, *one.shape[1:]), one.domain) for one in inputs]
    return signature(*inputs, batched=batched, free=draw(frees(inputs)))


@st.composite
def requests(draw: st.DrawFn, of: Signature) -> dict[str, np.ndarray]:
    """Mostly such that `of` lets it in."""
    rows, tied = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    bound = {place for free in of.free for place in free.dims}

    def extent(one: TensorSpec, dim: int) -> int:
        if (fixed := one.shape[dim]) is not None:
            return fixed
        if of.batched and dim == 0:
            return rows
        return tied if (one.name, dim) in bound else draw(st.integers(1, 4))

    def value(one: TensorSpec) -> int:
        low, high = (one.domain.low, one.domain.high) if one.domain else (0, 1)
        return max(0 if one.dtype == U8 else low, draw(st.sampled_from([low, high - 1])))

    return {one.name: np.full([extent(one, dim) for dim in (0, 1)], value(one), one.dtype) for one in of.inputs}


@settings(max_examples=800, deadline=None)
@given(st.data())
def test_a_request_that_the_old_one_lets_in_passes_the_new_one_unless_a_difference_is_told(data: st.DataObject) -> None:
    old = data.draw(signatures())
    new = data.draw(variants(old) | variants(old) | signatures())
    request = data.draw(requests(old))
    try:
        old.check(request)
    except InvalidInput:
        return
    known = {one.name: one.domain for one in old.inputs}
    # What an old one takes that has no domain is not known.
    is_known = all(known.get(one.name) or not one.domain for one in new.inputs)
    if is_known and not differences(old, new):
        new.check(request)


def test_where_a_build_stopped_looking_is_no_promise_that_was_broken() -> None:
    def verified(most: int) -> Signature:
        return signature(IDS, free=(FreeDim("sequence", (("ids", 1),), (1, most), verified=True),))

    assert differences(signature(IDS), verified(1024)) == []
    assert differences(verified(1024), signature(IDS)) == []
    assert differences(verified(512), verified(1024)) == []
    narrower = ["dimension 1 of input 'ids' takes 1 to 512 and took 1 to 1024"]
    assert differences(verified(1024), verified(512)) == narrower
    assert differences(signature(IDS, free=free(1, 1024)), verified(512)) == narrower
