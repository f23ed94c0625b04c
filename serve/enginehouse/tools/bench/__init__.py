"""Benchmarks of a live server: load, values, CPU time, and how far all that is from the engine's own limit.

What measures takes a URL, a body and processes, and knows no Ray: it measures any HTTP server. Only `live` looks at
the cluster.

| in the order of reading | |
|---|---|
| `figure`, `verdict` | what one measurement found, and whether it counts |
| `load`, `generator` | closed loops by wrk; open loops in Python |
| `usage` | who used the CPU |
| `limit` | what the same engines reach in processes of their own |
| `answers`, `samples` | what is sent, and what has to come back |
| `scenarios`, `report` | the whole run, and how it is shown |
"""

from __future__ import annotations

from enginehouse.tools.bench.figure import Figure, Latency
from enginehouse.tools.bench.load import closed_loop
from enginehouse.tools.bench.usage import Usage
from enginehouse.tools.bench.verdict import Rules, Verdict, judge

__all__ = ["Figure", "Latency", "Rules", "Usage", "Verdict", "closed_loop", "judge"]
