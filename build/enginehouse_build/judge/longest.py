"""Whole numbers at the largest extents: a sum of a thousand leaves the exact numbers of fp32 sooner than one of eight.

Samples show neither: they are short, and what is larger in them is rare.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from enginehouse.contract.bounds import InputBound, narrower
from enginehouse.contract.manifest import Artifact, EngineKind
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse_build.inputs.unanswered import Unanswered
from enginehouse_build.reference.probes import answered, of_whole

Run = Callable[[Tensors], Tensors]

SEED = 0
#: Seconds for all bounds of an artifact: of a small model they are found in a fraction.
_SECONDS = 3.0
#: So many magnitudes in a row have to be right: a sum may be so by chance.
_CERTAIN = 2
#: So often values as large as those of the samples are made up.
_TIMES = 3
#: How far below the largest number of the samples neighbours of it may be.
_NEAR = 5


def whole_inputs(signature: Signature, samples: Tensors) -> tuple[str, ...]:
    """Inputs of whole numbers that index no table."""
    return tuple(
        spec.name
        for spec in signature.inputs
        if spec.dtype.kind in "iu" and spec.domain is None and samples[spec.name].size
    )


def as_samples_may_be(request: Tensors, samples: Tensors, names: Sequence[str]) -> Iterator[tuple[str, Tensors]]:
    """`request` with other whole numbers that are as large as those of the `samples`, and what these are."""
    if not names:
        return
    generator = np.random.default_rng(SEED)
    ranges = {name: (int(samples[name].min()), int(samples[name].max())) for name in names}
    kinds = {"whole numbers all over the range of the samples": ranges}
    kinds["whole numbers as large as any of the samples"] = {
        name: (max(high - _NEAR, low), high) for name, (low, high) in ranges.items()
    }
    if any(low < 0 for low, _ in ranges.values()):
        kinds["whole numbers as small as any of the samples"] = {
            name: (low, min(low + _NEAR, high)) for name, (low, high) in ranges.items()
        }
    for what, spans in (*kinds.items(),) * _TIMES:
        changed = {
            name: generator.integers(low, high, request[name].shape, request[name].dtype, endpoint=True)
            for name, (low, high) in spans.items()
        }
        yield what, {**request, **changed}


def narrowed(
    kind: EngineKind,
    infer: Run,
    artifact: Artifact,
    right: Run,
    request: Tensors,
    samples: Tensors,
    names: Sequence[str],
    bounds: dict[str, InputBound],
) -> tuple[dict[str, InputBound], tuple[str, ...]]:
    """The `bounds` of `artifact` on the engine of `infer`, narrowed to what is right at the extents of `request` too.

    Also the faults, in words. Of numbers in the inputs `names` the largest within the bounds are asked for first, then
    smaller ones until the artifact answers as the reference, `right`; what that refuses proves nothing.
    """
    began = time.monotonic()
    faults: list[str] = []
    for probes in _of_a_kind(of_whole(request, samples, names)):
        fault, right_ones = "", 0
        for asked in reversed(probes):
            if time.monotonic() - began > _SECONDS:
                break
            unanswered = answered(None, asked)
            if not unanswered.is_asked(artifact) or not unanswered.tells(bounds):
                continue
            probe = answered(right, asked)
            if probe.answer is None:
                continue
            found = probe.fault(kind, infer, artifact)
            if found is None:
                right_ones += 1
                if right_ones == _CERTAIN:
                    break
                continue
            right_ones = 0
            fault = f"at extents that samples do not have, {found}"
            bounds = narrower(bounds, dict.fromkeys(probe.names, probe.within))
        faults += [fault] if fault else []
    return bounds, tuple(faults)


def _of_a_kind(probes: Iterator[Unanswered]) -> list[list[Unanswered]]:
    """Those of the same inputs and signs, in the order of their size."""
    kinds: dict[tuple[tuple[str, ...], str], list[Unanswered]] = {}
    for probe in probes:
        kinds.setdefault((probe.names, probe.values.rstrip("0123456789^")), []).append(probe)
    return list(kinds.values())
