"""Every command explains itself, and a mistake is one line on stderr, with what to do, and exit code 1."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from tests.unit.test_versions import publish
from typer.testing import CliRunner

from enginehouse.contract.config import AppConfig, Catalog, ModelConfig, serve_config
from enginehouse.contract.errors import InvalidInput, ModelNotFound
from enginehouse.contract.store import Store
from enginehouse.tools import cli
from enginehouse.tools.cli import explain, infer
from enginehouse.tools.cli.console import out
from enginehouse.tools.cli.models import entry_of
from enginehouse.tools.cli.serve import model_of, moved
from enginehouse.tools.cli.status import show

NOBODY = "127.0.0.1:1"


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, (*path, name))


ALL = list(commands(typer.main.get_command(cli.app)))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for version in ("1", "2", "10"):
        publish(tmp_path, version)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command line in this process, as the console script runs it."""
    monkeypatch.setattr(sys, "argv", ["enginehouse", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_all_commands_are_there() -> None:
    words = {"build", "inspect", "serve", "models", "status", "infer", "score", "doctor"}
    assert words <= {path[0] for path in ALL if path}
    assert {("models", "add"), ("models", "remove"), ("models", "list")} <= set(ALL)


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(path) or "enginehouse")
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    ran = CliRunner().invoke(cli.app, [*path, "--help"])
    assert ran.exit_code == 0, ran.output
    assert "Usage:" in ran.output


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(path) or "enginehouse")
def test_every_option_of_a_command_is_explained(path: tuple[str, ...]) -> None:
    command = typer.main.get_command(cli.app)
    for name in path:
        command = command.commands[name]  # type: ignore[attr-defined]
    assert command.help
    assert [parameter.name for parameter in command.params if not getattr(parameter, "help", None)] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("serve", "{empty}"), "ConfigError: no bundles in '{empty}'; make one with `enginehouse build`"),
        (("serve", "nope://bucket"), "ConfigError: store 'nope://bucket' cannot be used: Protocol not known: nope"),
        (("serve", "{store}", "--models", "other"), "ConfigError: {store} has no model 'other'; it has m"),
        (("serve", "{store}", "--models", "a/b"), "InvalidInput: model 'a/b' is not usable"),
        (("serve", "{store}", "--models", "m,m@1", "--print-config"), "model 'm' is listed twice"),
        (("infer", "m", '{"x": 1}', "--url", f"http://{NOBODY}"), f"NoBackend: http://{NOBODY}/v2/models/m:"),
        (("infer", "m", '{"x": 1}', "--url", "server"), "InvalidInput: 'server/v2/models/m' is no URL"),
        (("inspect", "{empty}"), "ConfigError: '{empty}' is no bundle"),
        (("inspect", "{store}"), "ConfigError: '{store}' is a store, of m; name a model: {store}/m"),
        (("inspect", "{store}/m@9"), "is no bundle: m has the versions 1, 2, 10"),
        (("serve", "{store}/m"), "'{store}/m' is no store but what is in one; give the store: {store} --models m"),
        (("serve", "{store}/m/2/", "--models", "m"), "give the store: {store} --models m@2"),
        (("infer", "m", '{"x": 1}', "--url", f"http://{NOBODY}"), "running there? --url asks elsewhere"),
        (("build", "no_such_module:f", "--name", "m", "--store", "{empty}"), "cannot import 'no_such_module'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    store: Path,
    tmp_path_factory: pytest.TempPathFactory,
    arguments: tuple[str, ...],
    told: str,
) -> None:
    places = {"{store}": str(store), "{empty}": str(tmp_path_factory.mktemp("empty"))}

    def placed(text: str) -> str:
        for place, path in places.items():
            text = text.replace(place, path)
        return text

    assert run(monkeypatch, *[placed(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert placed(told) in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err


def test_an_answer_that_does_not_come_in_time_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert run(monkeypatch, "infer", "m", '{"x": 1}', "--url", url, "--timeout", "0.2") == 1
    told = f"DeadlineExceeded: {url}/v2/models/m has not answered within 0.2 s; --timeout waits longer"
    assert capsys.readouterr().err.strip() == told


@pytest.mark.parametrize("command", [("status",), ("models", "list"), ("doctor",)], ids=" ".join)
def test_a_cluster_that_is_not_there_is_told_at_once(command: tuple[str, ...]) -> None:
    # Its own process: these commands have to set what Ray reads on import.
    ran = subprocess.run(
        [sys.executable, "-m", "enginehouse", *command, "--address", NOBODY], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 1
    assert ran.stderr.strip() == (
        f"ConfigError: nothing listens at '{NOBODY}'; start a cluster with `enginehouse serve`"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve"], "store"),
        (["serve", "store", "--port", "0"], "--port"),
        (["serve", "store", "--port", "65536"], "--port"),
        (["serve", "store", "--threads", "0"], "--threads"),
        (["serve", "store", "--max-replicas", "0"], "--max-replicas"),
        (["models", "add", "m", "--max-batch-size", "0"], "--max-batch-size"),
        (["models", "add", "m", "--batch-wait-ms", "-1"], "--batch-wait-ms"),
        *((["models", "add", "m", "--timeout", wrong], "--timeout") for wrong in ("nan", "inf", "0", "-1")),
        (["serve", "store", "--timeout", "nan"], "--timeout"),
        (["serve", "store", "--grace", "nan"], "--grace"),
        (["serve", "store", "--grace", "-1"], "--grace"),
        (["infer", "m", "in.npz", "--timeout", "0"], "--timeout"),
        (["build", "m.onnx", "--step-timeout", "-5"], "--step-timeout"),
        (["models", "add", "m", "--numerics", "fp16"], "--numerics"),
        (["score", "m", "in", "out", "--min-actors", "0"], "--min-actors"),
        (["train"], "No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_out_of_range_is_refused_before_anything_starts(arguments: list[str], told: str) -> None:
    ran = CliRunner().invoke(cli.app, arguments)
    assert ran.exit_code == 2
    assert told.lower() in ran.output.lower()


def test_the_config_is_printed_for_the_newest_versions_and_what_was_asked_for(store: Path) -> None:
    ran = CliRunner().invoke(cli.app, ["serve", str(store), "--print-config", "--port", "8123"])
    newest = {"name": "m", "version": "10", "digest": Store(str(store)).digest("m", "10")}
    catalog = Catalog.parse({"store": str(store), "models": [newest]})
    assert yaml.safe_load(ran.stdout) == serve_config(AppConfig(), catalog, port=8123)


def test_the_printed_config_has_the_threads_and_replicas_that_were_asked_for(store: Path) -> None:
    asked = ["--models", "m@2", "--threads", "3", "--max-replicas", "2"]
    ran = CliRunner().invoke(cli.app, ["serve", str(store), "--print-config", *asked])
    (application,) = yaml.safe_load(ran.stdout)["applications"]
    pools = AppConfig.parse(application["args"]).pools.values()
    assert {(pool.threads, pool.max_replicas) for pool in pools} == {(3, 2)}
    assert Catalog.parse(application["deployments"][0]["user_config"]).models[0].id == "m@2"


@pytest.mark.parametrize(
    ("name", "only_settings", "asked", "told"),
    [
        ("m", True, "m@2", "m@2"),
        ("m", False, "m", "m 2 -> 10"),
        ("m@10", True, "m@10", "m 2 -> 10"),
        ("m@2", False, "m@2", "m@2"),
    ],
)
def test_a_command_that_only_names_settings_keeps_the_live_version(
    store: Path, name: str, only_settings: bool, asked: str, told: str
) -> None:
    live = ModelConfig(name="m", version="2")
    assert entry_of(name, live, only_settings) == asked
    assert moved(model_of(str(store), asked, live), live) == told
    assert entry_of(name, None, only_settings) == name
    assert moved(live, None) == "m@2"


@pytest.mark.parametrize("bundle", ["m/2", "m@2", "m/2/"])
def test_a_bundle_is_shown(store: Path, bundle: str) -> None:
    ran = CliRunner().invoke(cli.app, ["inspect", f"{store}/{bundle}"])
    assert ran.exit_code == 0, ran.output
    assert "onnx-fp32" in ran.output


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("tab@7", None), "send the version apart: model 'tab', version '7'; /v2/models/tab/versions/7"),
        (("tab", 7), "a version is text: '7'"),
        (("tab", "8"), "add it with `enginehouse models add`"),
    ],
)
def test_a_version_that_is_asked_for_in_another_way_is_told_the_right_one(asked: Any, told: str) -> None:
    assert told in str(ModelNotFound(*asked, ("tab@7",)))


def test_the_file_that_lacks_an_input_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"^in\.npz has no 'x', but y; the model wants FP32\[1\]$"):
        infer._array({"name": "x", "datatype": "FP32", "shape": [1]}, {"y": 1}, "in.npz")


def test_the_doctor_prints_json_that_says_where() -> None:
    ran = CliRunner().invoke(cli.app, ["doctor", "--json"])
    assert {entry["status"] for entry in json.loads(ran.stdout)} <= {"ok", "warn", "fail"}


@pytest.mark.parametrize("columns", [50, 80, 200])
def test_ranks_and_reasons_are_explained_whole_on_every_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"replicas": 1, "wait_ms": 123.456, "compute_ms": 1234.5, "predicted_ms": 12345.67, "cost": 1234.5}
    known = {"artifact": "openvino-fp32", "precision": "fp32", "inputs_only": "", **figures}
    late = "takes 1.23e+03 ms after a wait of 123 ms; the deadline of 50 ms [x] would pass"
    backends = [
        known | {"pool": "onnxruntime-cpu", "reason": "", "may_answer": True, "inputs_only": "finite 'features'"},
        known | {"pool": "resident-onnxruntime-cpu", "reason": late, "may_answer": False},
    ]
    nodes = "no live node has the label enginehouse.io/accelerator=gpu (ray start --labels)"
    monkeypatch.setattr(out, "width", columns)
    explain.show({"model": "a-model-with-a-long-name@12", "backends": backends, "out": {"tensorrt": nodes}})
    said = capsys.readouterr().out
    words = " ".join(said.split())
    assert f"tensorrt: {nodes}" in words
    assert f"resident-onnxruntime-cpu: {late}" in words
    assert "onnxruntime-cpu: answers finite 'features' only" in words
    assert "\u2026" not in said
    assert [line.split()[0] for line in said.splitlines() if line[:3] in (" 1 ", " - ")] == ["1", "-", "-"]


@pytest.mark.parametrize("missing", [[], ["A=1", "B=2"]])
def test_a_cluster_without_the_serving_flags_is_said_to_be_slower(
    missing: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    show({"store": "s3://models", "models": [], "pools": [], "missing_flags": missing})
    said = " ".join(capsys.readouterr().out.split())
    told = "slower than it could be: Ray was started without A=1 B=2; see `enginehouse doctor"
    assert (told in said) == bool(missing)
