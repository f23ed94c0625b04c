"""One figure that cannot be had, one that fails, one that is found; then the part itself fails."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.lab import Lab, Row, tried


def run(lab: Lab) -> Iterator[Row]:
    def needs_gpu() -> Row:
        lab.need_gpu()
        return {"ms": 1}

    yield tried({"figure": "a"}, needs_gpu)
    yield tried({"figure": "b"}, lambda: {"ms": 1 / 0})
    yield tried({"figure": "c"}, lambda: {"ms": 2.5})
    raise ValueError("no more")
