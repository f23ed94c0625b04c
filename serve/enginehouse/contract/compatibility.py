"""Whether the clients of one signature can go on with another one: what it no longer takes or no longer answers.

A request that the old signature lets in must pass the new one, and the answer must have what the old one promised. What
only widens is no difference: a free dimension in the place of a fixed one, a wider range, a batch where there was none,
one output more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from enginehouse.contract.tensors import FreeDim, Signature, TensorSpec, datatype


def differences(old: Signature, new: Signature) -> list[str]:
    """What breaks for clients of `old` when `new` answers, one sentence for each; empty when nothing does."""
    before, after = _by_name(old.inputs), _by_name(new.inputs)
    found = [f"input {name!r} is gone" for name in before.keys() - after.keys()]
    found += [f"input {spec} is new" for name, spec in after.items() if name not in before]
    both = [(spec, after[name]) for name, spec in before.items() if name in after]
    for one, other in both:
        found += _of_tensor("input", one, other) or _of_extents(old, one, new, other) + _of_values(one, other)
    found += _of_batch(old, new) + _of_ties(old, new)
    answers = _by_name(new.outputs)
    for spec in old.outputs:
        found += _of_output(spec, answers.get(spec.name))
    return sorted(found)


def _by_name(specs: Sequence[TensorSpec]) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in specs}


def _of_tensor(what: str, old: TensorSpec, new: TensorSpec) -> list[str]:
    """Of dtype and number of dimensions."""
    if old.dtype != new.dtype:
        return [f"{what} {old.name!r} is {datatype(new.dtype)} and was {datatype(old.dtype)}"]
    if len(old.shape) != len(new.shape):
        return [f"{what} {old.name!r} has {len(new.shape)} dimensions and had {len(old.shape)}: {new}, {old}"]
    return []


def _of_extents(old: Signature, before: TensorSpec, new: Signature, after: TensorSpec) -> list[str]:
    found = []
    for dim in range(len(before.shape)):
        least, most = _extents(old, before, dim)
        takes = _extents(new, after, dim)
        if most == math.inf and _is_only_verified(new, after, dim):
            # The old one promised nothing: nobody had looked how far it is right.
            most = takes[1]
        if not takes[0] <= least <= most <= takes[1]:
            was, now = _shown(least, most), _shown(*takes)
            found.append(f"dimension {dim} of input {before.name!r} takes {now} and took {was}")
    return found


def _extents(signature: Signature, spec: TensorSpec, dim: int) -> tuple[float, float]:
    """The smallest and the largest extent that is let in."""
    fixed = spec.shape[dim]
    if fixed is not None:
        return fixed, fixed
    ranges = [free.range for free in signature.free if free.range is not None and (spec.name, dim) in free.dims]
    # Nobody has a use for an empty input, even where it would be let in.
    return max([1, *(low for low, _ in ranges)]), min([math.inf, *(high for _, high in ranges)])


def _is_only_verified(signature: Signature, spec: TensorSpec, dim: int) -> bool:
    """Whether its largest extent is what a build has verified and nobody has declared."""
    places = [free for free in signature.free if free.range is not None and (spec.name, dim) in free.dims]
    return bool(places) and all(free.verified for free in places)


def _shown(least: float, most: float) -> str:
    if least == most:
        return f"{least:g}"
    return "any extent" if most == math.inf else f"{least:g} to {most:g}"


def _of_values(old: TensorSpec, new: TensorSpec) -> list[str]:
    # Where the old one has none, nobody had looked for it: what is outside was refused by the engine, or is now.
    if old.domain is None or new.domain is None:
        return []
    if new.domain.low <= old.domain.low and old.domain.high <= new.domain.high:
        return []
    return [f"input {old.name!r} takes the values {new.domain} and took {old.domain}"]


def _of_batch(old: Signature, new: Signature) -> list[str]:
    if old.batched and not new.batched:
        return ["a request is one whole input and was a batch of rows"]
    # Where there was no batch, inputs may have had any extent there; the rows of a batch are as many in each input.
    first = {spec.shape[0] if spec.shape else 0 for spec in old.inputs}
    if new.batched and not old.batched and len(old.inputs) > 1 and (len(first) > 1 or None in first):
        return ["the inputs have to have as many rows each, which they had not"]
    return []


def _of_ties(old: Signature, new: Signature) -> list[str]:
    """Dimensions that have to agree now and had not."""
    extents = {(spec.name, dim): extent for spec in old.inputs for dim, extent in enumerate(spec.shape)}
    found = []
    for free in new.free:
        # Those of inputs that are new, or have more dimensions, are told already.
        known = [place for place in free.dims if place in extents]
        for name, dim in known[1:]:
            first, other = known[0], (name, dim)
            if not _tied(old.free, first, other) and _differ(extents[first], extents[other]):
                found.append(
                    f"dimension {dim} of input {name!r} has to be that of dimension {first[1]} of {first[0]!r}, "
                    "and had not"
                )
    return found


def _tied(free: Sequence[FreeDim], one: tuple[str, int], other: tuple[str, int]) -> bool:
    return any(one in each.dims and other in each.dims for each in free)


def _differ(one: int | None, other: int | None) -> bool:
    """Whether they may have had different extents."""
    return one is None or other is None or one != other


def _of_output(old: TensorSpec, new: TensorSpec | None) -> list[str]:
    if new is None:
        return [f"output {old.name!r} is gone"]
    if found := _of_tensor("output", old, new):
        return found
    return [
        f"dimension {dim} of output {old.name!r} is {after} and was {before}"
        for dim, (before, after) in enumerate(zip(old.shape, new.shape, strict=True))
        if before is not None and after is not None and before != after
    ]
