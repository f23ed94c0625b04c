"""The report as a page for people, which needs no other file and no network: the look of the build report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from enginehouse.faces.scoring.progress import duration
from enginehouse.faces.scoring.results.report import Report

#: What seconds of scorers were spent on, in the order of a unit's way.
_STEPS = {"read_s": "reading", "cast_s": "casting", "answer_s": "waiting for answers", "write_s": "writing"}


def rendered(report: Report, terms: Mapping[str, Any]) -> str:
    """The page; `terms` are those of the ledger. The same report gives the same page."""
    state = "open" if not report.is_complete else "some" if report.rejected else "all"
    asked = {name: value for name, value in terms.items() if value not in (None, {}, [], 1.0) and name != "model"}
    body = [
        f"<h1>{escape(str(terms['model']))}</h1>",
        f'<p class="meta">{escape(str(terms["INPUT"]))} &rarr; {escape(report.folder)}</p>',
        f'<div class="verdict {state}"><p class="lead">{escape(_verdict(report))}</p>',
        f'<p class="why">{escape(_speed(report))}</p></div>',
        _table("Who answered", ("backend", "rows", "share", "rows/s"), _backends(report)),
        _table(
            "Scorers",
            ("pool", "rows", "units", "calls", "busy", *_STEPS.values(), "starting"),
            [_pool(name, own, report) for name, own in report.pools.items()],
            "Seconds of all scorers together. Busy is the engines' share of the time that scorers were up; that of the "
            "application's is not known here.",
        ),
    ]
    if report.rejected:
        note = "Each row with its id, its place and the reason is in _rejected/."
        body.append(_table("Rejected", ("kind", "rows", "share"), _shares(report.kinds, report.rejected), note))
    body.append(
        _table(
            "Runs",
            ("began", "took", "rows", "units", "rows/s", "forecast", "scorers", "scorers lost"),
            [_run(run) for run in report.runs],
        )
    )
    body.append(_table("Asked for", ("option", "value"), [(name, str(value)) for name, value in asked.items()]))
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    title = f"{escape(str(terms['model']))}: scores"
    head = f'<meta charset="utf-8"><title>{title}</title><style>{style}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"


def _verdict(report: Report) -> str:
    if not report.is_complete:
        return f"{report.finished} of {report.units} units are done; the same command goes on with the others."
    if report.rejected:
        return f"{report.written:,} of {report.rows:,} rows were scored, {report.rejected:,} were rejected."
    return f"All {report.rows:,} rows were scored."


def _speed(report: Report) -> str:
    rows = sum(run.rows for run in report.runs)
    told = f"{duration(report.seconds)} in {len(report.runs)} run{'s' if len(report.runs) != 1 else ''}"
    return f"{told}, {rows / report.seconds:,.0f} rows/s" if report.seconds else told


def _shares(counts: Mapping[str, int], of: int) -> list[tuple[str, ...]]:
    return [(name, f"{count:,}", f"{100 * count / max(1, of):.1f} %") for name, count in counts.items()]


def _backends(report: Report) -> list[tuple[str, ...]]:
    shares = _shares(report.backends, report.written)
    rates = [f"{report.rates[name]:,.0f}" if name in report.rates else "-" for name in report.backends]
    return [(*share, rate) for share, rate in zip(shares, rates, strict=True)]


def _pool(name: str, own: Mapping[str, float], report: Report) -> tuple[str, ...]:
    up_s = sum(run.up_s.get(name, 0.0) for run in report.runs)
    starting_s = sum(run.starting_s.get(name, 0.0) for run in report.runs)
    busy = f"{100 * own['busy_s'] / up_s:.0f} %" if up_s and own.get("busy_s") else "-"
    steps = [f"{own.get(step, 0.0):,.1f}" for step in _STEPS]
    figures = (f"{own['rows']:,.0f}", f"{own['units']:,.0f}", f"{own['calls']:,.0f}")
    return (name, *figures, busy, *steps, f"{starting_s:,.1f}" if starting_s else "-")


def _run(run: Any) -> tuple[str, ...]:
    took = run.ended - run.began
    return (
        time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(run.began)),
        duration(took) + ("" if run.came_to_end else ", killed"),
        f"{run.rows:,}",
        f"{run.units:,}",
        f"{run.rows / took:,.0f}" if took > 0 else "-",
        "-" if run.forecast_s is None else duration(run.forecast_s),
        ", ".join(f"{count} {pool}" for pool, count in run.scorers.items()) or "in the command",
        ", ".join(f"{count} {pool}" for pool, count in run.deaths.items()) or "-",
    )


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """All columns but the first are figures, unless there are only two."""
    kinds = ["" if at == 0 or len(names) == 2 else ' class="n"' for at in range(len(names))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, names, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    told = f'<p class="meta">{escape(note)}</p>' if note else ""
    return f"<h2>{escape(title)}</h2>{told}<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
