"""The latency tables of a build: those that are known from before, and those that have to be measured beside them.

Times of two runs are compared only after one target of the earlier run was measured again beside the new ones and took
as long as before.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from enginehouse.contract import tensor_file
from enginehouse.contract.bundle import Bundle
from enginehouse.contract.latency import LatencyTable
from enginehouse_build.judge import profile
from enginehouse_build.judge.profile import Target

Measured: TypeAlias = tuple[list[LatencyTable], dict[Target, str]]


def identity(bundle: Bundle, target: Target) -> tuple[str, ...]:
    """What makes a target what it is: its engine, the precision that it runs in, and its files."""
    kind, name = target
    artifact = bundle.manifest.artifact(name)
    ran = artifact.effective_precision or artifact.precision
    return kind, ran, *sorted(file.sha256 for file in artifact.files)


def measured_beside(
    _: Path,
    bundle: Bundle,
    targets: Sequence[Target],
    known: Mapping[Target, LatencyTable],
    samples: Path,
    threads: int,
    budget_s: float,
    quick: bool,
) -> Measured:
    """A step of the build: tables of all `targets` in their order, and faults by target.

    Those in `known` need not be measured, and of targets that are the same (`identity`) only one is.
    """
    requests = tensor_file.read(samples)[0]

    def measure(wanted: Sequence[Target]) -> dict[Target, LatencyTable]:
        once = {identity(bundle, target): target for target in reversed(wanted)}
        tables, failed = profile.measure(
            bundle, [*once.values()][::-1], requests, threads, budget_s=budget_s, quick=quick
        )
        faults.update(failed)
        by_name = {(table.engine, table.artifact): table for table in tables}
        return {target: by_name[target] for target in wanted if target in by_name}

    faults: dict[Target, str] = {}
    anchor = min(known, key=lambda target: known[target].predict_ms(1), default=None)
    found = measure([target for target in targets if target not in known or target == anchor])
    if anchor is None or (anchor in found and _agree(known[anchor], found[anchor])):
        found |= known
    else:
        # This machine is not as fast as it was: no time from then is compared with one from now.
        found |= measure([target for target in known if target != anchor])
    for target in targets:
        twins = (one for one in found if identity(bundle, one) == identity(bundle, target))
        if target not in faults and (twin := next(twins, None)) is not None:
            found.setdefault(target, found[twin].model_copy(update={"artifact": target[1]}))
    return [found[target] for target in targets if target in found], faults


def is_quick(measured: Measured) -> bool:
    """Whether another build may use all of these tables: VALID ones are kept apart, and INVALID ones should not be."""
    tables, faults = measured
    return not faults and any(table.verdict == "QUICK" for table in tables)


def _agree(before: LatencyTable, now: LatencyTable) -> bool:
    """Whether the points of both take as long, in the median, but for what rounds may differ by."""
    times = {(point.rows, point.size): point.median_ms for point in before.points}
    ratios = [point.median_ms / times[key] for point in now.points if (key := (point.rows, point.size)) in times]
    return bool(ratios) and 1 / (1 + profile.SPREAD) <= statistics.median(ratios) <= 1 + profile.SPREAD
