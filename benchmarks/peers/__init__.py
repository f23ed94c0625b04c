"""The servers that enginehouse is compared with, each in a folder of its own with an environment of its own.

A folder has `requirements.txt` and `server.py`, written from that project's documentation, whose docstring says how it
is tuned. The server is told by its environment (see `shared/peer.py`): MODEL, PORT, WORKERS, THREADS, MAX_BATCH.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from enginehouse.contract.tensors import Tensors
from enginehouse.tools.bench import answers

HERE = Path(__file__).parent


class NotRun(Exception):
    """A contestant cannot take part; says why."""


class NotStarted(NotRun):
    """Its process ended before it answered."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all contestants get: an artifact's file, `workers` engines of `threads` threads, and batches so large."""

    store: str
    model: str
    artifact: str
    file: Path
    workers: int
    threads: int
    max_batch: int
    numerics: str = "full"

    def environment(self, port: int) -> dict[str, str]:
        """As `shared/peer.py` reads it."""
        return {
            "MODEL": str(self.file),
            "PORT": str(port),
            "WORKERS": str(self.workers),
            "THREADS": str(self.threads),
            "MAX_BATCH": str(self.max_batch),
        }


@dataclass(frozen=True, slots=True)
class Peer:
    """One of the folders here. `path` is where it takes rows; `v2` says whether as Open Inference Protocol bodies."""

    name: str
    package: str
    path: str
    v2: bool = False
    needs: str = ""

    def command(self, python: Path, conditions: Conditions, port: int) -> list[str]:
        """How it is started."""
        return [str(python), str(HERE / self.name / "server.py")]

    def route(self, conditions: Conditions) -> str:
        """The path of its URL."""
        return self.path


@dataclass(frozen=True, slots=True)
class Enginehouse:
    """enginehouse itself, in one shape: arguments of `enginehouse serve`, which may name {workers} and {threads}."""

    name: str
    arguments: str
    package: str = "enginehouse"
    v2: bool = True
    needs: str = ""

    def command(self, python: Path, conditions: Conditions, port: int) -> list[str]:
        """How it is started."""
        told = self.arguments.format(workers=conditions.workers, threads=conditions.threads)
        serve = [str(python), "-m", "enginehouse", "serve", conditions.store, "--models", conditions.model]
        return [*serve, "--port", str(port), "--numerics", conditions.numerics, *shlex.split(told)]

    def route(self, conditions: Conditions) -> str:
        """The path of its URL."""
        return f"/v2/models/{conditions.model}/infer"


Contestant = Peer | Enginehouse

PEERS = (
    Peer("fastapi", "fastapi", "/infer"),
    Peer("pytriton", "nvidia-pytriton", "/v2/models/model/infer", v2=True),
    Peer("torchserve", "torchserve", "/predictions/model", needs="java"),
    Peer("litserve", "litserve", "/predict"),
    Peer("ray_serve", "ray", "/"),
)


def encode(contestant: Contestant, row: Tensors) -> tuple[bytes, dict[str, str]]:
    """Body and headers that ask `contestant` about one row: its bytes, in a v2 body if that is what it takes."""
    if contestant.v2:
        return answers.encode(row)
    (array,) = row.values()
    return array.tobytes(), {"Content-Type": "application/octet-stream"}


def decode(contestant: Contestant, content: bytes, headers: Mapping[str, str], like: Tensors) -> Tensors:
    """The answer by name; of raw bytes, in the shape of `like`. Raises ValueError or InferenceFailed for others."""
    if contestant.v2:
        return answers.decode(content, headers)
    ((name, array),) = like.items()
    return {name: np.frombuffer(content, array.dtype).reshape(array.shape)}
