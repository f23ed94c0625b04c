"""One scorer: reads a unit, has its rows answered, publishes the results and says so in the ledger.

The same class works as a Ray actor and, for small jobs, in the driver's own process, where it needs no start.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from enginehouse.contract.errors import DeadlineExceeded, EnginehouseError, InferenceFailed, InvalidInput
from enginehouse.contract.tensors import Tensors
from enginehouse.faces.scoring import mapping
from enginehouse.faces.scoring.answering import Answering
from enginehouse.faces.scoring.ledger import Ledger, Line
from enginehouse.faces.scoring.readers import Rows
from enginehouse.faces.scoring.results import rejected, writing
from enginehouse.faces.scoring.results.plain import values
from enginehouse.faces.scoring.results.rejected import Rejected
from enginehouse.faces.scoring.rows.batches import Group, asked
from enginehouse.faces.scoring.rows.columns import Bad
from enginehouse.faces.scoring.scorers.caution import BLAMED, Caution, clear, write
from enginehouse.faces.scoring.storage import Folder, digest
from enginehouse.faces.scoring.task import Task
from enginehouse.faces.scoring.units import Unit


class Scorer:
    """Scores units, a few at a time: while one is answered the next is read. Used by one event loop."""

    def __init__(self, task: Task, answering: Callable[[], Answering], pool: str) -> None:
        self._task, self._pool = task, pool
        self._answering = answering()
        self._was_busy_s = 0.0
        self._turns = asyncio.Semaphore(self._answering.in_flight)
        self._ledger = Ledger(Folder(task.folder))
        self._schema = mapping.results(task.plan, task.signature)

    async def score(self, unit: Unit, caution: Caution | None = None) -> Line:
        """The line of `unit`, which is published. Raises what stopped it; nothing of the unit counts then.

        With `caution`, as is due for a unit that scorers died with, one call after the other.
        """
        clock = _Clock()
        rows = await asyncio.to_thread(self._task.read, unit)
        clock.lap("read")
        groups, bad = await asyncio.to_thread(self._task.prepare, rows)
        clock.lap("cast")
        if caution is None:
            parts, refused, calls = await self._answered(groups)
        else:
            parts, refused, calls = await self._answered_with_care(unit, groups, caution)
        clock.lap("answer")
        bad |= refused
        return await asyncio.to_thread(self._published, unit, rows, parts, bad, clock, calls)

    async def _answered(self, groups: list[Group]) -> tuple[list[writing.Part], dict[int, Bad], int]:
        """The answers to all rows of `groups`, the rows that were refused, and how many calls it took."""
        most = self._answering.batch_rows if self._task.signature.batched else 1
        calls = [asyncio.ensure_future(self._ask(part)) for group in groups for part in group.parts(most)]
        try:
            answers = await asyncio.gather(*calls)
        except BaseException:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            raise
        parts = [part for answer, _, _ in answers for part in answer]
        refused = {row: why for _, found, _ in answers for row, why in found.items()}
        return parts, refused, sum(count for _, _, count in answers)

    async def _answered_with_care(
        self, unit: Unit, groups: list[Group], caution: Caution
    ) -> tuple[list[writing.Part], dict[int, Bad], int]:
        """As `_answered`, saying before each call what is asked."""
        folder = self._ledger.folder
        parts: list[writing.Part] = []
        refused = dict.fromkeys(caution.guilty, BLAMED)
        calls = 0
        for group in caution.parts(groups, self._answering.batch_rows if self._task.signature.batched else 1):
            await asyncio.to_thread(write, folder, unit, group.rows.tolist())
            answered, bad, count = await self._ask(group)
            parts, refused, calls = parts + answered, refused | bad, calls + count
        await asyncio.to_thread(clear, folder, unit)
        return parts, refused, calls

    async def _ask(self, group: Group) -> tuple[list[writing.Part], dict[int, Bad], int]:
        """The answers to `group`; if it is refused for what is in it, to each half, down to the rows that it is for.

        What was late is asked in smaller parts, of as many rows as are answered in time now.
        """
        try:
            async with self._turns:
                answered = await self._answering.answer(asked(group, self._task.signature))
            outputs = self._with_rows(answered.outputs, len(group.rows))
        except EnginehouseError as error:
            if isinstance(error, DeadlineExceeded) and self._answering.batch_rows < len(group.rows):
                parts = [await self._ask(part) for part in group.parts(self._answering.batch_rows)]
                refused = {row: why for _, found, _ in parts for row, why in found.items()}
                return [part for found, _, _ in parts for part in found], refused, sum(part[2] for part in parts) + 1
            if not error.fault.is_of_content:
                raise
            if len(group.rows) == 1:
                kind = "refused" if error.fault.help == "nothing" else "engine"
                return [], {int(group.rows[0]): Bad(kind, str(error))}, 1
            middle = len(group.rows) // 2
            first = await self._ask(group.part(0, middle))
            second = await self._ask(group.part(middle, len(group.rows)))
            return first[0] + second[0], first[1] | second[1], first[2] + second[2] + 1
        return [writing.Part(group.rows, outputs, answered.backend, answered.version)], {}, 1

    def _with_rows(self, outputs: Tensors, rows: int) -> Tensors:
        if not self._task.signature.batched:
            return {name: np.asarray(array)[None] for name, array in outputs.items()}
        for spec in self._task.signature.outputs:
            if len(outputs[spec.name]) != rows:
                raise InvalidInput(
                    f"output {spec.name!r} has {len(outputs[spec.name])} rows for {rows} that were asked"
                )
        return outputs

    def _published(
        self,
        unit: Unit,
        rows: Rows,
        parts: list[writing.Part],
        bad: Mapping[int, Bad],
        clock: _Clock,
        calls: int,
    ) -> Line:
        plan = self._task.plan
        ids = plan.ids(rows, unit.file)
        known = values(ids.take(pa.array(list(bad), pa.int64())))
        apart = [
            self._rejected(each, unit, rows.numbers[row], why)
            for each, (row, why) in zip(known, bad.items(), strict=True)
        ]
        apart += [
            self._rejected(plan.bad_id(rows, number, unit.file), unit, number, why) for number, why in rows.bad.items()
        ]
        passed_on = [ids, *(rows.table.column(name) for name in plan.keep)]
        results = writing.table(parts, passed_on, self._task.signature, self._schema, plan.top)
        if results.num_rows + len(apart) != unit.rows:
            raise InferenceFailed(
                f"{unit.file.url}: of {unit.rows} rows from row {unit.part.first} on, {results.num_rows} were answered "
                f"and {len(apart)} rejected; this is a mistake in enginehouse"
            )
        data, refused = writing.encoded(results, self._task.form), rejected.written(apart)
        backends: Counter[str] = Counter()
        for part in parts:
            backends[part.backend] += len(part.rows)
        line = Line(
            unit=unit.name,
            rows=unit.rows,
            written=results.num_rows,
            rejected=len(apart),
            kinds=rejected.kinds(apart),
            output=f"{unit.name}-{self._task.key}.{writing.ENDS[self._task.form]}",
            size=len(data),
            digest=digest(data),
            rejected_digest=digest(refused),
            backends=dict(backends),
            seconds={},
            pool=self._pool,
            calls=calls,
        )
        if (other := self._ledger.line(unit.name)) is not None:
            return other
        self._put(line, data, refused)
        clock.lap("write")
        return self._ledger.publish(
            replace(line, seconds=clock.laps, ended=time.time(), busy_s=round(self._busy_s(), 6))
        )

    def _busy_s(self) -> float:
        """Seconds that the engine computed since the last unit ended, where that is known."""
        busy_s = float(getattr(self._answering, "busy_s", 0.0))
        since, self._was_busy_s = busy_s - self._was_busy_s, busy_s
        return since

    @staticmethod
    def _rejected(identity: Any, unit: Unit, number: int, why: Bad) -> Rejected:
        file, row = unit.place(int(number))
        return Rejected(identity, file.name, row, why)

    def _put(self, line: Line, data: bytes, refused: bytes) -> None:
        """Publish results and rejected rows.

        What is there already is of a scorer that ended, or was given up, before its line was there: it does not count.
        """
        folder = self._ledger.folder
        if line.rejected:
            folder.put(line.rejected_file, refused)
        if not folder.create(line.output, data):
            folder.put(line.output, data)

    def close(self) -> None:
        """Free what answers."""
        self._answering.close()


class _Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, what: str) -> None:
        now = time.monotonic()
        self.laps[what] = round(now - self._last, 6)
        self._last = now


async def score_here(scorer: Scorer, units: list[Unit], done: Callable[[Line], bool], at_once: int = 2) -> None:
    """Score `units` in this process, the next one being read meanwhile, until all are or `done` returns False."""
    under_way: set[Any] = set()
    left = list(reversed(units))
    goes_on = True
    while under_way or (left and goes_on):
        while goes_on and left and len(under_way) < at_once:
            under_way.add(asyncio.ensure_future(scorer.score(left.pop())))
        finished, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        for each in finished:
            goes_on = done(each.result()) and goes_on
