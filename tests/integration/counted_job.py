"""A scoring job as a process of its own, whose scorers write down what they computed.

    python -m tests.integration.counted_job ADDRESS INPUT OUTPUT LOG

`y` is 2 `x`, and `x` the number of the row. LOG gets a file for each scorer, with a line for each call that was
computed: its rows. There is a pool on each of the two labels of nodes.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from enginehouse.cluster import connect
from enginehouse.contract.errors import EnginehouseError
from enginehouse.contract.tensors import Signature, Tensors, TensorSpec
from enginehouse.faces.scoring.answering import Answered

FLAT = (TensorSpec("x", np.dtype(np.float64), (None,)),), (TensorSpec("y", np.dtype(np.float64), (None,)),)
#: Rows of a unit and of a call, and seconds that computing a row takes.
UNIT, CALL, ROW_S = 100, 10, 0.002


@dataclass(frozen=True)
class CountedOf:
    """Makes a `Counted` when called; picklable."""

    log: Path

    def __call__(self) -> Counted:
        return Counted(self.log)


class Counted:
    """`Answering` that takes ROW_S a row, one call after the other."""

    batch_rows, in_flight = CALL, 2

    def __init__(self, log: Path) -> None:
        self._log, self._one = log / str(os.getpid()), asyncio.Lock()

    async def answer(self, inputs: Tensors) -> Answered:
        async with self._one:
            await asyncio.sleep(ROW_S * len(inputs["x"]))
            with self._log.open("a") as log:
                log.write(" ".join(str(int(row)) for row in inputs["x"]) + "\n")
        return Answered({"y": inputs["x"] * 2}, "numpy", "1")

    def close(self) -> None:
        """Nothing."""


def computed(log: Path) -> Counter[int]:
    """How often each row was computed."""
    # The last line of one that was killed may be cut short; it was computed all the same.
    return Counter(int(row) for path in log.iterdir() for row in path.read_text().split())


def main(address: str, source: str, target: str, log: str) -> None:
    """Run the job."""
    with connect.connected(address):
        from enginehouse.contract.config import ACCELERATOR_LABEL
        from enginehouse.faces.scoring import job
        from enginehouse.faces.scoring.answering import ScorerPool
        from enginehouse.faces.scoring.job import Asked, Scored
        from enginehouse.faces.scoring.readers import Limits

        pools = [
            ScorerPool(
                label,
                CountedOf(Path(log)),
                actor_options={"num_cpus": 0.5, "label_selector": {ACCELERATOR_LABEL: label}},
            )
            for label in ("cpu", "gpu")
        ]
        made = job.prepared(Asked(source, target), Scored("net", "1", "0", Signature(*FLAT)), Limits(UNIT))
        try:
            job.run(made, pools, here=False)
        except EnginehouseError as error:
            sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
