"""A scorer in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from enginehouse.faces.scoring.ledger import Line
from enginehouse.faces.scoring.scorers.caution import Caution
from enginehouse.faces.scoring.scorers.scorer import Scorer
from enginehouse.faces.scoring.task import Task
from enginehouse.faces.scoring.units import Unit


class HostedScorer:
    """The actor. Its scorer is made by `start`, whose errors come back as they are."""

    def __init__(self) -> None:
        self._scorer: Scorer | None = None

    async def start(self, task: Task, answering: Callable[[], Any], pool: str, nice: int) -> int:
        os.nice(nice)
        if nice == 19 and hasattr(os, "SCHED_IDLE"):
            # By default of Ray, all its workers are nice already: 19 alone would be half as much as they have.
            with suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        from enginehouse.faces.scoring.scorers.without_pandas import without_pandas

        without_pandas()
        self._scorer = Scorer(task, answering, pool)
        return os.getpid()

    async def score(self, unit: Unit, caution: Caution | None) -> Line:
        assert self._scorer is not None
        return await self._scorer.score(unit, caution)

    async def close(self) -> None:
        if self._scorer is not None:
            self._scorer.close()
