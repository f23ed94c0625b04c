"""Figures as short text: three significant digits, and the unit that keeps the number small."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

TIMES = "\N{MULTIPLICATION SIGN}"


def number(value: float) -> str:
    """Three significant digits, thousands apart: 0.0412, 4.12, 1,240."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".removesuffix(".")


def magnitude(value: float) -> str:
    """A round value on a scale: 0.05, 5,000, 20k, 1M."""
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:,g}"


def milliseconds(value: float) -> str:
    """A time of a call with its unit: 0.412 ms, 1,240 ms."""
    return f"{number(value)} ms"


def seconds(value: float) -> str:
    """A time that a person waits: 0.04 s, 3.1 s, 2 min 05 s."""
    if value >= 60:
        return f"{int(value) // 60} min {int(value) % 60:02d} s"
    return f"{value:.1f} s" if value >= 0.1 or value == 0 else f"{value:.2f} s"


def small(value: float) -> str:
    """A distance over many magnitudes: 3.1e-4."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def ratio(value: float) -> str:
    """How many times as fast, with the sign for times: 2.10 or 29."""
    return f"{value:.2f}{TIMES}" if value < 10 else f"{value:.0f}{TIMES}"


def share(value: float) -> str:
    """A share in percent: 99.4 %; 100 % only for all of them."""
    rounded = f"{value:.1%}"
    if value == 1:
        return "100 %"
    return (rounded if rounded != "100.0%" else f"{value:.3%}").replace("%", " %")


def size(value: int) -> str:
    """Bytes as B, KiB, MiB or GiB."""
    if value < 2**10:
        return f"{value} B"
    if value < 2**20:
        return f"{number(value / 2**10)} KiB"
    return f"{number(value / 2**20)} MiB" if value < 2**30 else f"{number(value / 2**30)} GiB"


def plain(value: Any) -> str:
    """A value of a recipe: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def local(path: str) -> str:
    """A link to a file of the bundle, which cannot lead anywhere else, whatever `path` says."""
    return "./" + quote(path)


FILTERS: Mapping[str, Callable[..., str]] = {
    "number": number,
    "ms": milliseconds,
    "seconds": seconds,
    "small": small,
    "ratio": ratio,
    "share": share,
    "bytes": size,
    "plain": plain,
    "local": local,
}
