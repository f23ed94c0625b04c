"""Modules that are named in text, which no import checks: strings, docstrings, cluster files and documents."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("serve", "build", "tests", "examples", "scripts", "benchmarks", "docs")
KINDS = {".py", ".md", ".yaml", ".toml", ".sh", ".lua", ""}
#: Not modules: the label of nodes, and names that tests expect to be missing.
OTHERS = re.compile(r"enginehouse\.(io|Runner)\b")
DOTTED = re.compile(r"(?<![\w./-])enginehouse(?:_build)?(?:\.[A-Za-z_]\w*)+(?::\w+)?")
FILE = re.compile(r"(?:serve|build)/enginehouse(?:_build)?/[\w/]*\.py\b")


def texts() -> Iterator[tuple[Path, str]]:
    inside = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")))
    for path in [*sorted(ROOT.glob("*")), *inside]:
        parts = path.relative_to(ROOT).parts
        if path.is_file() and path.suffix in KINDS and not {"results", "__pycache__"} & set(parts):
            yield path, path.read_text(errors="ignore")


def mentions(pattern: re.Pattern[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path, text in texts():
        # What is new has no old names in it; what is history does.
        if path.name != "CHANGELOG.md":
            found |= {name: path for name in pattern.findall(text) if not OTHERS.match(name)}
    return found


@pytest.mark.parametrize("name", sorted(mentions(DOTTED)))
def test_a_dotted_name_leads_somewhere(name: str) -> None:
    path, _, attribute = name.partition(":")
    module, rest = path, list[str]()
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("enginehouse"):
                pytest.skip(f"{module} needs {error.name}")
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
            assert module, f"{name}: no such module (in {mentions(DOTTED)[name]})"
    for part in [*rest, *([attribute] if attribute else [])]:
        found = getattr(found, part)
    assert found is not None


def test_files_that_are_named_exist() -> None:
    missing = {name: str(where) for name, where in mentions(FILE).items() if not (ROOT / name).is_file()}
    assert missing == {}


def test_the_search_finds_what_it_is_to_find() -> None:
    names = mentions(DOTTED)
    assert {"enginehouse.app:build", "enginehouse.shortcut:middlewares"} <= names.keys()
    assert len(names) > 100


PRIVATE = re.compile(r"\bray(?:\.\w+)*\._\w+|_get_global_client|\._(?:controller|deployment_id|init)\b")


def test_what_is_private_to_ray_is_only_in_files_of_that_name() -> None:
    sources = [*(ROOT / "serve").rglob("*.py"), *(ROOT / "build").rglob("*.py")]
    elsewhere = {
        str(path.relative_to(ROOT)): found
        for path in sources
        if path.name not in ("ray_private.py", "availability.py") and (found := PRIVATE.findall(path.read_text()))
    }
    assert elsewhere == {}


def test_folders_are_no_larger_than_a_reader_can_take_in() -> None:
    packages = {path.parent for root in ("serve", "build") for path in (ROOT / root).rglob("__init__.py")}
    entries = {
        str(package.relative_to(ROOT)): [path for path in package.iterdir() if path.name != "__pycache__"]
        for package in packages
    }
    assert {name: len(found) for name, found in entries.items() if len(found) > 20} == {}
    # A folder that only holds what an old version left would be imported as a package without a word.
    empty = [name for name, found in entries.items() if not found]
    assert empty == []
