"""`import enginehouse` is cheap, and what it promises is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import enginehouse
from enginehouse.contract import errors


def test_the_public_names_are_sorted_and_each_once() -> None:
    assert enginehouse.__all__ == sorted(set(enginehouse.__all__))


def test_what_readers_are_told_to_import_is_public() -> None:
    assert {"Client", "Bundle", "Store", "Engine", "load_engine", "Signature"} <= set(enginehouse.__all__)


def test_every_error_is_public() -> None:
    ours = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == "enginehouse"
    }
    assert ours <= set(enginehouse.__all__)
    assert all(getattr(enginehouse, name) is getattr(errors, name) for name in ours)


@pytest.mark.parametrize("name", enginehouse.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(enginehouse, name)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(enginehouse)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Runner'"):
        enginehouse.Runner  # noqa: B018
    with pytest.raises(ImportError, match="Runner"):
        from enginehouse import Runner  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import enginehouse", "ray torch onnxruntime openvino numpy pydantic"),
        ("from enginehouse import Bundle, Store, load_engine, InvalidInput", "ray torch onnxruntime openvino"),
        ("from enginehouse import Client", "torch onnxruntime openvino enginehouse_build"),
        ("import enginehouse.tools.cli", "ray torch onnxruntime openvino enginehouse_build"),
        ("import enginehouse.app", "torch onnxruntime openvino enginehouse_build"),
        # In a process of its own for each step of a build.
        ("import enginehouse_build.judge.verify, enginehouse_build.convert.convert", "ray torch"),
        ("import enginehouse_build.judge.stopwatch", "ray torch onnxruntime openvino"),
    ],
)
def test_importing_loads_no_more_than_is_needed(statement: str, absent: str) -> None:
    code = f"{statement}\nimport sys\nprint(*sorted(set({absent.split()!r}) & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.split() == []
