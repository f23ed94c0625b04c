"""The report: everything that the manifest knows, on one page that needs nothing else and lets nothing in."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import pytest

from enginehouse.contract.manifest import Artifact, Axis, Manifest, Step
from enginehouse_build.report import render, text
from enginehouse_build.report.findings import Findings

from . import manifests
from .manifests import bare, encoder, hopeless, resnet18
from .pages import Page, read

EVERY = pytest.mark.parametrize("made", [resnet18, encoder, hopeless, bare])
Make = Callable[[], Manifest]


@EVERY
def test_every_element_is_closed_in_order(made: Make) -> None:
    page = Page(render(made()))
    assert page.open == []
    assert len(page.elements) > 60


@EVERY
def test_the_page_needs_no_other_file_and_no_network(made: Make) -> None:
    page = render(made())
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "url(" not in page
    for tag, attributes in Page(page).elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        if "href" in attributes:
            assert attributes["href"].startswith("#mark-" if tag == "use" else "./logs/")


@EVERY
def test_a_page_is_small_and_the_same_every_time(made: Make) -> None:
    page = render(made())
    assert page == render(made())
    assert len(page.encode()) < 100_000


@EVERY
def test_every_artifact_reason_remark_and_figure_is_shown(made: Make) -> None:
    manifest = made()
    page = read(manifest)
    for artifact in manifest.artifacts:
        assert f"{artifact.name} {artifact.status}" in page
        for said in (artifact.reason, *artifact.remarks):
            assert (said or "") in page
        for name, value in artifact.requires.items():
            assert f"{name} {value}" in page
        for file in artifact.files:
            assert f"{file.path} {text.size(file.bytes)} {file.sha256}" in page
        if artifact.parity is not None:
            parity = artifact.parity
            assert parity.explanation in page
            assert f"{text.small(parity.relative_l2)} of {text.small(parity.limit)}" in page
            distances = " ".join(text.small(each) for each in (parity.relative_l2, parity.limit, parity.worst_row))
            wrong = text.share(parity.differing)
            assert f"{parity.engine} {parity.output} {distances} {parity.cosine:.7f} {wrong}" in page
            if parity.top1_agreement is not None:
                assert f"{text.share(parity.top1_agreement)} of {parity.top1_rows} rows" in page
            if parity.metric is not None:
                assert f"{parity.metric.value:.4f} {parity.metric.name} {0 - parity.metric.drop:+.4f}" in page
                assert (
                    f"reference {parity.metric.reference:.4f}, drop {parity.metric.drop:.4f} of at most 0.005" in page
                )


@EVERY
def test_every_measured_point_and_verdict_is_shown(made: Make) -> None:
    manifest = made()
    page = read(manifest)
    for table in manifest.latency:
        assert f"{table.artifact} {table.engine} {table.verdict} {table.reason}".strip() in page
        for point in table.points:
            figures = f"{text.number(point.median_ms)} {text.number(point.p90_ms)}, {text.number(point.min_ms)}"
            assert f"{figures} {point.count:,} {text.TIMES}, {text.share(point.spread)}" in page


@EVERY
def test_every_step_version_and_setting_is_shown(made: Make) -> None:
    manifest = made()
    page = read(manifest)
    for step in manifest.steps:
        peak = f" {step.peak_mib:,} MiB" if step.peak_mib else ""
        assert f"{step.name} {text.seconds(step.seconds)}{peak} {step.outcome}" in page
        assert step.detail in page
    facts = {**manifest.hardware, **manifest.versions}
    facts |= {name: text.plain(value) for name, value in manifest.recipe.items()}
    for name, value in facts.items():
        assert f"{name} {value}" in page
    assert manifest.key in page
    for tensor in manifest.signature.inputs + manifest.signature.outputs:
        assert f"{tensor.name} {tensor.datatype} [" in page
    for file in manifest.files:
        assert file.sha256 in page


def test_the_page_opens_with_what_to_serve_and_how_much_faster_that_is() -> None:
    page = read(resnet18())
    assert (
        "Serve openvino-bf16 on openvino-cpu: 211 rows/s in calls of 32 rows, "
        f"2.20{text.TIMES} the throughput of fp32 ONNX on onnxruntime-cpu (95.8 rows/s)." in page
    )
    assert "Where int8 answers will do, serve openvino-int8 on openvino-cpu: 404 rows/s" in page
    for chosen in resnet18().chosen:
        for reason in chosen.reasons:
            assert reason in page


def choose(manifest: Manifest, engine: str, artifact: str) -> Manifest:
    """`manifest` with this one choice, made for the latency of one row."""
    (chosen,) = encoder().chosen
    return manifest.model_copy(update={"chosen": (chosen.model_copy(update={"engine": engine, "artifact": artifact}),)})


def test_a_choice_for_latency_speaks_of_the_time_of_a_call_at_the_size_it_was_measured() -> None:
    page = read(choose(encoder(), "openvino-cpu", "openvino-int8"))
    assert "on openvino-cpu: 1 row in 3.60 ms, 2.50" in page
    assert "as fast as fp32 ONNX on onnxruntime-cpu (9.00 ms), at sequence 128." in page


def test_a_choice_is_compared_with_the_baseline_on_hardware_of_its_kind() -> None:
    manifest = encoder()
    fast = manifests.table("tensorrt", "tensorrt-fp16", 0.7, 0.05, (128,))
    more = {
        "artifacts": (*manifest.artifacts, manifests.artifact("tensorrt", "fp16")),
        "latency": (*manifest.latency, fast),
    }
    page = read(choose(manifest.model_copy(update=more), "tensorrt", "tensorrt-fp16"))
    assert f"1 row in 0.700 ms, 3.00{text.TIMES} as fast as fp32 ONNX on onnxruntime-cuda (2.10 ms)" in page


def test_a_choice_that_is_the_baseline_itself_is_not_compared_with_itself() -> None:
    for engine, time in (("onnxruntime-cpu", "9.00"), ("onnxruntime-cuda", "2.10")):
        page = read(choose(encoder(), engine, "onnx-fp32"))
        assert f"Serve onnx-fp32 on {engine}: 1 row in {time} ms, at sequence 128." in page


def test_a_choice_whose_measurement_is_invalid_says_so_next_to_it() -> None:
    manifest = resnet18()
    tables = tuple(
        table.model_copy(update={"verdict": "INVALID", "reason": "too noisy"})
        if table.artifact == "openvino-bf16"
        else table
        for table in manifest.latency
    )
    assert "The measurement behind this choice is INVALID: too noisy" in read(
        manifest.model_copy(update={"latency": tables})
    )
    assert "The measurement behind this choice" not in read(manifest)


def test_no_choice_is_explained() -> None:
    unmeasured = resnet18().model_copy(update={"chosen": (), "latency": ()})
    assert "No engine is recommended: none was measured on the machine that built this." in read(unmeasured)
    assert "Nothing in this bundle can be served." in read(hopeless())


@EVERY
def test_without_a_latency_table_the_page_has_no_speed_and_no_holes(made: Make) -> None:
    manifest = made().model_copy(update={"latency": (), "chosen": ()})
    page = render(manifest)
    assert 'id="speed"' not in page
    assert "<figure>" not in page
    assert all(artifact.name in page for artifact in manifest.artifacts)


def test_each_engine_is_shown_with_its_times_and_how_they_compare_with_the_baseline() -> None:
    page = read(resnet18())
    assert f"onnxruntime-cpu 4.40 ms 2.68{text.TIMES} 95.9 ms 3.49{text.TIMES} 334 rows/s at 32 rows" in page
    assert f"onnxruntime-cpu 14.9 ms 0.79{text.TIMES} 421 ms 0.79{text.TIMES} 76.0 rows/s at 32 rows" in page
    assert "ratios are to onnx-fp32 on onnxruntime-cpu, the speed-up at 32 rows" in page


def test_without_a_baseline_there_are_no_ratios() -> None:
    manifest = resnet18()
    page = read(manifest.model_copy(update={"latency": manifest.latency[1:], "chosen": ()}))
    assert "Speed-up" not in page
    assert "ratios are to" not in page


def test_a_precision_that_is_not_what_was_asked_for_is_pointed_out() -> None:
    assert "fp16 runs in fp32" in read(resnet18())
    assert read(resnet18()).count("runs in") == 1


def test_whole_values_that_differ_are_pointed_out() -> None:
    manifest = resnet18()
    first = manifest.artifacts[0]
    assert first.parity is not None
    wrong = first.model_copy(update={"parity": first.parity.model_copy(update={"differing": 0.125})})
    page = read(manifest.model_copy(update={"artifacts": (wrong, *manifest.artifacts[1:])}))
    assert "4.1e-7 of 1e-4 12.5 % of the whole values differ" in page
    assert "whole values" not in read(manifest)


def test_an_engine_that_could_not_be_measured_says_why_next_to_its_artifact() -> None:
    manifest = resnet18()
    fault = Step(name="profile onnx-fp32 on onnxruntime-cpu", outcome="failed", detail="it hung for 60 s")
    page = read(manifest.model_copy(update={"latency": manifest.latency[1:], "chosen": (), "steps": (fault,)}))
    assert "not measured profile onnx-fp32 on onnxruntime-cpu: it hung for 60 s onnx-fp16" in page


def test_a_free_dimension_has_the_name_of_the_batch_or_of_its_axis() -> None:
    page = read(encoder())
    assert "ids INT64 [batch, sequence]" in page
    assert "sequence 1 to 512, typically 100, the cost axis" in page
    assert "image UINT8 [free, 224, 224, 3]" in read(hopeless())


def test_a_long_reason_is_folded_but_complete() -> None:
    said = hopeless().artifacts[1].reason or ""
    page = render(hopeless())
    assert f"<pre>{html.escape(said)}</pre>" in page
    assert '<details class="long">' in page
    assert '<details class="long">' not in render(resnet18())


def test_text_of_the_manifest_stays_text() -> None:
    evil = "<script>alert('x')</script>\"onload=\"&{{ 7 * 7 }}"
    manifest = resnet18()
    renamed = Artifact(name=evil, format="onnx", precision="fp32", status="failed", reason=evil, remarks=(evil,))
    first = manifest.latency[0].model_copy(update={"host": evil, "verdict": "INVALID", "reason": evil, "engine": evil})
    page = render(
        manifest.model_copy(
            update={
                **dict.fromkeys(("name", "version", "source", "created", "preprocess", "postprocess", "key"), evil),
                "artifacts": (*manifest.artifacts, renamed),
                "latency": (first, *manifest.latency[1:]),
                "axes": (Axis(name=evil, min=1, opt=1, max=1, dims=((evil, 1),)),),
                **{facts: {evil: evil} for facts in ("versions", "hardware", "recipe")},
                "remarks": (evil,),
                "chosen": tuple(choice.model_copy(update={"reasons": (evil,)}) for choice in manifest.chosen),
                "steps": (Step(name=evil, outcome="failed", detail=evil, log=evil),),
            }
        )
    )
    taken = Page(page)
    assert taken.open == []
    assert [tag for tag, _ in taken.elements].count("script") == 1
    assert taken.text.count("{{ 7 * 7 }}") > 20
    assert not any(name.startswith("on") for _, attributes in taken.elements for name in attributes)


@pytest.mark.parametrize("log", ["javascript:alert(1)", "//elsewhere.example/x", "data:text/html,x", "a b#c?d"])
def test_a_link_leads_nowhere_but_into_the_bundle(log: str) -> None:
    page = Page(render(resnet18().model_copy(update={"steps": (Step(name="odd", outcome="done", log=log),)})))
    (link,) = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert link.startswith("./")
    assert not set(link) & set(":#? ")


def test_what_went_wrong_links_to_its_log() -> None:
    page = render(resnet18())
    overview = page[page.index('class="overview"') : page.index('id="speed"')]
    assert 'href="./logs/convert-onnx-bf16.txt"' in overview
    assert 'href="./logs/convert-openvino-bf16.txt"' not in overview
    assert "./logs/convert%20tensorrt-fp32.txt" in render(hopeless())


def test_only_the_script_of_the_page_may_run() -> None:
    policy = next(
        a["content"] for _, a in Page(render(bare())).elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='$", policy)


def test_a_point_that_was_not_measured_is_left_out_and_not_predicted() -> None:
    manifest = resnet18()
    short = manifest.latency[0].model_copy(update={"points": manifest.latency[0].points[:3]})
    findings = Findings(manifest.model_copy(update={"latency": (short, *manifest.latency[1:])}))
    first = findings.speeds[0]
    assert (first.one is not None, first.most, first.most_ratio) == (True, None, None)
    assert all(speed.most_ratio is None for speed in findings.speeds)
    assert "in calls of 32 rows." in read(findings.manifest)


def test_figures_are_short_and_never_rounded_to_a_lie() -> None:
    numbers = [text.number(value) for value in (0, 0.04, 4.123, 41.23, 99.96, 1240.4)]
    assert numbers == ["0", "0.0400", "4.12", "41.2", "100", "1,240"]
    marks = [text.magnitude(value) for value in (0, 0.05, 5000, 2e4, 5e5, 1e6)]
    assert marks == ["0", "0.05", "5,000", "20k", "500k", "1M"]
    assert [text.small(value) for value in (0, 1e-4, 3.14e-4)] == ["0", "1e-4", "3.1e-4"]
    assert [text.share(value) for value in (0.5, 0.9998, 1.0)] == ["50.0 %", "99.980 %", "100 %"]
    assert [text.seconds(value) for value in (0, 0.042, 3.14, 125)] == ["0.0 s", "0.04 s", "3.1 s", "2 min 05 s"]
    assert [text.size(value) for value in (512, 46_800_000, 3 << 30)] == ["512 B", "44.6 MiB", "3.00 GiB"]
