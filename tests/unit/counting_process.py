"""A process that counts on a node, told by lines on stdin: `COUNT` of requests, or `hang` in the middle of reading."""

from __future__ import annotations

import sys

from enginehouse.contract.tensors import Timing
from enginehouse.counts import ledger, node
from enginehouse.counts.engines import BatchCounts
from enginehouse.counts.requests import Counted


def main(name: str) -> None:
    here = ledger.begin(name)
    counts = Counted(here).of("m", "1")
    batches = BatchCounts("m", "1", "pool")
    counts.begun()
    print("up", flush=True)
    for line in sys.stdin:
        if line.strip() == "hang":
            with node._locked(here.folder):  # type: ignore[arg-type]
                print("hangs", flush=True)
                sys.stdin.readline()
        for _ in range(int(line)):
            counts.succeeded(2_000_000, 10, 20, 3, Timing(1.0, 0.5, 3), 1)
            batches.computed(3, 8, 0.0, 0.0005, 0.0)
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
