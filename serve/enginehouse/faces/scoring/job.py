"""A scoring job from its beginning to its end.

    INPUT -> files -> units -> scorers of all pools -> one file of results a unit, in OUTPUT -> report

Every unit is done once: its results and its line in the ledger are published in one step each, and the same command
finds them and goes on (see `ledger`). Rows that cannot be scored are put apart (see `rejected`).

Not on Ray Data, in this one place, because of what it is (Ray 2.60): blocks are cut anew in every run, so there are no
units that a later run could know; a pool of its actors has one shape of resources and one size of batches; its listing
takes a whole CPU, which a small cluster does not have; and it starts for seconds. What is used is Ray's actors.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from enginehouse.contract.errors import ConfigError, InvalidInput
from enginehouse.contract.tensors import Signature
from enginehouse.faces.scoring import ledger, mapping, readers, sources, units
from enginehouse.faces.scoring.answering import ScorerPool
from enginehouse.faces.scoring.lease import Lease
from enginehouse.faces.scoring.ledger import Ledger, Line
from enginehouse.faces.scoring.mapping import Mapped
from enginehouse.faces.scoring.progress import Look, Progress
from enginehouse.faces.scoring.readers import Limits
from enginehouse.faces.scoring.results import report, writing
from enginehouse.faces.scoring.results.report import Report
from enginehouse.faces.scoring.storage import Folder, digest
from enginehouse.faces.scoring.task import Task
from enginehouse.faces.scoring.units import Unit

#: Jobs of so few units are scored in this process: starting another one takes longer.
_FEW = 2
#: Files that are looked at at once: behind a URL each is a round trip or more.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """A job as it was asked for."""

    source: str
    target: str
    mapped: Mapped = field(default_factory=Mapped)
    source_format: str | None = None
    target_format: str = "parquet"
    limit: int | None = None
    sample: float = 1.0
    max_rejected: str | None = None
    restart: bool = False

    def terms(self, model: Scored) -> dict[str, Any]:
        """What has to be the same for the job to go on, as messages call it."""
        return {
            "model": f"{model.name}@{model.version}",
            "the bundle": model.digest,
            "INPUT": self.source,
            "--format": self.source_format,
            "--map": {name: list(columns) for name, columns in self.mapped.inputs.items()},
            "--constant": dict(self.mapped.constants),
            "--id-column": self.mapped.id_column,
            "--keep": list(self.mapped.keep),
            "--rename": dict(self.mapped.rename),
            "--top-k": self.mapped.top_k,
            "--labels": digest("\n".join(self.mapped.labels).encode())[:16] if self.mapped.labels else None,
            "--output-format": self.target_format,
            "--limit": self.limit,
            "--sample": self.sample,
        }


@dataclass(frozen=True, slots=True)
class Scored:
    """The model that scores: which bundle, and what its requests are."""

    name: str
    version: str
    digest: str
    signature: Signature


@dataclass(slots=True)
class Job:
    """A job that is ready to run: what is left of it, and what earlier runs did."""

    task: Task
    ledger: Ledger
    units: list[Unit]
    lines: dict[str, Line]
    notes: list[str]
    #: What is written when it runs: what the job is, if it is new; further units; and lines that no longer hold.
    document: Mapping[str, Any] | None
    fresh: list[Unit]
    damaged: list[Line]
    max_rejected: int | None = None

    @property
    def left(self) -> list[Unit]:
        """Units without a line."""
        return [unit for unit in self.units if unit.name not in self.lines]

    @property
    def rows(self) -> int:
        """All rows of all units."""
        return sum(unit.rows for unit in self.units)


def prepared(asked: Asked, model: Scored, limits: Limits | None = None) -> Job:
    """The job that `asked` means: a new one, or the one that is in OUTPUT, of which finished units are verified.

    Nothing is written yet. Raises InvalidInput and ConfigError for what cannot be scored, saying what was found and
    what would do; also if the job in OUTPUT is another one.
    """
    if asked.target_format not in writing.ENDS:
        raise ConfigError(f"--output-format {asked.target_format!r} is none of {', '.join(writing.ENDS)}")
    if not 0 < asked.sample <= 1:
        raise ConfigError(f"--sample {asked.sample:g} is no share of the rows; it is more than 0 and at most 1")
    listing = sources.listing(asked.source, asked.source_format)
    notes = [f"left out {each}" for each in listing.skipped]
    terms = asked.terms(model)
    folder, found = _folder(asked, terms, notes)
    book = Ledger(folder, terms)
    known = book.listed() if found else []
    changed, added = ledger.differing(known, listing.files)
    if found and (told := ledger.changes(found["terms"], terms) + changed):
        raise ConfigError(
            f"{folder.url} has another job: {'; '.join(told)}. Name another OUTPUT, or score anew beside it with "
            "--restart"
        )
    if found:
        plan = mapping.Plan.parse(found["plan"])
    else:
        plan = mapping.plan(asked.mapped, model.signature, listing, readers.of(listing.format).look(listing.files[0]))
    if plan.is_typed and listing.format != "images":
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            looks = threads.map(readers.of(listing.format).look, added)
            for file, look in zip(added, looks, strict=True):
                mapping.check_alike(plan, model.signature, file, look, listing.files[0])
    task = Task(model.signature, plan, folder.url, asked.target_format, _key(terms))
    limit = None if asked.limit is None else asked.limit - sum(unit.part.rows for unit in known)
    fresh = units.cut(added, limits or Limits(), len(known), limit, asked.sample)
    if not known and not fresh:
        raise InvalidInput(f"{asked.source}: no rows")
    if fresh:
        task.try_first_rows(fresh[0])
    document = None if found else {"terms": terms, "plan": plan.document(), "began": time.time()}
    lines, damaged = book.verified(book.lines())
    notes += [f"{line.output} is not what it was; its unit is scored again" for line in damaged]
    job = Job(task, book, [*known, *fresh], lines, notes, document, fresh, damaged)
    job.max_rejected = _most(asked.max_rejected, job.rows)
    if lines:
        notes.append(f"going on: {len(lines)} of {len(job.units)} units are done")
    return job


def run(
    job: Job,
    pools: Sequence[ScorerPool],
    *,
    look: Look = "none",
    stopping: Callable[[], bool] = lambda: False,
    here: bool | None = None,
    forecast_s: float | None = None,
) -> Report:
    """Score what is left of `job`; the report is in OUTPUT/_job too.

    `here`: in this process, else in actors of Ray; by default small jobs are. `stopping` is asked all the time: when it
    is true, units under way are finished and no others begun. Raises the EnginehouseError that stopped it, also when
    more rows were rejected than allowed; what is finished stays so.
    """
    lease = Lease(job.ledger.folder)
    with lease.held():
        _begin(job)
        began, before = time.time(), len(job.lines)
        report.keep_run(job.ledger.folder, report.Run(began, began, 0, 0, forecast_s=forecast_s, came_to_end=False))
        progress = Progress(job.rows, sum(line.rows for line in job.lines.values()), look)
        workers = None
        try:
            if here if here is not None else is_small(job) and [pool.name for pool in pools] == ["serve"]:
                _run_here(job, pools[0], progress, stopping)
            elif job.left:
                from enginehouse.faces.scoring.scorers.workers import Workers, check_room

                check_room(pools)
                workers = Workers(job.task, pools, stopping)
                for line in workers.lines(job.left):
                    lease.renew()
                    _done(job, progress, line)
        finally:
            progress.end()
            told = workers.told() if workers is not None else {}
            units = len(job.lines) - before
            this = report.Run(began, time.time(), units, progress.new, forecast_s=forecast_s, **told)
            report.keep_run(job.ledger.folder, this)
        made = report.made(job.ledger.folder, job.lines, job.rows, len(job.units))
        report.publish(job.ledger.folder, made, job.ledger.terms)
    return made


def is_small(job: Job) -> bool:
    """Whether it is done before another process would have started."""
    return len(job.left) <= _FEW


def _run_here(job: Job, pool: ScorerPool, progress: Progress, stopping: Callable[[], bool]) -> None:
    from enginehouse.faces.scoring.scorers.scorer import Scorer, score_here

    async def all_of_it() -> None:
        scorer = Scorer(job.task, pool.answering, pool.name)

        def done(line: Line) -> bool:
            _done(job, progress, line)
            return not stopping()

        try:
            await score_here(scorer, job.left, done)
        finally:
            scorer.close()

    if not job.left:
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(all_of_it())
    else:
        # In a notebook, say, whose loop is busy with the very call that this is.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, all_of_it()).result()


def _done(job: Job, progress: Progress, line: Line | None) -> None:
    progress.add(line)
    if line is None:
        return
    job.lines[line.unit] = line
    rejected = sum(each.rejected for each in job.lines.values())
    if job.max_rejected is not None and rejected > job.max_rejected:
        raise InvalidInput(
            f"{rejected} rows were rejected so far, more than the {job.max_rejected} of --max-rejected; why is in "
            f"{job.ledger.folder.path(line.rejected_file)}"
        )


def _begin(job: Job) -> None:
    """Write down what is to be done."""
    book = job.ledger
    if job.document is not None and not book.begin(job.document):
        raise ConfigError(f"{book.folder.url}: another command has begun a job there; start this one again")
    if job.fresh:
        book.add(job.fresh)
    for line in job.damaged:
        book.discard(line)
    book.folder.clear_parts()


def _folder(asked: Asked, terms: Mapping[str, Any], notes: list[str]) -> tuple[Folder, dict[str, Any] | None]:
    """OUTPUT, and the job that is in it; with `restart`, the first one beside it without another job."""
    folder = Folder(asked.target)
    found = Ledger(folder).found()
    number = 2
    while asked.restart and found is not None:
        folder = Folder(f"{asked.target.rstrip('/')}-{number}")
        found, number = Ledger(folder).found(), number + 1
    if asked.restart and number > 2:
        notes.append(f"scoring anew into {folder.url}")
    if found is None and folder.sizes():
        raise ConfigError(f"{folder.url} is not empty, and no job is there to go on with; name a new folder")
    return folder, found


def _key(terms: Mapping[str, Any]) -> str:
    """What names model and options in the names of results."""
    return hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()[:8]


def _most(text: str | None, rows: int) -> int | None:
    """Rows that may be rejected: a number, or a share as `1%` or `0.01`. Raises ConfigError."""
    if text is None:
        return None
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
        elif "." in text:
            share = float(text)
        else:
            return int(text)
        if not 0 <= share <= 1:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"--max-rejected {text!r} is neither a number of rows nor a share such as 1% or 0.01"
        ) from None
    return int(share * rows)
