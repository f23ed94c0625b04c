"""`enginehouse build` and `enginehouse inspect`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from enginehouse.contract.errors import ConfigError
from enginehouse.tools.cli.build import build
from enginehouse.tools.cli.inspect import inspect

from .conftest import Built

app = typer.Typer()
app.command()(build)
app.command()(inspect)


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "100"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_build_shows_stages_and_a_table(linear: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    options = ["--formats", "onnx,openvino", "--precisions", "fp32", "--max-batch", "4", "--threads", "1"]
    output = run("build", str(linear), "--name", "tiny", "--store", str(store), *options)
    for text in (
        "convert openvino-fp32",
        "verify onnx-fp32",
        "profile",
        "publish",
        "tiny version 1",
        "rows 4",
        "ready",
    ):
        assert text in output
    assert (store / "tiny" / "1" / "manifest.json").is_file()


def test_inspect_finds_a_bundle_by_folder_and_the_newest_by_name(digits: Built) -> None:
    by_folder, by_name = run("inspect", str(digits.bundle.path)), run("inspect", str(digits.store / "digits"))
    assert by_folder == by_name
    for text in (
        "digits version 1",
        "onnx-fp32",
        "image: UINT8[*,8,8]",
        "logits: FP32[*,10]",
        "torch",
        "best for throughput (full): ",
        "best for throughput (int8): ",
        "accuracy 0.98",
    ):
        assert text in by_name


def test_inspect_json_is_the_manifest(digits: Built) -> None:
    shown = json.loads(run("inspect", str(digits.bundle.path), "--json"))
    assert shown == json.loads((digits.bundle.path / "manifest.json").read_text())


def test_errors_name_what_there_is(digits: Built) -> None:
    with pytest.raises(ConfigError, match="holds digits"):
        run("inspect", str(digits.store / "digts"))
    with pytest.raises(ConfigError, match="digits has the versions 1"):
        run("inspect", str(digits.store / "digits" / "7"))
    common = ("--name", "m", "--store", str(digits.store))
    with pytest.raises(ConfigError, match="precision 'int4' is not supported"):
        run("build", "model.onnx", *common, "--precisions", "int4")
    with pytest.raises(ConfigError, match="--axis sequence: write NAME=VALUE"):
        run("build", "model.onnx", *common, "--axis", "sequence")
    with pytest.raises(ConfigError, match="--name: Field required"):
        run("build", "model.onnx")


def test_a_recipe_is_built_by_its_file_and_options_come_before_it(linear: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'source = "{linear}"\nname = "tiny"\nstore = "store"\nformats = ["onnx"]\nprecisions = ["fp32"]\n'
        "threads = 1\nmax_batch = 8\n"
    )
    assert "published" in run("build", str(recipe), "--max-batch", "2")
    manifest = json.loads((tmp_path / "store" / "tiny" / "1" / "manifest.json").read_text())
    assert (manifest["max_batch"], manifest["recipe"]["max_batch"]) == (2, 2)
    assert "unchanged" in run("build", str(recipe), "--max-batch", "2")
