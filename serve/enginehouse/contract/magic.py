"""What bytes are by how they begin: for messages about files and bodies that are not what was wanted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

#: What kinds have in common, and so what to do about them.
Family: TypeAlias = Literal["picture", "arrays", "table", "packed", "form", "message", "text", "other"]


class Kind(NamedTuple):
    """`name` has an article in front, for instance "a JPEG picture (image/jpeg)"."""

    name: str
    family: Family


#: How the formats that people have at hand begin.
_MAGIC: Sequence[tuple[bytes, Kind]] = (
    (b"\xff\xd8\xff", Kind("a JPEG picture (image/jpeg)", "picture")),
    (b"\x89PNG\r\n\x1a\n", Kind("a PNG picture (image/png)", "picture")),
    (b"GIF8", Kind("a GIF picture (image/gif)", "picture")),
    (b"II*\0", Kind("a TIFF picture (image/tiff)", "picture")),
    (b"MM\0*", Kind("a TIFF picture (image/tiff)", "picture")),
    (b"%PDF-", Kind("a PDF document (application/pdf)", "other")),
    (b"\x93NUMPY", Kind("a numpy array (.npy)", "arrays")),
    (b"PAR1", Kind("a Parquet file", "table")),
    (b"ARROW1", Kind("an Arrow file", "table")),
    (b"\x1f\x8b", Kind("gzip data (application/gzip)", "packed")),
    (b"\x28\xb5\x2f\xfd", Kind("zstd data (application/zstd)", "packed")),
    (b"BZh", Kind("bzip2 data", "packed")),
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file", "other")),
    (b"version https://git-lfs", Kind("a Git LFS pointer in the place of the file itself (git lfs pull)", "text")),
    (b"\xef\xbb\xbf", Kind("text with a byte-order mark in front", "text")),
    (b"\xff\xfe", Kind("UTF-16 text", "text")),
    (b"\xfe\xff", Kind("UTF-16 text", "text")),
)
#: Of a file in a zip archive: how long its name is, and where the name begins.
_ZIP, _ZIP_NAME_LENGTH, _ZIP_NAME = b"PK\x03\x04", slice(26, 28), 30
_FORM_DATA = re.compile(rb"--[^\r\n]{1,200}\r?\ncontent-disposition:", re.IGNORECASE)
_FORM = re.compile(rb"[\w.%+\[\]-]{1,100}=[^\s{}]*\Z")
_MODEL = re.compile(rb"[\w.-]+")
_MARKUP = re.compile(rb"\s*<(!doctype|html|\?xml|\w+[ >])", re.IGNORECASE)
#: Of the beginning, so much is looked at.
LOOKED_AT = 512


def recognised(data: bytes | memoryview) -> Kind | None:
    """What `data` looks like; None for JSON and for what is not known."""
    head = bytes(data[:LOOKED_AT])
    if not head:
        return Kind("empty", "other")
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(_ZIP):
        size = int.from_bytes(head[_ZIP_NAME_LENGTH], "little")
        if head[_ZIP_NAME : _ZIP_NAME + size].endswith(b".npy"):
            return Kind("an archive of numpy arrays (.npz)", "arrays")
        return Kind("a zip archive (application/zip)", "other")
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return Kind("a WebP picture (image/webp)", "picture")
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return Kind("a BMP picture (image/bmp)", "picture")
    if _FORM_DATA.match(head):
        return Kind("a form (multipart/form-data)", "form")
    if _FORM.match(head):
        return Kind("a form (application/x-www-form-urlencoded)", "form")
    if _MARKUP.match(head):
        return Kind("HTML or XML", "text")
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return Kind("a Python pickle", "other")
    if _is_grpc(head, len(data)) or _is_protobuf(head):
        return Kind("a protobuf message", "message")
    return Kind("binary data", "other") if b"\0" in head else None


def seen_in(path: Path, error: Exception) -> str:
    """Why `path` cannot be read as what it was meant to be: what it is if that can be told, else what `error` says."""
    try:
        with path.open("rb") as file:
            kind = recognised(file.read(LOOKED_AT))
    except OSError:
        kind = None
    return f"it is {kind.name}" if kind is not None and kind.family not in ("arrays", "other") else str(error)


def _is_grpc(head: bytes, size: int) -> bool:
    """A gRPC frame: whether it is compressed, the length of the message, the message."""
    return size > 5 and head[0] in (0, 1) and int.from_bytes(head[1:5], "big") == size - 5


def _is_protobuf(head: bytes) -> bool:
    """The first field of an inference request is the model's name: its tag, its length, letters, another tag."""
    if head[:1] != b"\x0a" or len(head) < 3 or not 0 < head[1] < 128:
        return False
    end = 2 + head[1]
    return len(head) > end and bool(_MODEL.fullmatch(head[2:end])) and 0x10 <= head[end] < 0x80
