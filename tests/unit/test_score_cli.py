"""`enginehouse score` as far as it needs no cluster."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tests.unit.catalogs import publish
from typer.testing import CliRunner

from enginehouse.contract.errors import ConfigError
from enginehouse.faces.scoring.readers import Limits
from enginehouse.faces.scoring.ways import choice
from enginehouse.tools.cli import app
from enginehouse.tools.cli.score import _json, _pairs, _show

from .scoring_jobs import score, signature


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_status_says_how_far_a_job_is(tmp_path: Path) -> None:
    x = [1e300 if at == 7 else 1.0 for at in range(30)]
    parquet.write_table(pa.table({"id": np.arange(30), "x": x}), tmp_path / "in.parquet", row_group_size=10)
    score(tmp_path / "in.parquet", tmp_path / "out", signature(np.float32), limits=Limits(10), stopping=lambda: True)
    document = json.loads(run("score", "status", str(tmp_path / "out"), "--json"))
    assert (document["units"], document["is_complete"]) == (3, False)
    score(tmp_path / "in.parquet", tmp_path / "out", signature(np.float32), limits=Limits(10))
    document = json.loads(run("score", "status", str(tmp_path / "out"), "--json"))
    assert (document["rows"], document["written"], document["kinds"]) == (30, 29, {"cast": 1})
    assert (tmp_path / "out" / "_job" / "report.html").read_text().count("<h2>") == 5
    with pytest.raises(ConfigError, match="has no scoring job"):
        run("score", "status", str(tmp_path))


def test_options_that_are_no_pairs_are_named() -> None:
    assert _pairs(["a=b=c", "x=y"], "--map") == [("a", "b=c"), ("x", "y")]
    for wrong in ("a", "=b", "a="):
        with pytest.raises(ConfigError, match=f"--map '{wrong}' is not NAME=VALUE"):
            _pairs([wrong], "--map")
    with pytest.raises(ConfigError, match="--constant x=abc is not JSON"):
        _json("abc", "x")


def test_output_has_to_be_named() -> None:
    with pytest.raises(ConfigError, match="OUTPUT is missing"):
        run("score", "digits", "in.parquet")


def test_scoring_imports_neither_pandas_nor_ray_data_nor_datasets() -> None:
    """Each of them takes as long as a small job."""
    code = (
        "import sys\n"
        "from enginehouse.cluster import light\n"
        "light.without_pandas()\n"
        "from enginehouse.faces.scoring.scorers.without_pandas import without_pandas\n"
        "without_pandas()\n"
        "from tests.unit.scoring_jobs import score, signature\n"
        "import pyarrow as pa, numpy as np, pathlib, tempfile\n"
        "from pyarrow import parquet\n"
        "known = set(sys.modules)\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    parquet.write_table(pa.table({'id': [1], 'x': [1.0]}), folder + '/in.parquet')\n"
        "    score(folder + '/in.parquet', folder + '/out', signature(np.float32))\n"
        "import enginehouse.faces.scoring.scorers.workers, enginehouse.faces.scoring.start\n"
        "print(sorted({'pandas', 'ray.data', 'torch'} & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert found.stdout.strip() == "[]", found.stderr


def test_a_job_that_was_done_already_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet.write_table(pa.table({"x": np.ones(30)}), tmp_path / "in.parquet", row_group_size=10)
    for told in ("30 rows in ", "all 30 rows were scored already; nothing was left to do. They were by numpy -> "):
        report = score(tmp_path / "in.parquet", tmp_path / "out", signature(np.float32), limits=Limits(10))
        _show(report, time.monotonic() - 1, json=False)
        assert capsys.readouterr().out.startswith(told)


@pytest.mark.parametrize("asked", ["m@7", "m@v1", "m@01"])
def test_a_version_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, asked: str) -> None:
    for version in ("1", "2", "10"):
        publish(tmp_path, version)
    with pytest.raises(ConfigError, match=rf"has no version '{asked[2:]}' of 'm'; it has 1, 2, 10$"):
        choice.known(asked, str(tmp_path), "engines")
    with pytest.raises(ConfigError, match=r"has no model 'other'; it has m$"):
        choice.known("other@7", str(tmp_path), "engines")
    assert choice.known("m@2", str(tmp_path), "engines").config.version == "2"
