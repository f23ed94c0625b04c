"""Files cut into pieces that a narrow door lets through, joined and verified on the other side, and installed there.

    python benchmarks/gpu/cargo.py split FILES PIECES --mib 60
    python benchmarks/gpu/cargo.py join PIECES FILES
    python benchmarks/gpu/cargo.py install PIECES ENVIRONMENT

The files, one after the other, make one stream that is cut every so many MiB. PIECES/cargo.json has the sha256 of every
piece and every file: nothing is written before all pieces are right, and nothing is installed before all files are.
Needs nothing but Python, as the machine on the other side has nothing else yet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import site
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

MANIFEST = "cargo.json"
#: Folders among the files: wheels to install, and a store of models.
WHEELS, STORE = "wheels", "store"
ROOT = Path(__file__).parents[2]
PIECE_MIB = 60
_BLOCK = 1 << 20


class CargoError(Exception):
    """What was carried is not what was packed; the text names the piece or the file."""


def split(source: Path, target: Path, most: int) -> dict[str, Any]:
    """Cut all files below `source` into pieces of at most `most` bytes in the new folder `target`; the manifest."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    if not files:
        raise CargoError(f"{source} has no files to carry")
    target.mkdir(parents=True)
    pieces: list[BinaryIO] = []
    with ExitStack() as stack:
        room = 0
        for file in files:
            with file.open("rb") as content:
                # Never more than the piece has room for.
                while block := content.read(min(room or most, _BLOCK)):
                    if not room:
                        path = target / f"piece-{len(pieces) + 1:02}"
                        pieces.append(stack.enter_context(path.open("wb")))
                        room = most
                    pieces[-1].write(block)
                    room -= len(block)
    manifest = {
        "pieces": [{"path": Path(piece.name).name, **_facts(Path(piece.name))} for piece in pieces],
        "files": [{"path": file.relative_to(source).as_posix(), **_facts(file)} for file in files],
    }
    (target / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def join(pieces: Path, target: Path) -> list[Path]:
    """Write the files into the new folder `target`. Raises CargoError for whatever is missing or not what it was."""
    try:
        manifest = json.loads((pieces / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CargoError(f"{pieces / MANIFEST}: {error}") from None
    for record in manifest["pieces"]:
        _verify(pieces / record["path"], record)
    packed, listed = (sum(record["bytes"] for record in manifest[key]) for key in ("pieces", "files"))
    if packed != listed:
        raise CargoError(f"{pieces / MANIFEST}: the pieces have {packed} bytes, the files {listed}")
    with ExitStack() as stack:
        opened = (stack.enter_context((pieces / record["path"]).open("rb")) for record in manifest["pieces"])
        piece = next(opened)
        for record in manifest["files"]:
            path = target / record["path"]
            if not path.resolve().is_relative_to(target.resolve()):
                raise CargoError(f"{record['path']!r} would be written outside of {target}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                left = record["bytes"]
                while left:
                    block = piece.read(min(left, _BLOCK))
                    if not block:
                        piece = next(opened)
                    file.write(block)
                    left -= len(block)
    for record in manifest["files"]:
        _verify(target / record["path"], record)
    return [target / record["path"] for record in manifest["files"]]


def install(pieces: Path, environment: Path) -> None:
    """Make `environment` of the wheels in `pieces` and this repository; a store that came along is kept."""
    environment.parent.mkdir(parents=True, exist_ok=True)
    # Beside the environment, because wheels take much room and the system's folder for such things may have little.
    with tempfile.TemporaryDirectory(dir=environment.absolute().parent) as folder:
        files = Path(folder)
        joined = join(pieces, files)
        make(environment, [path for path in joined if path.suffix == ".whl"])
        _pip(environment, "--find-links", str(files / WHEELS), "--editable", str(ROOT))
        if (files / STORE).is_dir():
            kept = ROOT / "benchmarks" / ".gpu" / STORE
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(files / STORE, kept)


def make(environment: Path, wheels: Sequence[Path]) -> None:
    """A new virtual environment of `wheels`, with the packages of this Python behind them."""
    shutil.rmtree(environment, ignore_errors=True)
    venv.create(environment)
    (own,) = (environment / "lib").glob("python*/site-packages")
    behind = [Path(path).resolve() for path in site.getsitepackages()]
    (own / "behind.pth").write_text("".join(f"{path}\n" for path in behind))
    for path in behind:
        # ONNX Runtime looks for CUDA's libraries beside itself.
        if (path / "nvidia").is_dir() and not (own / "nvidia").exists():
            (own / "nvidia").symlink_to(path / "nvidia")
    _pip(environment, "--no-compile", *map(str, wheels))


def _pip(environment: Path, *arguments: str) -> None:
    python = str(environment / "bin" / "python")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", *arguments]
    if subprocess.run(command, check=False).returncode:
        raise CargoError(f"pip could not install into {environment}; see above")


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _verify(path: Path, record: dict[str, Any]) -> None:
    if not path.is_file():
        raise CargoError(f"{path} is missing")
    found = _facts(path)
    for fact in ("bytes", "sha256"):
        if found[fact] != record[fact]:
            raise CargoError(f"{path}: its {fact} is {found[fact]}, packed was {record[fact]}; carry it again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("split", "join", "install"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--mib", type=int, default=PIECE_MIB, help="largest piece of a split (%(default)s)")
    given = parser.parse_args()
    try:
        if given.what == "split":
            found = split(given.source, given.target, given.mib << 20)["pieces"]
            print(f"{len(found)} pieces, {sum(one['bytes'] for one in found) / 2**20:.1f} MiB")
        elif given.what == "join":
            print(f"{len(join(given.source, given.target))} files, all as they were packed")
        else:
            install(given.source, given.target)
    except CargoError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
