"""Values of options that several commands take."""

from __future__ import annotations

import math

import typer


def seconds(value: float | None) -> float | None:
    """Refuse what is no time to wait for (NaN, infinity, 0 and less), before anything is done."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value:g} is not a time; give seconds above 0")
    return value


def grace(value: float) -> float:
    """As `seconds`, but none at all may be left."""
    if value:
        seconds(value)
    return value
