"""Starts scoring jobs: who computes, what is asked for, and how it ends. `enginehouse.score` and the command are these.

The process has to be connected to a Ray cluster.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from enginehouse.contract.errors import ConfigError
from enginehouse.contract.store import Store
from enginehouse.faces.scoring import job
from enginehouse.faces.scoring.answering import ScorerPool
from enginehouse.faces.scoring.job import Asked, Scored
from enginehouse.faces.scoring.mapping import Mapped
from enginehouse.faces.scoring.progress import Look
from enginehouse.faces.scoring.report import Report
from enginehouse.faces.scoring.via_serve import ThroughServe

#: Logical CPUs of a scorer that asks the application: it reads, casts and waits. A local cluster has few to give.
SCORER_CPUS = 0.25
#: Scorers at most, unless another number is asked for.
MOST = 4


@dataclass(frozen=True, slots=True)
class Way:
    """Who computes: the model's bundle, the pools of scorers, and a sentence that says so."""

    model: Scored
    pools: tuple[ScorerPool, ...]
    sentence: str


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
    format: str | None = None,
    output_format: str = "parquet",
    limit: int | None = None,
    sample: float = 1.0,
    max_rejected: int | str | None = None,
    restart: bool = False,
    min_actors: int = 1,
    max_actors: int = MOST,
    progress: Look = "none",
) -> Report:
    """Score every row of `source` with `model`, once, into files in the folder `target`; what of it is done, is done.

    The arguments are the options of `enginehouse score`. Example:

        report = enginehouse.score("digits", "images.parquet", "scores/", map={"image": "pixels"}, keep=["label"])
        print(report.written, report.rejected)

    Raises ConfigError and InvalidInput for what cannot be scored, and the EnginehouseError that stopped the job; the
    same call goes on from there.
    """
    inputs = {name: (columns,) if isinstance(columns, str) else tuple(columns) for name, columns in (map or {}).items()}
    asked = Asked(
        absolute(source),
        absolute(target),
        Mapped(inputs, dict(constants or {}), id_column, tuple(keep), dict(rename or {})),
        format,
        output_format,
        limit,
        sample,
        None if max_rejected is None else str(max_rejected),
        restart,
    )
    way = through_serve(model, min_actors, max_actors)
    return job.run(job.prepared(asked, way.model), list(way.pools), look=progress)


def through_serve(model: str, least: int = 1, most: int = MOST) -> Way:
    """The running application. Raises ConfigError when it does not serve `model`."""
    from enginehouse.cluster import deploy

    catalog = deploy.live_catalog()
    config = catalog.find(model)
    if config is None:
        raise ConfigError(f"model {model!r} is not served; served: {', '.join(m.id for m in catalog.models)}")
    store = Store(catalog.store)
    manifest = store.manifest(model, config.version, config.digest)
    scored = Scored(model, config.version, store.digest(model, config.version), manifest.request_signature())
    answering = ThroughServe(model, config.version, config.max_batch_size or manifest.max_batch)
    pool = ScorerPool("serve", answering, least, max(least, most), {"num_cpus": SCORER_CPUS})
    return Way(scored, (pool,), f"via serve: through the routers that serve {config.id}")


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
