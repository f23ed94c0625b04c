"""INPUT -> the files of a job, each with its format and with what tells whether it is still the same one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse.contract.errors import InvalidInput, StoreUnavailable
from enginehouse.contract.magic import LOOKED_AT, recognised
from enginehouse.faces.scoring.storage import file_system, is_local

#: Formats by the ends of names.
FORMATS = {
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".csv",), "csv"),
    **dict.fromkeys((".npz",), "npz"),
    **dict.fromkeys((".npy",), "npy"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"), "images"),
}
#: Formats of files whose names do not say it, by the names that `magic` has for them.
_BY_CONTENT = {"a Parquet file": "parquet", "an Arrow file": "arrow", "a numpy array (.npy)": "npy"}
_BY_CONTENT["an archive of numpy arrays (.npz)"] = "npz"
#: Local files of up to so many bytes are told by their content, so that a copy of the same is the same.
_DIGESTED = 1 << 20


@dataclass(frozen=True, slots=True)
class File:
    """One file of INPUT. `name` is its path below INPUT; `stamp` differs when the content does."""

    url: str
    name: str
    format: str
    size: int
    stamp: str

    @property
    def identity(self) -> str:
        """What units and results of this file are named by."""
        return f"{self.name}|{self.size}|{self.stamp}"


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of INPUT in order, all of one format; what was `skipped`, and why. `is_one`: INPUT names one file."""

    files: tuple[File, ...]
    skipped: tuple[str, ...]
    is_one: bool

    @property
    def format(self) -> str:
        """The format of every file."""
        return self.files[0].format


def listing(source: str, form: str | None = None) -> Listing:
    """The files that `source` means: one file, all below a folder, or all that match a pattern (`*`, `?`, `**`).

    `form` is their format, else each name says it, or the content of a file that is named alone. In folders, names that
    begin with `.` or `_` are left out, as every reader of such folders does. Raises InvalidInput where there is nothing
    to read or several formats are.
    """
    if form is not None and form not in set(FORMATS.values()):
        raise InvalidInput(f"format {form!r} is none of {', '.join(dict.fromkeys(FORMATS.values()))}")
    fs, root = file_system(source)
    try:
        if is_local(fs):
            root = str(Path(root).resolve()) if "*" not in root else root
        if fs.isfile(root):
            return Listing((_file(fs, root, root.rsplit("/", 1)[-1], form or _format_of(fs, root)),), (), True)
        if fs.isdir(root):
            found = list(_below(fs, root))
        elif any(sign in root for sign in "*?["):
            found, root = _matching(fs, root)
        else:
            raise InvalidInput(f"{source}: no such file or folder")
    except InvalidInput:
        raise
    except Exception as error:
        # fsspec's backends raise their own classes.
        raise StoreUnavailable(f"{source} cannot be read: {type(error).__name__}: {error}") from None
    return _of_one_format(fs, source, root, sorted(found), form)


def _of_one_format(fs: Any, source: str, root: str, found: list[str], form: str | None) -> Listing:
    files, skipped = [], []
    for path in found:
        name = path.removeprefix(root).lstrip("/")
        own = FORMATS.get(Path(name).suffix.lower())
        if any(part[0] in "._" for part in name.split("/")):
            skipped.append(f"{name}: names that begin with . or _ are not data")
        elif own is None and form is None:
            skipped.append(f"{name}: no format that is read here")
        elif form not in (None, own) and own is not None:
            skipped.append(f"{name}: not {form}")
        else:
            files.append(_file(fs, path, name, form or str(own)))
    if not files:
        told = f"; skipped {'; '.join(skipped[:3])}" if skipped else ""
        raise InvalidInput(f"{source}: no files to score{told}")
    counts: dict[str, int] = {}
    for file in files:
        counts[file.format] = counts.get(file.format, 0) + 1
    if len(counts) > 1:
        have = ", ".join(f"{count} {each}" for each, count in counts.items())
        raise InvalidInput(f"{source}: files of several formats: {have}; name one with --format")
    return Listing(tuple(files), tuple(skipped), False)


def _below(fs: Any, root: str) -> Iterator[str]:
    if not is_local(fs):
        fs.invalidate_cache()
        yield from fs.find(root)
        return
    # fsspec's own walk follows no links to folders (2026.x).
    for folder, _, names in os.walk(root, followlinks=True):
        yield from (f"{folder}/{name}" for name in names)


def _matching(fs: Any, pattern: str) -> tuple[list[str], str]:
    """The files that match, and the folder that all of them are below."""
    root = pattern[: min(pattern.index(sign) for sign in "*?[" if sign in pattern)].rpartition("/")[0]
    if is_local(fs):
        here = Path(root or "/").resolve()
        return [str(path) for path in here.glob(pattern.removeprefix(root).lstrip("/")) if path.is_file()], str(here)
    fs.invalidate_cache()
    return [path for path, entry in fs.glob(pattern, detail=True).items() if entry["type"] == "file"], root


def _file(fs: Any, path: str, name: str, form: str) -> File:
    if is_local(fs):
        seen = Path(path).stat()
        if seen.st_size <= _DIGESTED and form != "images":
            stamp = f"sha256 {hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}"
        else:
            stamp = f"changed at {seen.st_mtime_ns}"
        return File(path, name, form, seen.st_size, stamp)
    info = fs.info(path)
    stamp = next((str(info[key]) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified") if info.get(key)), "")
    return File(fs.unstrip_protocol(path), name, form, int(info["size"] or 0), stamp.strip('"'))


def _format_of(fs: Any, path: str) -> str:
    """Of a file that is named alone: by its name, else by how it begins."""
    if known := FORMATS.get(Path(path).suffix.lower()):
        return known
    with fs.open(path, "rb") as stream:
        kind = recognised(stream.read(LOOKED_AT))
    if kind is not None and kind.family == "picture":
        return "images"
    if kind is not None and kind.name in _BY_CONTENT:
        return _BY_CONTENT[kind.name]
    told = f", and it is {kind.name}" if kind else ""
    raise InvalidInput(f"{path}: its name says no format that is read here{told}; name one with --format")
