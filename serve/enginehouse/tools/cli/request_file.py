"""The inputs of one request, out of what a user has: a .npz or .npy file, a .json file, or JSON itself."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.magic import LOOKED_AT, Family, Kind, recognised

_TAKES = 'give a .npz, .npy or .json file, or inline JSON such as {"x": [[1, 2]]}'
_WAY: Mapping[Family, str] = {
    "picture": (
        "decode it first: `python -c \"import numpy, PIL.Image; numpy.savez('pixels.npz', "
        "{name}=numpy.asarray(PIL.Image.open('{path}'))[None])\"` and send pixels.npz"
    ),
    "table": "`enginehouse score MODEL {path} FOLDER` answers each of its rows",
    "packed": "unpack it first",
    "text": _TAKES,
}


def is_inline(given: str) -> bool:
    """Whether it is JSON itself and not the name of a file."""
    return given.lstrip().startswith(("{", "["))


def read_inputs(given: str, wanted: Mapping[str, str]) -> dict[str, Any]:
    """Values by input name; `wanted` are the model's inputs by name, as text.

    An .npy file has no names: it is for a model of one input. Raises InvalidInput saying what `given` is, what the
    model wants and how it is sent.
    """
    if is_inline(given):
        return _named("INPUT", _parsed("INPUT", given), wanted)
    path = Path(given)
    models = ", ".join(wanted.values())
    try:
        with path.open("rb") as file:
            kind = recognised(file.read(LOOKED_AT))
        if kind is not None and kind.family == "arrays":
            return _named(given, _arrays(path), wanted)
        if kind is not None:
            raise InvalidInput(f"{given} is {kind.name}; {_way(kind, given, wanted)}; the model wants {models}")
        return _named(given, _parsed(given, path.read_text(encoding="utf-8")), wanted)
    except IsADirectoryError:
        raise InvalidInput(
            f"{given} is a folder; `infer` sends one request ({_TAKES}), `enginehouse score` takes folders"
        ) from None
    except FileNotFoundError:
        raise InvalidInput(f"{given}: no such file; {_TAKES}") from None
    except OSError as error:
        raise InvalidInput(f"{given}: {error.strerror or error}; {_TAKES}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{given} is neither text nor a known kind of file; {_TAKES}") from None


def _way(kind: Kind, path: str, wanted: Mapping[str, str]) -> str:
    return _WAY.get(kind.family, _TAKES).replace("{path}", path).replace("{name}", next(iter(wanted), "x"))


def _arrays(path: Path) -> Any:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            return archive
        with archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInput(f"{path} is no file of plain numbers or text: {error}; save it with numpy.savez") from None


def _parsed(what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidInput(f"{what} is not JSON: {error}; {_TAKES}") from None


def _named(what: str, values: Any, wanted: Mapping[str, str]) -> dict[str, Any]:
    if isinstance(values, dict):
        return values
    if isinstance(values, np.ndarray) and len(wanted) == 1:
        return {name: values for name in wanted}
    kind = "one array without a name" if isinstance(values, np.ndarray) else f"a JSON {type(values).__name__}"
    raise InvalidInput(
        f"{what} is {kind}; give the inputs by name, as a JSON object or with numpy.savez(FILE, NAME=array): the model "
        f"wants {', '.join(wanted.values())}"
    )
