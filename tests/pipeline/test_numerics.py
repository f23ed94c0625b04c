"""A recipe may declare which numerics answer; what does not answer by default is said at the end of a build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.choice import choose_artifact
from enginehouse.contract.errors import BuildError
from enginehouse.tools.cli.build import build
from enginehouse_build.report import render

Build = Callable[..., Bundle]


@pytest.fixture
def int8(tmp_path: Path) -> dict[str, Any]:
    """What an int8 artifact beside the fp32 one takes, with a limit that this tiny model keeps."""
    np.savez(tmp_path / "real.npz", x=np.random.default_rng(1).standard_normal((40, 3), dtype=np.float32))
    return {"precisions": ("fp32", "int8"), "samples": tmp_path / "real.npz", "limits": {"int8": 0.3}}


def loaded(bundle: Bundle) -> str:
    """What an engine loads when nobody says otherwise."""
    found = choose_artifact(bundle.manifest, ("onnxruntime-cpu",), bundle.manifest.numerics)
    assert found is not None
    return found[1].name


def test_what_a_recipe_declares_is_in_the_manifest_and_is_what_answers(
    build_onnx: Build, linear: Path, int8: dict[str, Any]
) -> None:
    declared, silent = build_onnx(linear, **int8, numerics="int8"), build_onnx(linear, **int8)
    assert [artifact.status for artifact in silent.manifest.artifacts] == ["ready", "ready"]
    assert declared.manifest.version != silent.manifest.version, "another recipe is another build"
    assert (declared.manifest.numerics, silent.manifest.numerics) == ("int8", "full")
    assert "numerics" not in silent.manifest.recipe
    assert (loaded(declared), loaded(silent)) == ("onnx-int8", "onnx-fp32")
    for bundle, told in ((declared, "onnx-fp32 left out"), (silent, "onnx-int8 left out")):
        assert f"When served: {told}" in render(bundle.manifest)


def test_a_build_that_leaves_nothing_of_the_declared_numerics_fails_with_the_reason(
    build_onnx: Build, linear: Path, int8: dict[str, Any]
) -> None:
    with pytest.raises(BuildError, match="onnx-fp32 is ready: left out; onnx-int8 is failed: .* too far from"):
        build_onnx(linear, **int8 | {"limits": {"int8": 1e-9}}, numerics="int8")


@pytest.mark.slow
def test_the_last_lines_of_a_build_say_what_is_left_out_and_what_lets_it_in(
    linear: Path, int8: dict[str, Any], tmp_path: Path
) -> None:
    app = typer.Typer()
    app.command()(build)
    common = [str(linear), "--name", "tiny", "--store", str(tmp_path / "store"), "--formats", "onnx", "--threads", "1"]
    common += ["--precisions", "fp32,int8", "--samples", str(int8["samples"]), "--limit", "int8=0.3"]
    for numerics, told in (
        ([], "when served: onnx-int8 left out: numerics 'full' is what answers; `--numerics int8` or"),
        (["--numerics", "int8"], "when served: onnx-fp32 left out: numerics 'int8' is what answers"),
        (["--numerics", "any"], ""),
    ):
        ran = CliRunner().invoke(app, [*common, *numerics], env={"COLUMNS": "200"}, catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        # Wrapped as wide as the console was when it was first imported.
        assert told in " ".join(ran.output.split())
        assert ("left out" in ran.output) == bool(told)
