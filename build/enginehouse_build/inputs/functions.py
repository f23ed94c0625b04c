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


def check_there(what: str, text: str | None) -> None:
    """Raises BuildError as `load_function` would, for what can be told without running it: whether the file is there.

    Also for a source that is an ONNX file. None and a metric's `accuracy` are fine.
    """
    if text is None or (what == "metric" and text == "accuracy"):
        return
    if what == "source" and text.endswith(".onnx"):
        _check_file(f"{what} {text!r}", Path(text))
        return
    where, _ = _parts(text, what)
    if where.endswith(".py"):
        _check_file(f"{what} {text!r}", Path(where))


def load_function(text: str, what: str) -> Callable[..., Any]:
    """The function that `package.module:function` or `path/to/file.py:function` names.

    Raises BuildError, which begins with `what` the function is for.
    """
    where, name = _parts(text, what)
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


def _parts(text: str, what: str) -> tuple[str, str]:
    """Where the function is, and its name."""
    where, _, name = text.rpartition(":")
    if not where or not name.isidentifier():
        ways = ["package.module:function", "path/to/file.py:function"]
        ways += ["FILE.onnx", "a recipe.toml"] if what == "source" else []
        raise BuildError(f"{what} {text!r} is not known; give {', '.join(ways[:-1])} or {ways[-1]}")
    return where, name


def _check_file(asked: str, path: Path) -> None:
    if not path.is_file():
        raise BuildError(f"{asked}: no such file (looked at {path.resolve()})")


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
    _check_file(asked, path)
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
