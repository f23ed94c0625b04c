"""What steps return as JSON, and back: data alone, so that reading it runs nothing whoever wrote it.

Values of JSON are themselves. Others are an object with one key that says what they are; classes are those of this
package and of the contract that are only data (dataclasses, named tuples, pydantic models), by module and name.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from pydantic import BaseModel

_PACKAGES = ("enginehouse.contract.", "enginehouse_build.")


def dumps(value: Any) -> bytes:
    """Raises TypeError for what is no data."""
    return orjson.dumps(_encoded(value))


def loads(text: bytes) -> Any:
    """Raises ValueError, also for classes that are not only data."""
    try:
        return _decoded(orjson.loads(text))
    except (KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _encoded(value: Any) -> Any:
    if value is None or type(value) in (bool, str):
        return value
    if isinstance(value, np.generic):
        return _encoded(value.item())
    if isinstance(value, int):
        return {"int": str(value)} if abs(value) >= 1 << 53 else int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list):
        return [_encoded(each) for each in value]
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if isinstance(value, np.ndarray):
        return {"array": [value.dtype.name, list(value.shape), _encoded(value.ravel().tolist())]}
    if isinstance(value, Mapping):
        return {"map": [[_encoded(key), _encoded(each)] for key, each in value.items()]}
    if isinstance(value, frozenset | set):
        return {"set": [_encoded(each) for each in value]}
    if isinstance(value, tuple) and type(value) is tuple:
        return {"tuple": [_encoded(each) for each in value]}
    return {"made": [f"{type(value).__module__}:{type(value).__qualname__}", _encoded(_fields(value))]}


def _fields(value: Any) -> dict[str, Any]:
    _class(f"{type(value).__module__}:{type(value).__qualname__}")
    if isinstance(value, BaseModel):
        # Those that were given: what is left out where a record is written depends on it.
        return {name: getattr(value, name) for name in type(value).model_fields if name in value.model_fields_set}
    if isinstance(value, tuple):
        return dict(value._asdict())  # type: ignore[attr-defined]
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    match kind:
        case "int":
            return int(inside)
        case "float":
            return float(inside)
        case "bytes":
            return bytes.fromhex(inside)
        case "path":
            return Path(inside)
        case "dtype":
            return _dtype(inside)
        case "array":
            name, shape, items = inside
            return np.array(_decoded(items), _dtype(name)).reshape(shape)
        case "map":
            return {_decoded(key): _decoded(each) for key, each in inside}
        case "set":
            return frozenset(_decoded(each) for each in inside)
        case "tuple":
            return tuple(_decoded(each) for each in inside)
        case "made":
            name, fields = inside
            return _made(_class(name), _decoded(fields))
    raise ValueError(f"{kind!r} is no kind of value")


def _dtype(name: str) -> np.dtype[Any]:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)


def _class(name: str) -> type:
    """The class of this name; raises TypeError for one that is not only data or not of ours."""
    module, _, path = name.partition(":")
    if not module.startswith(_PACKAGES) or not path.isidentifier():
        raise TypeError(f"{name} is not data of a step")
    found: type = getattr(importlib.import_module(module), path)
    is_data = isinstance(found, type) and (
        issubclass(found, BaseModel) or dataclasses.is_dataclass(found) or hasattr(found, "_fields")
    )
    if not is_data or found.__module__ != module:
        raise TypeError(f"{name} is not data of a step")
    return found


def _made(cls: type, fields: dict[str, Any]) -> Any:
    if issubclass(cls, BaseModel):
        return cls.model_validate(fields)
    if dataclasses.is_dataclass(cls):
        # As they were: some fields are not arguments.
        made = object.__new__(cls)
        for field in dataclasses.fields(cls):
            object.__setattr__(made, field.name, fields[field.name])
        return made
    return cls(**fields)
