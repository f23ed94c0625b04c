"""What the samples hold, in words: which of them a model refuses, and which are no number."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from enginehouse.contract.errors import BuildError, EnginehouseError, ExportFailed
from enginehouse.contract.parity import NOTHING_FINITE
from enginehouse.contract.tensors import Tensors

#: Seconds that looking for a sample that is refused may take, and the rows that are asked together first.
_SECONDS, _TOGETHER = 10.0, 32


@contextmanager
def named(
    source: Callable[[Tensors], object], samples: Tensors, batched: bool, where: str, reason: Callable[[Exception], str]
) -> Iterator[None]:
    """Have an error of the context name the sample at fault, where `source` refuses one or one is NaN.

    `where` the samples are from begins the BuildError, `reason` is what is said of an error of the source's.
    """
    try:
        yield
    except EnginehouseError as error:
        if NOTHING_FINITE in str(error) and (why := not_finite(samples, batched)):
            raise ExportFailed(f"{error} {why}") from error
        # What has no cause is a comparison that failed, and no request that was refused; of what takes no sample at
        # all the error says more.
        if error.__cause__ is None or not (fault := refused(source, samples, batched, reason, takes_some=True)):
            raise
        raise BuildError(f"{where}: {fault}") from error
    except Exception as error:
        # A module may raise anything.
        if not (fault := refused(source, samples, batched, reason)):
            raise
        raise BuildError(f"{where}: {fault}") from error


def refused(
    source: Callable[[Tensors], object],
    samples: Tensors,
    batched: bool,
    reason: Callable[[Exception], str],
    *,
    takes_some: bool = False,
) -> str:
    """Which of the `samples` the `source` refuses, why, and what it holds that others do not; "" where it takes all.

    With `takes_some`, "" also where it takes none of those that there is time for.
    """
    until = time.monotonic() + _SECONDS

    def fault(request: Tensors) -> str:
        try:
            source(request)
        except Exception as error:
            # A module may raise anything.
            return f"{type(error).__name__}: {reason(error)}"
        return ""

    if not batched:
        why = "" if takes_some else fault(samples)
        return why and f"the model refuses the samples: {why}; {ranges(samples)}"
    count = min(len(array) for array in samples.values())
    taken: list[int] = []
    bad: dict[int, str] = {}
    for start in range(0, count, _TOGETHER):
        rows = list(range(start, min(start + _TOGETHER, count)))
        if time.monotonic() > until:
            break
        if not fault(_rows(samples, rows)):
            taken += rows
            continue
        for row in rows:
            if time.monotonic() > until:
                break
            if why := fault(_rows(samples, [row])):
                bad[row] = why
            else:
                taken.append(row)
    if not bad or (takes_some and not taken):
        return ""
    first = next(iter(bad))
    who = f"sample {first}" + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
    own = _rows(samples, [first])
    if not taken:
        return f"the model refuses every sample: {bad[first]}; in sample {first} {ranges(own)}"
    others = _rows(samples, taken)
    # What it has in common with those that are taken is not what is wrong with it.
    odd = [name for name in own if _ends(own[name], others[name]) != _ends(others[name])] or list(own)
    own, others = ({name: each[name] for name in odd} for each in (own, others))
    return (
        f"the model refuses {who}: {bad[first]}; in sample {first} {ranges(own)}, "
        f"in those that it takes {ranges(others)}"
    )


def not_finite(samples: Tensors, batched: bool = True) -> str:
    """The first sample of an input that is NaN, has NaN in it, or an infinity: "sample 0 of input 'x' is NaN"."""
    for name, array in samples.items():
        if array.dtype.kind != "f" or not array.size or np.isfinite(array).all():
            continue
        rows = array.reshape(len(array) if batched else 1, -1)
        odd = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        row = rows[odd[0]]
        what = "NaN" if np.isnan(row).any() else "infinity"
        verb = "is" if not np.isfinite(row).any() else "has"
        if not batched:
            return f"input {name!r} of the samples {verb} {what}"
        others = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
        return f"sample {odd[0]} of input {name!r} {verb} {what}{others}"
    return ""


def ranges(request: Tensors) -> str:
    """The smallest and the largest value of each input but text."""
    known = {name: ends for name, array in request.items() if (ends := _ends(array)) is not None}
    said = (f"input {name!r} has {_number(low)} to {_number(high)}" for name, (low, high) in known.items())
    return ", ".join(said) or "there is nothing but text"


def _rows(samples: Tensors, rows: list[int]) -> Tensors:
    return {name: array[rows] for name, array in samples.items()}


def _ends(*arrays: np.ndarray) -> tuple[float, float] | None:
    """The smallest and the largest value; None of text and of nothing."""
    values = np.concatenate([array.ravel() for array in arrays])
    if values.dtype.kind not in "iufb" or not values.size:
        return None
    return values.min().item(), values.max().item()


def _number(value: float) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
