"""Latency tables that earlier builds measured on this machine, by what was timed: file, engine, requests and threads.

Only VALID ones are kept, since a noisy hour should not last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.latency import LatencyTable
from enginehouse_build.judge.measured import identity
from enginehouse_build.judge.profile import Target
from enginehouse_build.steps.kept_steps import KeptSteps, code_digest, digest_of, versions


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
