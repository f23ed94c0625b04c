"""Starts scoring jobs: who computes, what is asked for, and how it ends. `enginehouse.score` and the command are these.

The process has to be connected to a Ray cluster.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from enginehouse.contract.manifest import ACCELERATOR_OF, Manifest
from enginehouse.contract.store import Store
from enginehouse.faces.scoring import job
from enginehouse.faces.scoring.answering import ScorerPool
from enginehouse.faces.scoring.forecast import START_S, Forecast, Speed, forecast
from enginehouse.faces.scoring.job import Asked, Job, Scored
from enginehouse.faces.scoring.mapping import Mapped
from enginehouse.faces.scoring.progress import Look
from enginehouse.faces.scoring.readers import Limits
from enginehouse.faces.scoring.results.report import Report, runs
from enginehouse.faces.scoring.ways.choice import Known, Via, Way, choose_way, known
from enginehouse.faces.scoring.ways.via_serve import ThroughServe

#: Logical CPUs of a scorer that asks the application: it reads, casts and waits. A local cluster has few to give.
SCORER_CPUS = 0.25
#: Scorers step back for the processes that answer online requests, as far as there is: Ray starts those with 15.
NICE = 19
#: Scorers at most, unless another number is asked for.
MOST = 4
#: A request to the application: at most so many full batches, within so many milliseconds of computing. While nobody
#: asks online they are computed together, and the first who does has to wait for that.
REQUEST_BATCHES, REQUEST_MS = 32, 20.0
#: Seconds of computing in a unit, at most.
UNIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Ready:
    """A job, the pools of scorers for it, a sentence that says who computes, and what it should take, where known."""

    job: Job
    pools: tuple[ScorerPool, ...]
    sentence: str
    forecast: Forecast | None = None

    def run(self, look: Look = "none", stopping: Callable[[], bool] = lambda: False) -> Report:
        """See `job.run`."""
        forecast_s = self.forecast.seconds if self.forecast else None
        return job.run(self.job, self.pools, look=look, stopping=stopping, forecast_s=forecast_s)


def score(
    model: str,
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    map: Mapping[str, str | Sequence[str]] | None = None,
    constants: Mapping[str, Any] | None = None,
    id_column: str | None = None,
    keep: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    top_k: int = 0,
    labels: Sequence[str] = (),
    format: str | None = None,
    output_format: str = "parquet",
    limit: int | None = None,
    sample: float = 1.0,
    max_rejected: int | str | None = None,
    restart: bool = False,
    via: Via | None = None,
    store: str = "",
    min_actors: int = 1,
    max_actors: int | None = None,
    progress: Look = "none",
) -> Report:
    """Score every row of `source` with `model`, once, into files in the folder `target`; what of it is done, is done.

    The arguments are the options of `enginehouse score`. Example:

        report = enginehouse.score("digits", "images.parquet", "scores/", map={"image": "pixels"}, keep=["label"])

    Raises ConfigError and InvalidInput for what cannot be scored, and the EnginehouseError that stopped the job; the
    same call goes on from there.
    """
    inputs = {name: (columns,) if isinstance(columns, str) else tuple(columns) for name, columns in (map or {}).items()}
    asked = Asked(
        absolute(source),
        absolute(target),
        Mapped(inputs, dict(constants or {}), id_column, tuple(keep), dict(rename or {}), top_k, tuple(labels)),
        format,
        output_format,
        limit,
        sample,
        None if max_rejected is None else str(max_rejected),
        restart,
    )
    return ready(asked, model, via, store, min_actors, max_actors).run(progress)


def ready(
    asked: Asked,
    model: str,
    via: Via | None = None,
    store: str = "",
    least: int = 1,
    most: int | None = None,
    dry_run: bool = False,
) -> Ready:
    """The job that is asked for, and who computes it; with `dry_run` also how long a small one takes.

    Raises ConfigError and InvalidInput for what cannot be scored.
    """
    # Here, as what is known of models imports no Ray where they are in a store.
    from enginehouse.cluster import tokens

    tokens.check_usual()
    found = known(model, store, via)
    scored = Scored(found.config.name, found.config.version, _digest(found), found.manifest.request_signature())
    made = job.prepared(asked, scored, Limits(rows=_unit_rows(found.manifest)))
    if found.is_served and not dry_run and via in (None, "serve") and (via or job.is_small(made)):
        why = "as asked for" if via else "the job is small"
        sentence = f"via serve, {why}: through the routers that serve {found.config.id}"
        return Ready(made, (_through_serve(found, least, most),), sentence)
    # Here, since small jobs are done without.
    from enginehouse.cluster import node_facts
    from enginehouse.faces.scoring.ways.via_engines import scorer_pools

    nodes, notes = node_facts.gather()
    made.notes += notes
    way = choose_way(via, found.config, found.manifest, nodes, found.pools, found.is_served)
    told = _forecast(made, way, most)
    if way.via == "serve":
        return Ready(made, (_through_serve(found, least, most),), way.sentence, told)
    made.notes += [f"left out: {note}" for note in way.plan.notes]
    pools = scorer_pools(found.store, found.config, way.plan, least, most)
    return Ready(made, tuple(pools), way.sentence, told)


def _forecast(made: Job, way: Way, most: int | None) -> Forecast | None:
    """What the job takes; None where an engine was never measured."""
    if way.plan.rows_per_s is None:
        return None
    limit = most if way.via == "engines" else None
    speeds = [
        Speed(
            pool.most if limit is None else min(limit, pool.most),
            pool.rows_per_s,
            pool.threads,
            ACCELERATOR_OF[pool.kinds[0]] == "cpu",
            pool.price,
        )
        for pool in way.plan.pools
        if pool.rows_per_s
    ]
    before = [run for run in runs(made.ledger.folder) if run.starting_s]
    started = sum(count for run in before for count in run.scorers.values())
    starting_s = sum(s for run in before for s in run.starting_s.values()) / started if started else START_S
    return forecast(made.task, made.left, speeds, starting_s)


def _through_serve(found: Known, least: int, most: int | None) -> ScorerPool:
    answering = ThroughServe(found.config.name, found.config.version, _request_rows(found))
    most = max(least, MOST if most is None else most)
    return ScorerPool("serve", answering, least, most, {"num_cpus": SCORER_CPUS}, nice=NICE)


def _digest(found: Known) -> str:
    return found.config.digest or Store(found.store).digest(found.config.name, found.config.version)


def _batch_ms(manifest: Manifest) -> float | None:
    """Milliseconds of a full batch on the engine that is best at it, None if none was measured."""
    size = manifest.axes[0].opt if manifest.axes else None
    return min((table.predict_ms(manifest.max_batch, size) for table in manifest.latency), default=None)


def _request_rows(found: Known) -> int:
    """Rows of a request: full batches that are computed in REQUEST_MS, so that online requests wait no longer."""
    rows = found.config.max_batch_size or found.manifest.max_batch
    batch_ms = _batch_ms(found.manifest)
    return rows if batch_ms is None else rows * max(1, min(REQUEST_BATCHES, int(REQUEST_MS / max(batch_ms, 1e-3))))


def _unit_rows(manifest: Manifest) -> int:
    """Rows of a unit, of which as much is computed again when a scorer dies: UNIT_S of the best engine."""
    batch_ms = _batch_ms(manifest)
    if batch_ms is None:
        return Limits().rows
    return max(manifest.max_batch, min(Limits().rows, int(manifest.max_batch * UNIT_S * 1e3 / max(batch_ms, 1e-3))))


def absolute(path: str | PathLike[str]) -> str:
    """Scorers have another working directory."""
    text = str(path)
    return text if "://" in text else str(Path(text).absolute())


class Interrupts:
    """Whether the user has asked to stop (Ctrl-C, SIGTERM): once at the ends of units, twice at once."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> bool:
        return self.count > 0

    @contextlib.contextmanager
    def heard(self, say: Any) -> Iterator[None]:
        """Take signals for the context; `say` gets a line at the first one. The second one raises KeyboardInterrupt."""

        def take(number: int, frame: Any) -> None:
            self.count += 1
            if self.count > 1:
                raise KeyboardInterrupt
            say("stopping when the units under way are done; once more: at once")

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, taken in before.items():
                signal.signal(number, taken)
