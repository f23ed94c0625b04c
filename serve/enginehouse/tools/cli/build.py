"""`enginehouse build`: make a bundle."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from enginehouse.contract.errors import BuildError, ConfigError
from enginehouse.contract.shown import redacted
from enginehouse.tools.cli.console import err, out, say
from enginehouse.tools.cli.inspect import show
from enginehouse.tools.cli.options import seconds

_COLOURS = {"done": "green", "cached": "cyan", "failed": "red", "unavailable": "yellow"}


def build(
    source: Annotated[
        str, typer.Argument(help="package.module:factory, path/to/file.py:factory, FILE.onnx or a recipe.toml")
    ],
    name: Annotated[str | None, typer.Option(help="What requests will call the model.")] = None,
    store: Annotated[str | None, typer.Option(help="Folder or fsspec URL that gets NAME/VERSION/.")] = None,
    version: Annotated[str | None, typer.Option(help="Default: one more than the store's newest.")] = None,
    formats: Annotated[str | None, typer.Option(help="Default: onnx,openvino,tensorrt.")] = None,
    precisions: Annotated[
        str | None, typer.Option(help="Any of fp32, fp16, bf16, int8 (default: all but int8).")
    ] = None,
    max_batch: Annotated[int | None, typer.Option(help="Most rows of one call (default 32).")] = None,
    no_batch: Annotated[bool, typer.Option("--no-batch", help="The model has no batch dimension.")] = False,
    axis: Annotated[
        list[str] | None, typer.Option(help="NAME=MIN:OPT:MAX, the range of a free dimension; may be repeated.")
    ] = None,
    pad: Annotated[
        str | None, typer.Option(help="NAME=VALUE,... that make rows longer, or none (default: inputs beside a mask).")
    ] = None,
    preprocess: Annotated[str | None, typer.Option(help="imagenet, or resize=256,crop=224,mean=...,std=...")] = None,
    postprocess: Annotated[str | None, typer.Option(help="softmax, topk:5 or nms:iou=0.5,score=0.05,max=100")] = None,
    samples: Annotated[Path | None, typer.Option(help="FILE.npz of real inputs, one array for each.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="FILE.npz that int8 takes its ranges from (default: the samples).")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="FILE.npy with a label for each sample.")] = None,
    metric: Annotated[str | None, typer.Option(help="accuracy, or module:function(outputs, labels).")] = None,
    max_drop: Annotated[float | None, typer.Option(help="How much of the metric may be lost (default 0.01).")] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="PRECISION=X, the relative L2 error that passes; may be repeated.")
    ] = None,
    numerics: Annotated[
        str | None, typer.Option(help="Which artifacts answer by default when served: full (default), int8 or any.")
    ] = None,
    objective: Annotated[str | None, typer.Option(help="throughput (default) or latency.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Bound for the choice of throughput.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure in seconds, one round of the smallest and the largest batch.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: physical cores).")] = None,
    step_timeout: Annotated[
        float | None, typer.Option(callback=seconds, help="Seconds that a step may take (default 1800).")
    ] = None,
    memory_mib: Annotated[int | None, typer.Option(help="Memory that a step may take (default: 80 %).")] = None,
    on_cluster: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster (or auto) whose GPU node makes the TensorRT engines.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Use nothing of earlier builds.")] = False,
) -> None:
    """Build a bundle: export, convert to every format and precision, check each, measure, choose, publish."""
    try:
        from enginehouse_build.inputs.recipe import Recipe
        from enginehouse_build.pipeline import build as run
    except ImportError as error:
        raise BuildError(f"{error}; the build stage needs `pip install 'enginehouse[build]'`") from None
    options: dict[str, Any] = {
        "name": name,
        "store": store,
        "version": version,
        "formats": _listed(formats),
        "precisions": _listed(precisions),
        "max_batch": max_batch,
        "batched": False if no_batch else None,
        "axes": _pairs("--axis", axis),
        "pad": pad,
        "preprocess": preprocess,
        "postprocess": postprocess,
        "samples": samples,
        "calibration": calibration,
        "labels": labels,
        "metric": metric,
        "max_drop": max_drop,
        "limits": _pairs("--limit", limit),
        "numerics": numerics,
        "objective": objective,
        "max_latency_ms": max_latency_ms,
        "quick": quick or None,
        "threads": threads,
        "step_timeout_s": step_timeout,
        "memory_mib": memory_mib,
    }
    given = {key: value for key, value in options.items() if value is not None}
    is_file = source.endswith(".toml")
    recipe = Recipe.from_file(Path(source), **given) if is_file else Recipe.of(source=source, **given)
    if on_cluster is not None and "tensorrt" not in recipe.formats:
        raise ConfigError(
            f"--on-cluster {on_cluster} has TensorRT engines made; --formats {','.join(recipe.formats)} asks for none"
        )
    began = time.monotonic()
    try:
        with _gpu_node(on_cluster) as on_node, _Lines(err) as lines:
            bundle = run(recipe, lines, fresh=fresh, on_node=on_node)
    except KeyboardInterrupt:
        say("interrupted: nothing was published; the same command goes on with what was finished")
        raise typer.Exit(130) from None
    err.print()
    show(out, bundle.manifest)
    where = f"{redacted(recipe.store).rstrip('/')}/{bundle.manifest.name}/{bundle.manifest.version}"
    what = "unchanged" if lines.unchanged else "published"
    took = f" in {time.monotonic() - began:.1f} s; for people: {where}/report.html"
    say(Text.assemble(f"\n{what} ", (where, "bold"), took))


@contextlib.contextmanager
def _gpu_node(address: str | None) -> Iterator[Callable[[Any], Any] | None]:
    """How to have something made on a GPU node of the cluster; None without a cluster."""
    if address is None:
        yield None
        return
    from enginehouse.cluster.connect import connected
    from enginehouse_build.steps.on_node import make

    with connected(address):
        from enginehouse.cluster.gpu_task import on_gpu_node

        yield functools.partial(on_gpu_node, make)


class _Lines:
    """Draws a build's progress: one line for each stage once it has ended, and a running clock meanwhile."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._live = Progress(*columns, console=console, transient=True)
        self._task: TaskID | None = None
        self._began = time.monotonic()
        self.unchanged = False

    def __enter__(self) -> _Lines:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, stage: str, outcome: str, detail: str = "") -> None:
        if self._task is not None:
            self._live.remove_task(self._task)
            self._task = None
        if outcome == "started":
            self._began = time.monotonic()
            self._task = self._live.add_task(f"{stage} ...")
            return
        self.unchanged = (stage, outcome) == ("publish", "cached")
        seconds = f"{time.monotonic() - self._began:5.1f} s"
        self._console.print(Text.assemble((f"{outcome:<11}", _COLOURS[outcome]), f" {seconds}  {stage}"))
        if detail:
            # The whole of it is printed under the table at the end.
            self._console.print(Text(f"{' ' * 21}{detail}", "dim"), no_wrap=True, overflow="ellipsis")


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _pairs(option: str, texts: list[str] | None) -> dict[str, str] | None:
    if not texts:
        return None
    pairs: dict[str, str] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key or not value:
            raise ConfigError(f"{option} {text}: write NAME=VALUE")
        if key in pairs:
            raise ConfigError(f"{option} {key} is given twice: {pairs[key]} and {value}; give it once")
        pairs[key] = value
    return pairs
