"""A file that cannot be written is refused before the work is done that it was to hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from enginehouse.contract.errors import ConfigError
from enginehouse.tools import cli
from enginehouse.tools.cli.output_file import check_output


def test_a_new_file_and_one_that_is_there_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "old.npz").touch()
    for name in ("old.npz", "new.npz"):
        check_output(tmp_path / name, "--output")
    assert not (tmp_path / "new.npz").exists()


PATHS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such folder": (
        lambda folder: folder / "none" / "y.npz",
        "none is no folder; --output y.npz needs one that exists",
    ),
    "below a file": (
        lambda folder: folder / "file" / "y.npz",
        "file is no folder; --output y.npz needs one that exists",
    ),
    "a folder": (lambda folder: folder, "is a folder; --output names a file"),
}


@pytest.mark.parametrize("kind", PATHS)
def test_what_cannot_be_written_is_named_with_its_option(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    make, message = PATHS[kind]
    with pytest.raises(ConfigError, match=message):
        check_output(make(tmp_path), "--output")


@pytest.mark.parametrize(
    "arguments", [["infer", "m", "{}", "--output"], ["bench", "m", "--json"], ["bench", "m", "--plot"]]
)
def test_commands_ask_before_they_look_for_a_server(arguments: list[str], tmp_path: Path) -> None:
    assert isinstance(cli.app, typer.Typer)
    ran = CliRunner().invoke(cli.app, [*arguments, str(tmp_path / "none" / "y.svg")])
    assert isinstance(ran.exception, ConfigError)
    assert arguments[-1] in str(ran.exception)
