"""Gathers what a machine without a network needs to run `scripts/gpu-check`, in pieces, in a folder git ignores.

    python -m benchmarks.gpu.wheels benchmarks/.gpu/cargo [--store benchmarks/.gpu/store]

That machine has Python, pip, CUDA's libraries, and torch with what belongs to it. It gets ONNX Runtime for CUDA, and
what serving and the tests need, in the versions of constraints.txt. Downloads are pip's, from the index it is set up
with.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.gpu import cargo

_CONSTRAINTS = cargo.ROOT / "constraints.txt"
#: Beside what serving always needs: for the tests, for TensorRT's names, and to install the repository itself.
_BESIDE = (
    "pytest",
    "pytest-asyncio",
    "hypothesis",
    "httpx",
    "aiohttp",
    "tensorrt-cu13-bindings",
    "hatchling",
    "editables",
)
#: pip takes only the platforms that it is given, each for itself.
_GLIBC = (28, 27, 24, 17, 12, 5)


def requirements() -> list[str]:
    """What pip is asked for; pip finds the rest."""
    project = tomllib.loads((cargo.ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], f"onnxruntime-gpu=={_pinned('onnxruntime')}", "cuda-bindings", *_BESIDE]


def download(folder: Path, python: str) -> None:
    """All wheels for that version of Python on x86-64 Linux into `folder`."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in _GLIBC]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--progress-bar", "off", "-d", str(folder)]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command += [word for platform in platforms for word in ("--platform", platform)]
    subprocess.run([*command, "-c", str(_CONSTRAINTS), *requirements()], check=True)


def main(
    target: Annotated[Path, typer.Argument(help="New folder; its `pieces` are what is carried.")],
    store: Annotated[Path | None, typer.Option(help="Store of models to carry along.")] = None,
    python: Annotated[str, typer.Option(help="Version of Python there.")] = "3.12",
    mib: Annotated[int, typer.Option(min=1, help="Largest piece.")] = cargo.PIECE_MIB,
) -> None:
    """Download, copy, cut into pieces, and join them once to see that they are right."""
    files = target / "files"
    files.mkdir(parents=True)
    download(files / cargo.WHEELS, python)
    if store is not None:
        shutil.copytree(store, files / cargo.STORE, ignore=shutil.ignore_patterns(".*"))
    pieces = cargo.split(files, target / "pieces", mib << 20)["pieces"]
    cargo.join(target / "pieces", target / "joined")
    shutil.rmtree(target / "joined")
    total = sum(piece["bytes"] for piece in pieces) / 2**20
    largest = sorted(files.rglob("*"), key=lambda file: -file.stat().st_size)[:5]
    for file in largest:
        print(f"{file.stat().st_size / 2**20:8.1f} MiB  {file.relative_to(files)}")
    print(f"{len(pieces)} pieces of at most {mib} MiB in {target / 'pieces'}, {total:.1f} MiB, every digest right")


def _pinned(name: str) -> str:
    for line in _CONSTRAINTS.read_text().splitlines():
        if line.startswith(f"{name}=="):
            return line.partition("==")[2]
    raise SystemExit(f"{_CONSTRAINTS} does not pin {name}")


if __name__ == "__main__":
    typer.run(main)
