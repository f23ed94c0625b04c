"""How every command talks: progress and errors on stderr, results on stdout."""

from __future__ import annotations

import os
import sys

from rich.console import Console

from enginehouse.contract.errors import EnginehouseError

#: A pipe has no width of its own: wide enough for every table, unless COLUMNS says what is behind it.
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
out = Console(width=_WIDTH)
err = Console(stderr=True, highlight=False, width=_WIDTH)


def say(text: str) -> None:
    """One line of progress."""
    err.print(text)


def fail(error: EnginehouseError) -> None:
    """One line for an error, after where there is more to read about it."""
    for note in getattr(error, "__notes__", ()):
        err.print(note, markup=False, soft_wrap=True, style="dim")
    err.print(f"[bold red]{type(error).__name__}[/]: ", end="")
    err.print(str(error), markup=False, soft_wrap=True)
