"""Which extents decide what a torch module does: an exported model has one branch, that of the example.

"Pad where the length is odd" is no part of an ONNX graph unless it is written without a branch. torch knows by which
conditions it went, and where they do not hold the exported model is compared with the module.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

#: What the rows of a batch are called among extents; no axis has such a name.
ROWS = "the rows of a batch"

#: How torch writes the extent of an input: by the argument of `forward`, and by its place among several of one name.
_EXTENT = re.compile(r"L\['(\w+)'\](?:\[(\d+)\])?\.size\(\)\[(\d+)\]")
_VIOLATED = re.compile(r"satisfy the generated guard (.+?)\.?$", re.MULTILINE)
_EQUAL = re.compile(r"The values of .+? = (L\[.+?) and .+? = (L\[.+?) must always be equal")
#: A branch for what is no multiple, which is padded mostly.
_MULTIPLE = re.compile(r"\((\w[\w. ]*) % (\d+)\) [!=]= 0")
#: Extents of one dimension that a condition is evaluated at, and of all together; how many of those are asked.
_ALONE, _TOGETHER, _ASKED = 2048, 2048, 3
SEED = 0


@dataclass(frozen=True, slots=True)
class Branch:
    """A condition under which the exported branch is the module's.

    `code` is of Python, with e0, e1 ... for the extents of `names`; `said` is the same for people.
    """

    code: str
    said: str
    names: tuple[str, ...]
    _compiled: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", compile(self.code, "<condition>", "eval"))

    def holds(self, extents: Mapping[str, int]) -> bool:
        """Whether it holds at these `extents`, by name; what cannot be evaluated does."""
        known = {f"e{at}": extents[name] for at, name in enumerate(self.names)}
        try:
            return bool(eval(self._compiled, {"__builtins__": {}, "min": min, "max": max, "math": math}, known))
        except Exception:
            # torch may write what Python does not know.
            return True

    def witnesses(self, ranges: Mapping[str, tuple[int, int]], usual: Mapping[str, int]) -> list[dict[str, int]]:
        """A few extents at which it does not hold, within `ranges` and else as is `usual`; empty where there are none.

        With one dimension apart from the usual ones where that is enough.
        """
        found: list[dict[str, int]] = []
        for name in self.names:
            low, high = ranges[name]
            wrong = [each for size in _sizes(low, high) if not self.holds({**usual, **(each := {name: size})})]
            found += [wrong[at] for at in sorted({0, len(wrong) // 2, len(wrong) - 1})] if wrong else []
        if found or len(self.names) < 2:
            return found
        generator = np.random.default_rng(SEED)
        drawn = (
            {name: int(generator.integers(*ranges[name], endpoint=True)) for name in self.names}
            for _ in range(_TOGETHER)
        )
        return [each for each in drawn if not self.holds({**usual, **each})][:_ASKED]


def branches_of(
    module: torch.nn.Module, examples: Sequence[torch.Tensor], shapes: Any, names: Mapping[tuple[int, int], str]
) -> tuple[Branch, ...]:
    """The conditions on extents by which `module` decides when it is captured as the exporter does it.

    `names` are the free dimensions, by place of the input and dimension; `shapes` is what torch takes for them. Empty
    for a module that cannot be captured, of which the exporter says why.
    """
    # Here alone: it takes a second to import, in each step of a build.
    import torch
    from torch.export import _patches

    try:
        # As the exporter does it: an extent of 1 is taken for any other, and the steps of a recurrence are a loop.
        with (
            torch.fx.experimental._config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
            _patches.register_lstm_while_loop_decomposition(),
            _patches.register_gru_while_loop_decomposition(),
        ):
            program = torch.export.export(module, tuple(examples), dynamic_shapes=shapes)
    except Exception as error:
        text = str(error)
        conditions = [*_VIOLATED.findall(text), *(f"{one} == {other}" for one, other in _EQUAL.findall(text))]
    else:
        conditions = list(getattr(program, "_guards_code", ()))
    arguments = list(inspect.signature(module.forward).parameters)
    found = (_branch(condition, arguments, names) for condition in dict.fromkeys(conditions))
    return tuple(branch for branch in found if branch is not None)


def broken(branches: Iterable[Branch], extents: Mapping[str, int]) -> Iterator[Branch]:
    """Those that do not hold at the `extents`."""
    return (branch for branch in branches if not branch.holds(extents))


def remedy(broken: Sequence[Branch], sizes: Iterable[str]) -> str:
    """What to do about an exported model that is wrong at other `sizes`, where the `broken` ones do not hold."""
    names = dict.fromkeys(chain(sizes, *(branch.names for branch in broken)))
    options = " ".join("--max-batch ROWS" if name == ROWS else f"--axis {name}=MIN:OPT:MAX" for name in names)
    limited = f"limit requests to what it is right for with {options}"
    if not broken:
        return f"; compute from x.shape, without a branch, what depends on the extents, or {limited}"
    return (
        "; forward takes another branch there, and an exported model has but one: that where "
        f"{' and '.join(branch.said for branch in broken)}. {_rewritten(broken)}, or {limited}"
    )


def _rewritten(broken: Iterable[Branch]) -> str:
    """How to do without the branches, as far as what they ask says what they are for."""
    asked = [branch for branch in broken if branch.names != (ROWS,)]
    if not asked:
        return "Compute each row alike, however many share a call"
    multiple = next(filter(None, (_MULTIPLE.search(branch.said) for branch in asked)), None)
    if multiple is None:
        return "Write it without a branch, for all extents alike (of values, torch.where chooses)"
    name, step = multiple.groups()
    return (
        f"Write it without a branch (what is missing to a multiple of {step} is -n % {step} of an extent n, here "
        f"{name}: 0 where nothing is, and F.pad by 0 pads nothing)"
    )


def _branch(condition: str, arguments: Sequence[str], names: Mapping[tuple[int, int], str]) -> Branch | None:
    places: dict[str, str] = {}
    for name, at, dim in _EXTENT.findall(condition):
        first = 0 if name == "flat_args" else arguments.index(name) if name in arguments else len(names)
        place = first + int(at or 0), int(dim)
        if place not in names:
            return None
        places[f"L['{name}']{f'[{at}]' if at else ''}.size()[{dim}]"] = names[place]
    order = tuple(dict.fromkeys(places.values()))
    code = said = condition
    for text, name in places.items():
        code, said = code.replace(text, f"e{order.index(name)}"), said.replace(text, name)
    if "L[" in code:
        return None
    try:
        return Branch(code, said, order)
    except SyntaxError:
        return None


def _sizes(low: int, high: int) -> Iterable[int]:
    if high - low <= _ALONE:
        return range(low, high + 1)
    some = np.random.default_rng(SEED).integers(low, high, _ALONE // 2)
    return [*range(low, low + _ALONE // 2), *sorted({int(size) for size in some}), high]
