"""What computes in a scoring job: the one seam between the rows (reading, casting, writing) and what answers them.

There are two kinds: through the running application's routers (`ways.via_serve`) and by an engine in the scorer's own
process (`ways.via_engines`). A job may have several pools of either, each with the batch size that suits it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from enginehouse.contract.tensors import Tensors


@dataclass(frozen=True, slots=True)
class Answered:
    """Outputs of one call, one row each row that was asked; `backend` and `version` say who computed them."""

    outputs: Tensors
    backend: str
    version: str


class Answering(Protocol):
    """Answers rows. Made inside a scorer, by the `ScorerPool.answering` of its pool; used by one event loop."""

    @property
    def batch_rows(self) -> int:
        """Rows of one call at which this computes best now; 1 for a model without a batch."""

    @property
    def in_flight(self) -> int:
        """Calls at a time that keep it busy."""

    async def answer(self, inputs: Tensors) -> Answered:
        """The outputs for `inputs`, which have passed `Signature.check`.

        Inputs have a batch dimension exactly if the signature is `batched`. Raises RequestError (or another error of
        which `fault.is_of_content` holds) when these rows are refused: the scorer then asks for fewer at once, to find
        which. What may pass (`retryable`) is tried again in here, with a bound; any error that still leaves ends the
        unit, which is then handed out again.
        """

    def close(self) -> None:
        """Free what it holds; it is not asked again."""


@dataclass(frozen=True, slots=True)
class ScorerPool:
    """Scorers of one kind, `least` to `most` of them, that pull units from the job's one stream.

    `actor_options` are those of the Ray actor (num_cpus, num_gpus, resources, label_selector ...). `answering` is
    called once in each actor, has to be picklable, and may take `load_s` seconds. `nice`: how far the process
    steps back for others on its machine, from 0 to 19; at 19 it computes only where a core would be idle otherwise.
    """

    name: str
    answering: Callable[[], Answering]
    least: int = 1
    most: int = 1
    actor_options: dict[str, Any] = field(default_factory=dict)
    load_s: float = 120.0
    nice: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most or self.most < 1:
            raise ValueError(f"pool {self.name!r} of {self.least} to {self.most} scorers")
