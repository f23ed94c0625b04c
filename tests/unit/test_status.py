"""What `status` prints: reasons say whose they are, on one line each; the whole of it is in `--json`."""

from __future__ import annotations

from typing import Any

import pytest

from enginehouse.tools.cli.status import LINE, show

CONVERTER = "\n".join(["ConversionFailed: the converter says", *("  a line of a graph" for _ in range(40))])


def backend(pool: str, state: str, reason: str, inputs_only: str = "") -> dict[str, Any]:
    facts = {"pool": pool, "state": state, "reason": reason, "inputs_only": inputs_only}
    return facts | {"artifact": "", "precision": "", "ready": 0, "replicas": 1}


def entry(name: str, *backends: dict[str, Any], reason: str = "") -> dict[str, Any]:
    facts = {"name": name, "wanted": "2", "serving": "2", "ready": True, "state": "ready", "reason": reason}
    return facts | {"settings": {}, "left_out": "", "backends": list(backends)}


def said(capsys: pytest.CaptureFixture[str], *models: dict[str, Any]) -> list[str]:
    show({"store": "s3://models", "models": list(models), "pools": [], "missing_flags": []})
    return [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]


def test_reasons_say_which_model_they_are_of(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = backend("tensorrt", "unavailable", "the bundle has no tensorrt artifact")
    nodes = backend("gpu", "no-hardware", "no live node has the label gpu")
    bound = backend("ort", "live", "", "finite 'x'")
    lines = said(capsys, entry("tab", nothing, nodes), entry("digits", nothing, nodes, bound, reason="it is so"))
    assert lines[-5:] == [
        "tab@2, digits@2: tensorrt: the bundle has no tensorrt artifact",
        "gpu: no live node has the label gpu",
        "digits@2: it is so",
        "digits@2: ort answers finite 'x' only",
        "store: s3://models",
    ]


def test_what_many_models_share_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = backend("tensorrt", "unavailable", "the bundle has no tensorrt artifact")
    lines = said(capsys, *(entry(name, nothing) for name in "abcdef"))
    assert [line for line in lines if "artifact" in line][-1].startswith("a@2, b@2, c@2 and 3 more: tensorrt: the")


@pytest.mark.parametrize("reason", [CONVERTER, "x" * 5000, f"a b\n{'y z ' * 200}", "\r\n".join("many lines " * 200)])
def test_a_long_reason_is_one_line_that_ends_somewhere(capsys: pytest.CaptureFixture[str], reason: str) -> None:
    lines = said(capsys, entry("tab", backend("tensorrt", "failing", reason)))
    (line,) = [line for line in lines if line.startswith("tab@2:")]
    assert line.startswith("tab@2: tensorrt: ")
    assert line.endswith(" ...")
    assert len(line) <= LINE
    assert "the whole reasons: `enginehouse status --json`" in lines


def test_a_replica_that_listens_on_all_interfaces_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    pools = [{"name": "ort", "everywhere": ["192.0.2.1:7"]}, {"name": "ov", "everywhere": []}, {"name": "old"}]
    show({"store": "s3://models", "models": [], "pools": pools, "missing_flags": []})
    told = [line for line in capsys.readouterr().out.splitlines() if "all interfaces" in line]
    assert len(told) == 1
    assert told[0].strip().startswith("ort: its replica for 192.0.2.1:7 listens on all interfaces")
    assert told[0].endswith("--node-ip-address")
