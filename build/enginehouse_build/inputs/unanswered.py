"""A request whose values samples do not have, before anybody was asked what the answer is."""

from __future__ import annotations

from typing import NamedTuple

from enginehouse.contract.bounds import InputBound
from enginehouse.contract.tensors import Tensors


class Unanswered(NamedTuple):
    """A probe whose answer is not known yet; see `enginehouse.contract.probes.Probe`."""

    names: tuple[str, ...]
    within: InputBound
    values: str
    request: Tensors
    inside: bool = False
    scaled: bool = False
    every: bool = False
