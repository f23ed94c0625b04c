"""How every command talks: progress and errors on stderr, results on stdout."""

from __future__ import annotations

from rich.console import Console

from enginehouse.errors import EnginehouseError

out = Console()
err = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line of progress."""
    err.print(text)


def fail(error: EnginehouseError) -> None:
    """One line for an error."""
    err.print(f"[bold red]{type(error).__name__}[/]: ", end="")
    err.print(str(error), markup=False, soft_wrap=True)
