"""Hints: deadline, priority and restrictions that a caller may add to a request, the same over every face."""

from __future__ import annotations

import importlib
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, cast, get_args

from enginehouse.contract.config import FIRST, LAST, USUAL
from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.manifest import Precision

#: Prefix of a hint's name where it is an HTTP header.
PREFIX = "enginehouse-"
_PREFIX = PREFIX.encode()
#: What may be behind the prefix.
_NAMES = ("deadline-ms", "priority", "backend", "min-precision")
#: The parameters of a request that are hints, also without the prefix; `timeout` is Triton's.
_PARAMETERS = frozenset({*_NAMES, "timeout"})


class HintsByName(TypedDict, total=False):
    """The arguments of `Hints`, where they are passed on by name."""

    deadline_s: float | None
    priority: int
    backend: str | None
    min_precision: Precision


def _is_a(kind: type, value: object) -> bool:
    # True is a number to Python.
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Hints:
    """What a request asks beyond its answer. Raises InvalidInput.

    `deadline_s`: seconds after which the answer is of no use; None for the server's default. `priority`: 1 (first) to 9
    (last). `backend`: the only one that may answer. `min_precision`: excludes backends that are less exact.
    """

    deadline_s: float | None = None
    priority: int = USUAL
    backend: str | None = None
    min_precision: Precision = "int8"

    def __post_init__(self) -> None:
        if self.deadline_s is not None and not _is_a(numbers.Real, self.deadline_s):
            raise InvalidInput(f"deadline_s {self.deadline_s!r} is not a number of seconds")
        if not _is_a(numbers.Integral, self.priority):
            raise InvalidInput(f"priority {self.priority!r} is not one of {FIRST} (first) to {LAST} (last)")
        if self.backend is not None and not isinstance(self.backend, str):
            raise InvalidInput(f"backend {self.backend!r} is not the name of one")
        if self.deadline_s is not None and not math.isfinite(self.deadline_s):
            raise InvalidInput(f"deadline of {self.deadline_s} s is not a time; leave it out for the default")
        if not FIRST <= self.priority <= LAST:
            raise InvalidInput(f"priority {self.priority} is not one of {FIRST} (first) to {LAST} (last)")
        if self.min_precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise InvalidInput(f"min-precision {self.min_precision!r} is not one of {known}")

    @classmethod
    def named(cls, given: Mapping[str, Any]) -> Hints:
        """From the arguments of a Python caller. Raises InvalidInput, also for a name that is no hint."""
        for name, value in given.items():
            if name in HintsByName.__annotations__:
                continue
            told = "deadline_s=SECONDS, priority, backend and min_precision"
            if name == "deadline_ms" and _is_a(numbers.Real, value):
                told += f" (deadline_ms={value!r} is deadline_s={value / 1e3:g})"
            raise InvalidInput(f"{name!r} is no hint; the hints are {told}")
        return cls(**given)

    @classmethod
    def of(cls, headers: Mapping[str, str], parameters: Mapping[str, Any]) -> Hints:
        """From what `headers_of` found, else from the parameters of an inference request, with or without the prefix.

        Triton's `timeout` in microseconds is a deadline too. Raises InvalidInput, also for a prefixed name that is no
        hint: what was misspelt would have no effect.
        """
        prefixed = {name: value for name, value in parameters.items() if name.startswith(PREFIX)}
        if not headers and not prefixed and _PARAMETERS.isdisjoint(parameters):
            return NO_HINTS
        for name in (*headers, *prefixed):
            if name.removeprefix(PREFIX) not in _NAMES:
                known = ", ".join(PREFIX + each for each in _NAMES)
                raise InvalidInput(f"{name!r} is no hint; the hints are {known}")
        parameters = {**parameters, **{name.removeprefix(PREFIX): value for name, value in prefixed.items()}}
        deadline_s = _number("deadline-ms", headers.get(PREFIX + "deadline-ms"), parameters, 1e3)
        if deadline_s is None:
            # Triton reads 0 as no deadline, and as its usual priority below.
            deadline_s = _number("timeout", None, _some("timeout", parameters), 1e6)
        priority = _number("priority", headers.get(PREFIX + "priority"), parameters, 1)
        if priority is not None and not priority.is_integer():
            raise InvalidInput(f"priority {priority} is not one of {FIRST} (first) to {LAST} (last)")
        return cls(
            deadline_s,
            int(priority) if priority else USUAL,
            _text("backend", headers.get(PREFIX + "backend"), parameters),
            cast(Precision, _text("min-precision", headers.get(PREFIX + "min-precision"), parameters) or "int8"),
        )


NO_HINTS = Hints()


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The hints among a request's raw headers, as ASGI has them; in one pass, as this runs per request."""
    return {name.decode(): value.decode("latin-1") for name, value in raw if name.startswith(_PREFIX)}


def _some(name: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """That parameter, unless it is 0."""
    value = parameters.get(name)
    return {} if value == 0 and not isinstance(value, bool) else {name: value}


def _number(name: str, header: str | None, parameters: Mapping[str, Any], unit: float) -> float | None:
    given = header or parameters.get(name)
    if given is None:
        return None
    if isinstance(given, bool):
        raise InvalidInput(f"{name} {str(given).lower()} is not a number")
    try:
        # Python reads 1_000 as a number.
        if isinstance(given, str) and "_" in given:
            raise ValueError
        return float(given) / unit
    except (TypeError, ValueError):
        raise InvalidInput(f"{name} {given!r} is not a number") from None


def _text(name: str, header: str | None, parameters: Mapping[str, Any]) -> str | None:
    given = header or parameters.get(name)
    if given is not None and not isinstance(given, str):
        raise InvalidInput(f"parameter {name!r} is {given!r}; it must be a string")
    return given


# For one release they are pickled by the path that they had, which clients and clusters of the release before know.
# That module has to be loaded then: cloudpickle would send the class itself instead, which no router can load.
Hints.__module__ = "enginehouse.hints"
importlib.import_module(Hints.__module__)
