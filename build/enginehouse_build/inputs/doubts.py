"""What makes an agreement with a reference say less than it seems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from enginehouse.contract.tensors import Signature, Tensors
from enginehouse_build.inputs import samples as sampling
from enginehouse_build.inputs.held import not_finite

#: Rounding alone makes equal rows differ by less than this share of their magnitude.
_SAME = 1e-6


class Metric(Protocol):
    """A task metric, and its value for the reference."""

    @property
    def name(self) -> str: ...

    @property
    def value(self) -> float: ...


def doubts(
    is_real: bool, metric: Metric | None, answers: Sequence[Tensors], rows: Tensors, signature: Signature
) -> tuple[str, ...]:
    """Remarks about the samples (`is_real`: the user's own), the metric, and the reference's answers to `rows`."""
    remarks = [] if is_real else ["parity is checked on made-up inputs only: give real ones with --samples FILE.npz"]
    if metric is not None and metric.value <= 0:
        remarks.append(f"{metric.name} of the reference itself is {metric.value:g}: are these the right labels?")
    for name, first in answers[0].items():
        if first.dtype.kind != "f" or not first.size:
            continue
        # At other extents the outputs may have other shapes.
        alike = [answer[name] for answer in answers if answer[name].shape[1:] == first.shape[1:]]
        values = np.concatenate(alike) if signature.batched else first
        if not np.isfinite(values).all():
            share = 1 - np.isfinite(values).mean()
            why = f": {said}" if (said := not_finite(rows, signature.batched)) else ""
            remarks.append(f"{share:.0%} of the reference's values of output {name!r} are not finite numbers{why}")
        elif signature.batched and np.abs(values - values[:1]).max() <= _SAME * np.abs(values).max():
            count = min(len(array) for array in rows.values())
            looked_at = "all" if count <= sampling.ROWS_COMPARED else f"{sampling.ROWS_COMPARED} evenly spread of"
            remarks.append(
                f"output {name!r} is the same for {looked_at} {count} samples (to {_SAME:.0e}), so parity says little "
                "about it"
            )
    return tuple(remarks)
