"""Opens files of INPUT for Arrow, on this machine or behind a URL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from enginehouse.contract.errors import EnginehouseError, InvalidInput, StoreUnavailable
from enginehouse.contract.magic import LOOKED_AT, recognised
from enginehouse.faces.scoring.sources import File
from enginehouse.faces.scoring.storage import file_system, is_local

#: What files of a format are called by `magic`, where that is not its name.
_OWN = {"NPZ": ".npz", "NPY": ".npy"}


def opened(file: File) -> Any:
    """`file` as Arrow and Python read it. Raises InvalidInput when it is gone, StoreUnavailable for an outage."""
    fs, path = file_system(file.url)
    try:
        return pa.OSFile(path) if is_local(fs) else pa.PythonFile(fs.open(path, "rb"), "r")
    except FileNotFoundError:
        raise InvalidInput(f"{file.url} is gone; it was there when the job began") from None
    except Exception as error:
        # fsspec's backends raise their own classes.
        raise StoreUnavailable(f"{file.url} cannot be read: {type(error).__name__}: {error}") from None


@contextlib.contextmanager
def reading(file: File, what: str) -> Iterator[None]:
    """Raises InvalidInput, naming the file and what it seems to be, for whatever is raised inside that is not ours."""
    try:
        yield
    except EnginehouseError:
        raise
    except Exception as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        with contextlib.suppress(EnginehouseError, OSError), contextlib.closing(opened(file)) as stream:
            kind = recognised(stream.read(LOOKED_AT))
            if kind is not None and kind.family != "other" and _OWN.get(what, what) not in kind.name:
                said = f"it is {kind.name}"
        raise InvalidInput(f"{file.url}: not readable as {what}: {said}") from None
