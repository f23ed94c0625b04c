"""Requests and answers in one file: a list of tensor mappings as an `.npz` that is read without pickle.

Member `INDEX/POSITION` is one tensor; the member `index` is JSON with the name, datatype and shape of each. Tensors
that numpy's own format does not keep (bfloat16, text) are stored as bytes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson

from enginehouse.contract.errors import BundleError
from enginehouse.contract.tensors import DTYPES, Tensors, datatype


def write(path: Path, requests: Sequence[Tensors]) -> None:
    """Write `requests` to `path`, replacing what is there."""
    members: dict[str, np.ndarray] = {}
    index = []
    for number, request in enumerate(requests):
        entry = []
        for position, (name, array) in enumerate(request.items()):
            members[f"{number}/{position}"] = _stored(array)
            entry.append({"name": name, "datatype": datatype(array.dtype), "shape": list(array.shape)})
        index.append(entry)
    members["index"] = np.frombuffer(orjson.dumps(index), np.uint8)
    with path.open("wb") as stream:
        np.savez(stream, **members)  # type: ignore[arg-type] # numpy types its only option, too


def read(path: Path) -> list[dict[str, np.ndarray]]:
    """What `write` wrote. Raises BundleError for a file that is no such archive."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            index = orjson.loads(archive["index"].tobytes())
            return [
                {
                    entry["name"]: _restored(archive[f"{number}/{position}"], entry["datatype"], entry["shape"])
                    for position, entry in enumerate(request)
                }
                for number, request in enumerate(index)
            ]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} is no archive of requests: {type(error).__name__}: {error}") from None


def _stored(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "OSU":
        words = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel().tolist()]
        lengths = np.array([len(words), *map(len, words)], dtype="<u4")
        return np.frombuffer(lengths.tobytes() + b"".join(words), np.uint8)
    if array.dtype == DTYPES["BF16"]:
        return np.ascontiguousarray(array).view(np.uint16)
    return array


def _restored(stored: np.ndarray, name: str, shape: list[int]) -> np.ndarray:
    if name == "BYTES":
        data = stored.tobytes()
        count = int.from_bytes(data[:4], "little")
        lengths = np.frombuffer(data, "<u4", count, offset=4)
        ends = np.cumsum(lengths) + 4 * (count + 1)
        words = [data[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
        array = np.empty(count, dtype=object)
        array[:] = words
        return array.reshape(shape)
    return (stored.view(DTYPES["BF16"]) if name == "BF16" else stored).reshape(shape)
