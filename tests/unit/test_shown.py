"""What is shown, logged or sent: no credentials, nothing that a terminal obeys, nothing that splits a log's line."""

from __future__ import annotations

import asyncio
import io
import itertools
import logging
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text
from starlette.requests import Request
from tests.integration import bundles
from tests.unit.test_errors import CLASSES
from typer.testing import CliRunner

from enginehouse.contract import errors
from enginehouse.contract.bundle import MANIFEST
from enginehouse.contract.errors import ArtifactMissing, EnginehouseError
from enginehouse.contract.manifest import Manifest
from enginehouse.contract.shown import OneLine, placeless, plain, redacted
from enginehouse.contract.store import Store
from enginehouse.faces.http import routes
from enginehouse.tools import cli
from enginehouse.tools.cli import console as consoles
from enginehouse.tools.cli import inspect
from enginehouse.tools.cli.serve import catalog_of

SECRETS = ("hunter2", "p%40ss", "p@ss:w0rd", "a+b=c&d")
URLS = [
    *(f"{scheme}://user:{secret}@127.0.0.1:9/models" for scheme in ("http", "https", "s3") for secret in SECRETS),
    *(f"simplecache::https://:{secret}@127.0.0.1:9/models" for secret in SECRETS),
    *(f"https://127.0.0.1:9/models?X-Amz-Signature={secret}&x=1" for secret in SECRETS),
    *(f"abfs://models@127.0.0.1:9/a?sig={secret}" for secret in SECRETS),
    *(f"http://{secret}@127.0.0.1:9/models" for secret in SECRETS),
]
QUOTED: list[Callable[[str], str]] = [
    str,
    repr,
    lambda url: f"store {url!r} cannot be read: ClientError: 403, url='{url}/m/1/manifest.json'",
    lambda url: f"({url})",
    lambda url: f"first {url}, then <{url}>; see https://docs.invalid/page",
]
HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07",
    "[/red]",
    "[bold",
    "[link=file:///etc/passwd]x[/link]",
    "a\rb",
    "\x9b31m",
    "\u202egnp",
]


def secret_of(url: str) -> str:
    return next(secret for secret in SECRETS if secret in url)


@pytest.mark.parametrize("url", URLS)
def test_credentials_are_taken_out_of_whatever_quotes_a_url(url: str) -> None:
    for quoted in QUOTED:
        shown = redacted(quoted(url))
        assert secret_of(url) not in shown
        assert "127.0.0.1:9" in shown and shown == redacted(shown)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/srv/models?x",
        "a@b.c",
        "s3://bucket/models",
        "https://host:80/a/b",
        "x://",
        "abfs://models@me.invalid/a",
        "who@host: path/a?b",
    ],
)
def test_what_has_none_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("cls", CLASSES)
def test_no_error_tells_them(cls: type[EnginehouseError]) -> None:
    url = "https://user:hunter2@host/store?sig=hunter2"
    made = _made(cls, f"store {url!r} failed")
    for error in (made, pickle.loads(pickle.dumps(made))):
        assert "hunter2" not in f"{error} {error!r}"
        assert type(error) is cls


def _made(cls: type[EnginehouseError], text: str) -> EnginehouseError:
    for count in (1, 2, 3):
        try:
            return cls(*[text] * count)
        except TypeError:
            continue
    raise AssertionError(cls)


@pytest.mark.parametrize("url", [url for url in URLS if url.startswith("http")])
def test_nor_does_a_store_that_does_not_answer(url: str, caplog: pytest.LogCaptureFixture) -> None:
    acts: list[Callable[[Store], object]] = [
        lambda store: store.models(),
        lambda store: store.manifest("m", "1"),
        lambda store: store.open("m", "1"),
        lambda store: store.check_writable("m"),
    ]
    for act in acts:
        with pytest.raises(EnginehouseError) as caught:
            act(Store(url))
        told = "".join(traceback.format_exception(caught.value)) + caplog.text
        assert secret_of(url) not in told
    with pytest.raises(EnginehouseError) as caught:
        catalog_of(url, "m", None or "")
    assert secret_of(url) not in str(caught.value)


def test_a_config_that_is_printed_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://user:hunter2@127.0.0.1:9/models"
    from enginehouse.contract.config import Catalog
    from enginehouse.tools.cli import serve

    monkeypatch.setattr(serve, "catalog_of", lambda *_: Catalog.parse({"store": url, "models": []}))
    told = CliRunner().invoke(cli.app, ["serve", url, "--print-config"])
    assert told.exit_code == 0 and "***@127.0.0.1:9/models" in told.output
    assert "hunter2" not in told.output and "left out" in told.output


def test_an_error_inside_is_one_line_of_the_log_and_its_number_is_all_that_is_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = "/v2/models/m\nERROR forged /infer"
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "server": ("h", 80)}
    for error in (RuntimeError("at /srv/x:\n1"), ArtifactMissing("/srv/x", "gone"), EnginehouseError("a\x1b[1m\nb")):
        caplog.clear()
        answered = routes._our_error if isinstance(error, EnginehouseError) else routes._any_error
        answer = asyncio.run(answered(Request(scope), error))
        told = bytes(answer.body).decode()
        (record,) = caplog.records
        assert "srv" not in told and answer.status_code == 500
        assert plain(record.getMessage()) == record.getMessage()
        assert told.rpartition(" ")[2].strip('"}') in record.getMessage()


def test_clients_are_not_told_where_things_are() -> None:
    for place in ("/srv/models/m/1/onnx/model.onnx", "s3://bucket/models/m", "https://host:9000/x?y"):
        for quoted in QUOTED[1:]:
            assert "srv" not in (told := placeless(quoted(place))) and "bucket" not in told and "9000" not in told
    assert placeless("see /v2/models/m/ready; 3 rows/s of image/png") == "see /v2/models/m/ready; 3 rows/s of image/png"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_is_told_nothing(text: str) -> None:
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    table.add_row(Text(text, "red"))
    for each in (text, Text(text, "bold"), table):
        stream = io.StringIO()
        console = consoles.console(file=stream, width=80, force_terminal=True, color_system=None)
        console.print(each, style="dim")
        told = stream.getvalue()
        assert all(character.isprintable() or character == "\n" for character in told), repr(told)
        if text.isprintable():
            assert text in told


@pytest.mark.parametrize(("text", "place"), list(itertools.product(HOSTILE, ["source", "remarks", "name", "artifact"])))
def test_nor_by_a_manifest(tmp_path: Path, text: str, place: str) -> None:
    manifest = Manifest.parse((bundles.publish(tmp_path, "m", "1", 2) / MANIFEST).read_bytes(), "m")
    changed: Any = {"source": text, "remarks": [text], "name": text}.get(place)
    if place == "artifact":
        place, changed = "artifacts", [manifest.artifacts[0].model_copy(update={"name": text, "reason": text})]
    hostile = manifest.model_copy(update={place: changed})
    for console in (consoles.console(file=io.StringIO(), width=120), Console(file=io.StringIO(), width=120)):
        inspect.show(console, hostile)
        inspect._show_facts(console, hostile)
    stream = io.StringIO()
    console = consoles.console(file=stream, width=120)
    inspect.show(console, hostile)
    inspect._show_facts(console, hostile)
    assert plain(stream.getvalue(), lines=True) == stream.getvalue()


def test_errors_are_shown_as_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(consoles, "err", consoles.console(file=stream, width=200))
    for text in HOSTILE:
        consoles.fail(ArtifactMissing(text, "https://u:hunter2@host/x"))
    told = stream.getvalue()
    assert "hunter2" not in told and "[/red]" in told
    assert plain(told, lines=True) == told


@pytest.mark.parametrize(
    "text", ["a\nb", "a\r\nb", "a\x1b[1mb", "a\u2028b", "a\x85b", "%s %d", "https://u:hunter2@h/a"]
)
def test_a_log_has_one_line_for_each_record(text: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.addFilter(OneLine())
    logger.warning("%s to %s", text, "here")
    logger.warning(text.replace("%", "%%") if "%" in text else text)
    told = stream.getvalue()
    assert len(told.splitlines()) == 2 and "hunter2" not in told and "\x1b" not in told


def test_the_errors_know_one_function() -> None:
    assert errors.redacted is redacted
