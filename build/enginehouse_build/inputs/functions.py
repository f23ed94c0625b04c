"""Functions that a user names: `package.module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from enginehouse.contract.errors import BuildError


def load_function(text: str, what: str) -> Callable[..., Any]:
    """The function that `package.module:function` or `path/to/file.py:function` names.

    Raises BuildError, which begins with `what` the function is for.
    """
    where, _, name = text.rpartition(":")
    if not where or not name.isidentifier():
        also = " or FILE.onnx" if what == "source" else ""
        raise BuildError(f"{what} {text!r} is not known; give package.module:function, path/to/file.py:function{also}")
    asked = f"{what} {text!r}"
    module = _module_from_file(asked, Path(where)) if where.endswith(".py") else _module_by_name(asked, where)
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        callables = sorted(
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        )
        raise BuildError(f"{asked}: {where} has no function {name!r}; it has {', '.join(callables) or 'none'}")
    return function


def _module_by_name(asked: str, name: str) -> ModuleType:
    # An installed command does not look into the current directory as `python -m` does.
    _importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise BuildError(
            f"{asked}: cannot import {name!r}: {type(error).__name__}: {error}; "
            "run from the folder that contains it, or give path/to/file.py:factory"
        ) from error


def _module_from_file(asked: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise BuildError(f"{asked}: no such file (looked at {path.resolve()})")
    _importable(path.resolve().parent)
    name = f"enginehouse_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise BuildError(f"{asked}: Python cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and torch's exporter look a class's module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BuildError(f"{asked}: {path} raised {type(error).__name__}: {error}") from error
    return module


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
