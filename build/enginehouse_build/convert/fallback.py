"""Which nodes stay in fp32: the fewest of those that lose most, with which a conversion passes."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence

from enginehouse.contract.errors import ConversionFailed

#: Of a model's multiplications at least this share has to be in a precision for the model to be called after it: with
#: less it costs accuracy and hardly saves time.
LEAST_SHARE = 0.5
#: How often the loss of single nodes is looked at, at most: each is a conversion and a few requests.
_RUNS = 64
#: Nodes that a remark lists, and that are tried one by one for whether they need to stay, at most.
_NAMED = 8


class NothingHelps(Exception):
    """The answers of a conversion leave the limits, whatever stays in fp32; `convert` makes ConversionFailed of it."""


def fewest_left(
    attempt: Callable[[Sequence[str]], str],
    names: Callable[[], Sequence[str]],
    loss: Callable[[Sequence[str]], float],
    macs: Mapping[str, int] | None = None,
    budget: Callable[[], float] = lambda: 0.0,
) -> tuple[str, ...]:
    """Names of the nodes that have to stay in fp32 for `attempt(names)` to find no fault; none where none has to.

    Where some have to, `names` are those there are, in the order of the model, and `loss` tells what nodes cost if
    nothing else is converted, in any unit. `macs` are the multiplications of the nodes that have any, and `budget` is
    how many may stay in all. What the last attempt made is what is returned. Raises NothingHelps with the fault
    where nothing within the budget helps.
    """
    fault = attempt(())
    if not fault:
        return ()
    ranked = _affordable(_losses(names(), loss), macs or {}, budget())
    failing, tried = 0, min(1, len(ranked))
    while tried and (fault := attempt(ranked[:tried])):
        failing, tried = tried, min(2 * tried, len(ranked)) if tried < len(ranked) else 0
    if not tried:
        few = (
            f"also with {_many(len(ranked))} left in fp32, as many as may be" if ranked else "and none may stay in fp32"
        )
        raise NothingHelps(f"the answers are too far off, {few}: {fault}")
    passing = tried
    while passing - failing > 1:
        tried = (passing + failing) // 2
        failing, passing = (tried, passing) if attempt(ranked[:tried]) else (failing, tried)
    left = _needed(attempt, ranked[:passing])
    attempt(left)
    return tuple(left)


def _needed(attempt: Callable[[Sequence[str]], str], left: Sequence[str]) -> Sequence[str]:
    """Those of a few without which there is a fault: what loses most by itself may be lost on what follows."""
    for name in left[:-1] if len(left) <= _NAMED else ():
        others = [other for other in left if other != name]
        left = left if attempt(others) else others
    return left


def check_share(converted: float, precision: str) -> None:
    """Raises ConversionFailed when less than `LEAST_SHARE` of the multiplications is `converted`."""
    if converted < LEAST_SHARE:
        raise ConversionFailed(
            f"not worth it: {converted:.1%} of its multiplications would be in {precision}, and with less than "
            f"{LEAST_SHARE:.0%} it is not called so; the rest are operators that stay in fp32"
        )


def remark(names: Sequence[str], precision: str) -> str:
    """Which nodes were left in fp32, or ""."""
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    listed = ", ".join(repr(name) for name in names[:_NAMED])
    return f"kept in fp32, because {precision} loses too much there: {_many(len(names))}, {listed}{more}"


def _many(nodes: int) -> str:
    return "1 node" if nodes == 1 else f"{nodes} nodes"


def _losses(names: Sequence[str], loss: Callable[[Sequence[str]], float]) -> Mapping[str, float]:
    """The loss of each node, or of it and its neighbours where there are too many to try one by one."""
    size = max(1, math.ceil(len(names) / _RUNS))
    found: dict[str, float] = {}
    for start in range(0, len(names), size):
        group = names[start : start + size]
        try:
            cost = loss(group)
        except Exception:
            # What cannot even be converted by itself is left first.
            traceback.print_exc()
            cost = math.inf
        found |= dict.fromkeys(group, cost)
    return found


def _affordable(losses: Mapping[str, float], macs: Mapping[str, int], budget: float) -> list[str]:
    """The nodes, those that lose most first, whose multiplications fit the budget together; never all of them."""
    found, spent = [], 0.0
    for name in sorted(losses, key=lambda name: -losses[name]):
        if spent + macs.get(name, 0) <= budget:
            found.append(name)
            spent += macs.get(name, 0)
    return found[: len(losses) - 1]
