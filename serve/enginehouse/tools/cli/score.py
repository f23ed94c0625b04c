"""`enginehouse score`: batch scoring of files, resumable; and `enginehouse score status OUTPUT`."""

from __future__ import annotations

import json as json_format
import logging
import sys
import time
from typing import Annotated, Any, Literal, TypeAlias

import typer

from enginehouse.contract.errors import ConfigError
from enginehouse.tools.cli.cluster import on_cluster
from enginehouse.tools.cli.console import err, out
from enginehouse.tools.cli.status import Address

#: As `faces.scoring.ways` has it, which is imported after Ray's environment is set.
Via: TypeAlias = Literal["serve", "engines"]
#: Exit codes beside 0 (all rows scored) and 1 (an error): some rows rejected; stopped by the user.
REJECTED, STOPPED = 3, 130


def score(
    model: Annotated[str, typer.Argument(help="Model, `name` or `name@version`; or `status`, then OUTPUT.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="File, folder, pattern or URL: Parquet, JSON lines, CSV, Arrow, NPZ, NPY or encoded images.",
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or URL for the results.")] = "",
    map: Annotated[
        list[str] | None, typer.Option(metavar="INPUT=COLUMN[,...]", help="Column of an input; several make a row.")
    ] = None,
    constant: Annotated[
        list[str] | None, typer.Option(metavar="INPUT=JSON", help="An input that all rows share.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Column that results are joined by; by default `id`.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN[,...]", help="Columns to pass on to the results.")
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="Another name for a column of results.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=0, help="Add the best so many classes of each output of scores.")] = 0,
    labels: Annotated[str, typer.Option(help="File with the labels of classes: a line each, or a JSON list.")] = "",
    format: Annotated[str | None, typer.Option(help="Format of INPUT, where names do not say it.")] = None,
    output_format: Annotated[str, typer.Option(help="parquet, jsonl or arrow.")] = "parquet",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    sample: Annotated[float, typer.Option(help="Only this share of the rows, the same ones every time.")] = 1.0,
    max_rejected: Annotated[
        str | None, typer.Option(metavar="N|SHARE", help="Rows that may be rejected, as 10, 1% or 0.01; then it ends.")
    ] = None,
    restart: Annotated[bool, typer.Option(help="Score anew, into a folder beside OUTPUT.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Only check the first rows and say what would be done.")] = False,
    min_actors: Annotated[int, typer.Option(min=1, help="Fewest scorers.")] = 1,
    max_actors: Annotated[
        int | None, typer.Option(min=1, help="Most scorers; by default 4 via serve, and what fits via engines.")
    ] = None,
    via: Annotated[
        Via | None, typer.Option(help="Through the application, or by engines of its own; by default what is free.")
    ] = None,
    store: Annotated[str, typer.Option(help="Store of MODEL, where no application serves it.")] = "",
    json: Annotated[bool, typer.Option(help="Progress on stderr and the report on stdout as JSON.")] = False,
    address: Address = "auto",
) -> None:
    """Score every row of INPUT once; OUTPUT gets ids, outputs and who answered. The same command goes on.

    Ends with 0 when every row was scored, 3 when some were rejected (OUTPUT/_rejected), 1 after an error, and 130 when
    it was stopped (Ctrl-C: at the ends of units).
    """
    if not target:
        if model == "status":
            _status(source, json)
            return
        raise ConfigError("OUTPUT is missing: enginehouse score MODEL INPUT OUTPUT")
    started = time.monotonic()
    with on_cluster(address):
        from enginehouse.faces.scoring import job, start
        from enginehouse.faces.scoring.mapping import Mapped
        from enginehouse.faces.scoring.results.top import labels as labels_in
        from enginehouse.faces.scoring.scorers.without_pandas import without_pandas

        without_pandas()
        # A scorer waits when a router is slow, and says so itself.
        logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.ERROR)
        inputs = {name: tuple(columns.split(",")) for name, columns in _pairs(map or [], "--map")}
        constants = {name: _json(text, name) for name, text in _pairs(constant or [], "--constant")}
        kept = tuple(name for names in keep or [] for name in names.split(","))
        renamed = dict(_pairs(rename or [], "--rename"))
        told = labels_in(labels) if labels else ()
        mapped = Mapped(inputs, constants, id_column, kept, renamed, top_k, told)
        paths = start.absolute(source), start.absolute(target)
        asked = job.Asked(*paths, mapped, format, output_format, limit, sample, max_rejected, restart)
        most = None if max_actors is None else max(min_actors, max_actors)
        ready = start.ready(asked, model, via, store, min_actors, most, dry_run)
        say(f"scoring {source} {ready.sentence}")
        for note in ready.job.notes:
            say(note)
        if dry_run:
            _forecast(ready)
            return
        interrupts = start.Interrupts()
        look: Any = "json" if json else "live" if sys.stderr.isatty() else "lines"
        try:
            with interrupts.heard(say):
                report = ready.run(look, interrupts)
        except KeyboardInterrupt:
            say("stopped; the same command goes on with the units that are not done")
            sys.exit(STOPPED)
    _show(report, started, json)
    if not report.is_complete:
        say(f"stopped after {report.finished} of {report.units} units; the same command goes on with the others")
        sys.exit(STOPPED)
    if report.rejected:
        sys.exit(REJECTED)


def say(text: str) -> None:
    """One line, however long: paths are copied from it."""
    err.print(text, markup=False, soft_wrap=True)


def _show(report: Any, started: float, json: bool) -> None:
    from enginehouse.faces.scoring.results.report import document

    if json:
        typer.echo(json_format.dumps(document(report)))
    else:
        took = time.monotonic() - started
        new = report.runs[-1].rows if report.runs else 0
        done = report.written + report.rejected
        told = f"{done} rows in {took:.1f} s ({new / took:.0f} rows/s)"
        if report.runs and (forecast_s := report.runs[-1].forecast_s) is not None:
            lasted = report.runs[-1].ended - report.runs[-1].began
            told += f", {lasted:.1f} of them scoring (forecast: {forecast_s:.1f})"
        if not new and report.is_complete:
            told = f"all {done} rows were scored already; nothing was left to do. They were"
        out.print(
            f"{told} by {', '.join(report.backends) or 'nobody'} -> {report.folder}", highlight=False, soft_wrap=True
        )
    if report.rejected:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.kinds.items())
        say(f"{report.rejected} rows rejected ({kinds}); which and why: {report.folder}/_rejected")


def _forecast(ready: Any) -> None:
    """What a job would be."""
    from enginehouse.faces.scoring.progress import duration

    job = ready.job
    rows = sum(unit.rows for unit in job.left)
    say(f"{rows:,} rows in {len(job.left)} units are to be scored; the first rows are right")
    for name, columns in job.task.plan.inputs.items():
        say(f"  {name}: {', '.join(columns)}")
    say(f"  id: {job.task.plan.id_column or 'file and number of the row'}")
    if (told := ready.forecast) is not None:
        say(
            f"about {duration(told.seconds)}: {duration(told.computing_s)} of computing by the latency tables, "
            f"{duration(told.beside_s)} more for reading and writing as on the first rows, "
            f"{duration(told.starting_s)} to start; {told.cost:,.0f} seconds of scorers at their pools' prices. "
            "Nothing was scored"
        )
    else:
        say("nothing was scored; how long it takes is not known, since the engine was never measured")


def _status(target: str, json: bool) -> None:
    """What is done of the job in a folder, from its ledger."""
    from enginehouse.faces.scoring import start
    from enginehouse.faces.scoring.ledger import Ledger
    from enginehouse.faces.scoring.results import report
    from enginehouse.faces.scoring.storage import Folder

    ledger = Ledger(Folder(start.absolute(target)))
    if (found := ledger.found()) is None:
        raise ConfigError(f"{ledger.folder.url} has no scoring job")
    units, lines = ledger.listed(), ledger.lines()
    made = report.made(ledger.folder, lines, sum(unit.rows for unit in units), len(units))
    if json:
        typer.echo(json_format.dumps(report.document(made)))
        return
    done = made.written + made.rejected
    state = "complete" if made.is_complete else f"{made.finished} of {made.units} units"
    terms = found["terms"]
    out.print(f"{terms['model']} on {terms['INPUT']}: {state}, {done:,} of {made.rows:,} rows", highlight=False)
    for backend, rows in made.backends.items():
        out.print(f"  {backend}: {rows:,} rows", highlight=False)
    if made.rejected:
        kinds = ", ".join(f"{count} {kind}" for kind, count in made.kinds.items())
        out.print(f"  rejected: {made.rejected:,} ({kinds})", highlight=False)
    if made.runs:
        ago = max(0.0, time.time() - max([run.ended for run in made.runs] + [line.ended for line in lines.values()]))
        out.print(f"  {len(made.runs)} runs, {made.seconds:.0f} s; last seen {ago:.0f} s ago", highlight=False)


def _pairs(texts: list[str], option: str) -> list[tuple[str, str]]:
    found = []
    for text in texts:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ConfigError(f"{option} {text!r} is not NAME=VALUE")
        found.append((name, value))
    return found


def _json(text: str, name: str) -> Any:
    try:
        return json_format.loads(text)
    except ValueError:
        raise ConfigError(f"--constant {name}={text} is not JSON, as 1.5, [1, 2] or '\"text\"' are") from None
