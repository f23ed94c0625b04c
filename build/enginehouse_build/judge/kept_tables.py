"""Latency tables that earlier builds measured on this machine, by what was timed: file, engine, requests and threads.

Only VALID ones are kept, since a noisy hour should not last. Times of two runs are compared only after one target of
the earlier run was measured again beside the new ones and took as long as before (`measured_beside`).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from enginehouse.contract import tensor_file
from enginehouse.contract.bundle import Bundle
from enginehouse.contract.latency import LatencyTable
from enginehouse_build.judge import profile
from enginehouse_build.judge.profile import Target
from enginehouse_build.steps.kept_steps import KeptSteps, code_digest, digest_of, versions

Measured: TypeAlias = tuple[list[LatencyTable], dict[Target, str]]


@dataclass(frozen=True, slots=True)
class KeptTables:
    """The tables of `bundle`'s targets among `kept`; `conditions` is what they were all measured under."""

    kept: KeptSteps
    bundle: Bundle
    conditions: Any

    def known(self, targets: Sequence[Target]) -> dict[Target, LatencyTable]:
        """What is kept of `targets`."""
        found = {target: self.kept.get(self._key(target)) for target in targets}
        tables = {target: entry.result for target, entry in found.items() if entry is not None}
        # The same file may have had another name.
        return {target: table.model_copy(update={"artifact": target[1]}) for target, table in tables.items()}

    def keep(self, tables: Sequence[LatencyTable]) -> None:
        """Keep those that are VALID."""
        for table in tables:
            if table.verdict == "VALID":
                with self.kept.staging() as entry:
                    self.kept.put(self._key((table.engine, table.artifact)), entry, table)  # type: ignore[arg-type]

    def _key(self, target: Target) -> str:
        return digest_of("latency", identity(self.bundle, target), self.conditions, versions(), code_digest())


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
