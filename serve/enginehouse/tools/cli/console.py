"""How every command talks: progress and errors on stderr, results on stdout."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.control import Control
from rich.measure import Measurement
from rich.segment import Segment
from rich.text import Text

from enginehouse.contract.errors import EnginehouseError
from enginehouse.contract.shown import plain, redacted

#: A pipe has no width of its own: wide enough for every table, unless COLUMNS says what is behind it.
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120


class _Plain:
    """Something to print, with nothing in its text that a terminal obeys; colours are not text."""

    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            yield segment if segment.control else Segment(plain(segment.text, lines=True), segment.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._renderable)


class _AllPlain(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [each if isinstance(each, Control) else _Plain(each) for each in renderables]


def console(stderr: bool = False, width: int | None = None, **options: Any) -> Console:
    """One on which text is text: names come from bundles, and say neither `[red]` nor `ESC [` to a terminal."""
    made = Console(stderr=stderr, width=width, markup=False, emoji=False, **options)
    made.push_render_hook(_AllPlain())
    return made


out = console(width=_WIDTH)
err = console(stderr=True, width=_WIDTH, highlight=False)


def say(text: str | Text) -> None:
    """One line of progress."""
    err.print(text)


def fail(error: EnginehouseError) -> None:
    """One line for an error, after where there is more to read about it."""
    for note in getattr(error, "__notes__", ()):
        err.print(redacted(note), soft_wrap=True, style="dim")
    err.print(Text.assemble((type(error).__name__, "bold red"), ": ", str(error)), soft_wrap=True)
