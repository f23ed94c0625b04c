"""`enginehouse build` and `enginehouse inspect`: make a bundle, and show what is in one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from enginehouse.bundle import ENGINE_KINDS, FORMAT_OF, MANIFEST, Artifact, Bundle, Manifest, Parity
from enginehouse.cli.console import err, out, say
from enginehouse.errors import BuildError, ConfigError, ModelNotFound
from enginehouse.store import Store

_COLOURS = {"ready": "green", "done": "green", "failed": "red", "unavailable": "yellow"}


def build(
    source: Annotated[str, typer.Argument(help="package.module:factory, path/to/file.py:factory or FILE.onnx")],
    name: Annotated[str, typer.Option(help="What requests will call the model.")],
    store: Annotated[str, typer.Option(help="Folder or fsspec URL that gets NAME/VERSION/.")],
    version: Annotated[str | None, typer.Option(help="Default: one more than the store's newest.")] = None,
    formats: Annotated[str, typer.Option(help="Any of onnx, openvino, tensorrt.")] = "onnx,openvino,tensorrt",
    precisions: Annotated[str, typer.Option(help="fp32.")] = "fp32",
    max_batch: Annotated[
        int | None, typer.Option(help="Most rows of one call (default 32).", show_default=False)
    ] = None,
    no_batch: Annotated[bool, typer.Option("--no-batch", help="The model has no batch dimension.")] = False,
    samples: Annotated[Path | None, typer.Option(help="FILE.npz of real inputs, one array for each.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads (default: physical cores).", show_default=False)
    ] = None,
) -> None:
    """Build a bundle: export, convert to every format, check each against the reference, measure, publish."""
    try:
        from enginehouse_build.pipeline import build as run
        from enginehouse_build.recipe import Recipe
    except ImportError as error:
        raise BuildError(f"{error}; the build stage needs `pip install 'enginehouse[build]'`") from None
    given = {"max_batch": max_batch, "threads": threads, "version": version, "samples": samples}
    recipe = Recipe.of(
        source=source,
        name=name,
        store=store,
        formats=_listed(formats),
        precisions=_listed(precisions),
        batched=not no_batch,
        **{key: value for key, value in given.items() if value is not None},
    )
    bundle = run(recipe, _Lines(err))
    err.print()
    _show(out, bundle.manifest)
    where = f"{store.rstrip('/')}/{bundle.manifest.name}/{bundle.manifest.version}"
    say(f"\npublished [bold]{escape(where)}[/]")


def inspect(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, STORE/NAME (the newest) or STORE/NAME/VERSION")],
    json: Annotated[bool, typer.Option("--json", help="Print the manifest itself.")] = False,
) -> None:
    """Show a bundle: artifacts with parity and speed, signature, versions."""
    manifest = _find(bundle)
    if json:
        # Not through rich, which would wrap long lines.
        typer.echo(manifest.model_dump_json(indent=2))
        return
    _show(out, manifest)
    _show_facts(out, manifest)


class _Lines:
    """Draws a build's progress: one line for each stage once it has ended, a spinner meanwhile."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("")
        self._began = time.monotonic()

    def __call__(self, stage: str, outcome: str, detail: str = "") -> None:
        if outcome == "started":
            self._began = time.monotonic()
            self._status.update(f"{stage} ...")
            self._status.start()
            return
        self._status.stop()
        seconds = f"{time.monotonic() - self._began:5.1f} s"
        colour = _COLOURS[outcome]
        self._console.print(f"[{colour}]{outcome:<11}[/] {seconds}  {stage}", highlight=False)
        if detail:
            # The whole of it is printed under the table at the end.
            line = f"                     [dim]{escape(detail)}[/]"
            self._console.print(line, highlight=False, no_wrap=True, overflow="ellipsis")


def _show(console: Console, manifest: Manifest) -> None:
    largest = manifest.max_batch
    title = f"{manifest.name} version {manifest.version}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("artifact", "status", "precision"):
        table.add_column(column, no_wrap=True)
    for column in ("parity", "rows 1", f"rows {largest}", "size"):
        table.add_column(column, justify="right", no_wrap=True)
    for artifact in manifest.artifacts:
        one, most = _latency(manifest, artifact, 1), _latency(manifest, artifact, largest)
        status = f"[{_COLOURS[artifact.status]}]{artifact.status}[/]"
        effective = artifact.effective_precision or "-"
        table.add_row(artifact.name, status, effective, _parity(artifact.parity), one, most, _size(artifact))
    console.print(table)
    for artifact in manifest.artifacts:
        if artifact.reason:
            console.print(f"{artifact.name}: {escape(artifact.reason)}", style="dim", highlight=False)


def _show_facts(console: Console, manifest: Manifest) -> None:
    signature = manifest.signature.signature()
    batch = f"up to {manifest.max_batch} rows" if signature.batched else "none"
    facts = {
        "inputs": "\n".join(str(spec) for spec in signature.inputs),
        "outputs": "\n".join(str(spec) for spec in signature.outputs),
        "batch": batch,
        "parity": "\n".join(
            f"{artifact.name}: {_figures(artifact.parity)}" for artifact in manifest.artifacts if artifact.parity
        ),
        "source": manifest.source,
        "created": manifest.created,
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "hardware": ", ".join(f"{name}: {value}" for name, value in manifest.hardware.items()),
        "files": "\n".join(
            f"{file.sha256[:16]}  {file.path}" for artifact in manifest.artifacts for file in artifact.files
        ),
    }
    grid = Table.grid(padding=(0, 2))
    for name, text in facts.items():
        grid.add_row(f"[bold]{name}[/]", escape(text))
    console.print()
    console.print(grid)


def _find(text: str) -> Manifest:
    if (Path(text) / MANIFEST).is_file():
        return Bundle.open(Path(text)).manifest
    parent, _, name = text.rstrip("/").rpartition("/")
    store = Store(parent or ".")
    try:
        return store.manifest(name, store.latest(name))
    except ModelNotFound as error:
        grandparent, _, model = parent.rpartition("/")
        if model and name in (versions := Store(grandparent or ".").versions(model)):
            return Store(grandparent or ".").manifest(model, name)
        have = f"store {parent or '.'} holds {', '.join(error.args[2]) or 'no models'}"
        if model and versions:
            have = f"{model} has the versions {', '.join(versions)}"
        raise ConfigError(f"{text!r} is no bundle: {have}; give a bundle's folder or STORE/NAME") from None


def _latency(manifest: Manifest, artifact: Artifact, rows: int) -> str:
    """Median time of a call; a line for each engine where several run the same artifact."""
    kinds = [kind for kind in ENGINE_KINDS if FORMAT_OF[kind] == artifact.format]
    tables = [table for kind in kinds if (table := manifest.latency_of(kind, artifact.name))]
    named = len(tables) > 1
    return "\n".join(f"{table.engine + ' ' if named else ''}{table.predict_ms(rows):.3f} ms" for table in tables) or "-"


def _parity(parity: Parity | None) -> str:
    return "-" if parity is None else f"{parity.relative_l2:.1e}"


def _figures(parity: Parity) -> str:
    top1 = "" if parity.top1_agreement is None else f", top-1 {parity.top1_agreement:.1%}"
    rows = "/".join(str(rows) for rows in parity.rows)
    return (
        f"relative L2 {parity.relative_l2:.1e} of {parity.limit:.0e} allowed, worst row {parity.worst_row:.1e}, "
        f"cosine {parity.cosine:.6f}{top1}, at {rows} rows on {parity.engine}"
    )


def _size(artifact: Artifact) -> str:
    size = float(sum(file.bytes for file in artifact.files))
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if artifact.files else "-"
        size /= 1024
    return f"{size:.1f} GiB"


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
