"""Files go through a narrow door in pieces: what comes out is what went in, or nothing is used."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from benchmarks.gpu.cargo import MANIFEST, CargoError, join, make, split

MOST = 1_000_000


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Files of many sizes, among them an empty one and some larger than a piece, in folders."""
    rng = np.random.default_rng(3)
    folder = tmp_path / "files"
    for name, size in {"a": 0, "b": 1, "wheels/c.whl": 3 * MOST, "wheels/d": MOST - 1, "e/f/g": 2 * MOST + 7}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.bytes(size))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("most", [MOST, MOST + 1, 700_001, 50 * MOST])
def test_what_is_joined_is_what_was_split(files: Path, tmp_path: Path, most: int) -> None:
    manifest = split(files, tmp_path / "pieces", most)
    sizes = [(tmp_path / "pieces" / piece["path"]).stat().st_size for piece in manifest["pieces"]]
    assert sizes[:-1] == [most] * (len(sizes) - 1), "all but the last piece are full"
    assert sum(sizes) == sum(len(one) for one in content(files).values())
    assert sorted(join(tmp_path / "pieces", tmp_path / "joined")) == sorted(
        tmp_path / "joined" / name for name in content(files)
    )
    assert content(tmp_path / "joined") == content(files)


@pytest.mark.parametrize("at", [0, -1])
def test_a_damaged_piece_is_named_and_nothing_is_written(files: Path, tmp_path: Path, at: int) -> None:
    manifest = split(files, tmp_path / "pieces", MOST)
    piece = tmp_path / "pieces" / manifest["pieces"][at]["path"]
    damaged = bytearray(piece.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    piece.write_bytes(damaged)
    with pytest.raises(CargoError, match=f"{piece.name}: its sha256 is .* carry it again"):
        join(tmp_path / "pieces", tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_a_piece_that_was_cut_short_or_left_behind_is_named(files: Path, tmp_path: Path) -> None:
    split(files, tmp_path / "pieces", MOST)
    piece = tmp_path / "pieces" / "piece-02"
    piece.write_bytes(piece.read_bytes()[:-1])
    with pytest.raises(CargoError, match=f"piece-02: its bytes is {MOST - 1}"):
        join(tmp_path / "pieces", tmp_path / "joined")
    piece.unlink()
    with pytest.raises(CargoError, match="piece-02 is missing"):
        join(tmp_path / "pieces", tmp_path / "joined")


def test_a_file_that_is_not_what_it_was_is_named_though_the_pieces_are(files: Path, tmp_path: Path) -> None:
    manifest = split(files, tmp_path / "pieces", MOST)
    manifest["files"][3]["sha256"] = "0" * 64
    (tmp_path / "pieces" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CargoError, match=f"{manifest['files'][3]['path']}: its sha256"):
        join(tmp_path / "pieces", tmp_path / "joined")


def test_no_file_is_written_outside_of_the_folder(files: Path, tmp_path: Path) -> None:
    manifest = split(files, tmp_path / "pieces", MOST)
    manifest["files"][0]["path"] = "../outside"
    (tmp_path / "pieces" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CargoError, match=r"'\.\./outside' would be written outside"):
        join(tmp_path / "pieces", tmp_path / "joined")
    assert not (tmp_path / "outside").exists()


def test_nothing_to_carry_is_said(tmp_path: Path) -> None:
    with pytest.raises(CargoError, match="has no files"):
        split(tmp_path, tmp_path / "pieces", MOST)


def wheel(folder: Path, name: str, source: str) -> Path:
    """A real wheel of one module."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {
        f"{name}.py": source,
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for entry, text in entries.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{entry},sha256={digest},{len(text.encode())}\n"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, text in {**entries, f"{name}-1.0.dist-info/RECORD": record}.items():
            archive.writestr(entry, text)
    return path


def test_wheels_that_were_carried_are_installed_before_what_is_behind_them(tmp_path: Path) -> None:
    wheel(tmp_path / "files" / "wheels", "carried", "ANSWER = 42\n")
    # The environment behind has one of this name: the carried one goes first.
    wheel(tmp_path / "files" / "wheels", "orjson", "ANSWER = 'ours'\n")
    split(tmp_path / "files", tmp_path / "pieces", 200)
    wheels = join(tmp_path / "pieces", tmp_path / "joined")
    make(tmp_path / "environment", wheels)
    code = "import carried, orjson, numpy; print(carried.ANSWER, orjson.ANSWER, numpy.__name__)"
    python = tmp_path / "environment" / "bin" / "python"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["42", "ours", "numpy"]
