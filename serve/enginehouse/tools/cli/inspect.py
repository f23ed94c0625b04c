"""`enginehouse inspect`: show what is in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from enginehouse.contract.bounds import described
from enginehouse.contract.bundle import MANIFEST, Bundle
from enginehouse.contract.errors import ConfigError, ModelNotFound
from enginehouse.contract.manifest import ENGINE_KINDS, FORMAT_OF, Artifact, Axis, Manifest, Parity
from enginehouse.contract.numerics import left_out
from enginehouse.contract.signature_record import MaskKind, Padding
from enginehouse.contract.store import Store
from enginehouse.contract.tensors import Signature
from enginehouse.tools.cli.console import out

_COLOURS = {"ready": "green", "unverified": "yellow", "failed": "red", "unavailable": "yellow"}
#: What is said of a choice whose measurement decides nothing, by its verdict.
_DOUBTS = {"INVALID": "measured on a busy machine", "QUICK": "measured in a hurry (--quick)"}
#: How the reasons of a choice begin that say why a table is INVALID or QUICK, which the notes say once for all tables.
_OF_A_TABLE = "The latency table of "


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
    show(out, manifest)
    _show_facts(out, manifest)


def show(console: Console, manifest: Manifest) -> None:
    """The table of artifacts, and under it the choice and whatever has to be known of each."""
    largest = manifest.max_batch
    axis = manifest.axes[0] if manifest.axes else None
    usual = f", {axis.name} {axis.opt}" if axis else ""
    title = Text(f"{manifest.name} version {manifest.version}")
    artifacts = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("artifact", "status", "runs in"):
        artifacts.add_column(column, no_wrap=True)
    for column in ("parity", f"rows 1{usual}", f"rows {largest}{usual}", "size"):
        artifacts.add_column(Text(column), justify="right", no_wrap=True)
    for artifact in manifest.artifacts:
        one, most = _latency(manifest, artifact, 1), _latency(manifest, artifact, largest)
        status = Text(artifact.status, _COLOURS[artifact.status])
        # Text and not markup: names may hold brackets.
        plain = (artifact.effective_precision or "-", _parity(artifact.parity), one, most, _size(artifact))
        artifacts.add_row(Text(artifact.name), status, *map(Text, plain))
    console.print(artifacts)
    for chosen in manifest.chosen:
        table_of = manifest.latency_of(chosen.engine, chosen.artifact)
        text = Text(f"best for {chosen.objective} ({chosen.numerics}): ")
        text.append(chosen.artifact, "bold").append(f" on {chosen.engine}")
        if table_of and table_of.verdict in _DOUBTS:
            text.append(", ").append(_DOUBTS[table_of.verdict], "yellow")
        console.print(text)
        for reason in chosen.reasons:
            # The others say why something slower than a line of the table was taken.
            if not reason.startswith(_OF_A_TABLE):
                console.print(Text(f"  {reason}", "dim"))
    if told := left_out(manifest, manifest.numerics):
        console.print(Text(f"when served: {told}"))
    notes: dict[str, list[str]] = {}
    for artifact in manifest.artifacts:
        for note in (artifact.reason, *artifact.remarks):
            if note:
                notes.setdefault(note, []).append(artifact.name)
    for verdict in _DOUBTS:
        if doubted := [table for table in manifest.latency if table.verdict == verdict]:
            each = " (each reason is in the report)" if verdict == "INVALID" else ""
            notes[f"latency is {verdict}{each}: {doubted[0].reason}"] = [table.artifact for table in doubted]
    for remark in manifest.remarks:
        console.print(Text(remark, "yellow"))
    for note, names in notes.items():
        console.print(Text(f"{', '.join(names)}: {note}", "dim"))


def _show_facts(console: Console, manifest: Manifest) -> None:
    signature = manifest.request_signature()
    batch = f"up to {manifest.max_batch} rows" if signature.batched else "none"
    facts = {
        "inputs": "\n".join(str(spec) for spec in signature.inputs),
        "outputs": "\n".join(str(spec) for spec in signature.outputs),
        "batch": batch,
        "parity": "\n".join(
            f"{artifact.name}: {_figures(artifact.parity)}" for artifact in manifest.artifacts if artifact.parity
        ),
        "axes": "\n".join(_axis(axis, signature) for axis in manifest.axes),
        "values": "\n".join(
            [f"{spec.name}: {spec.domain}" for spec in signature.inputs if spec.domain]
            + [
                f"{artifact.name} on {kind}: {described(bounds)} only"
                for artifact in manifest.artifacts
                for kind, bounds in artifact.inputs_only.items()
            ]
        ),
        "padded": "\n".join(
            f"{artifact.name} on {kind}: {_padded(padding)}"
            for artifact in manifest.artifacts
            for kind, padding in artifact.padding.items()
        ),
        "numerics": manifest.numerics,
        "preprocess": manifest.preprocess,
        "postprocess": manifest.postprocess,
        "remarks": "\n".join(manifest.remarks),
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
        if text:
            grid.add_row(Text(name, "bold"), Text(text))
    console.print()
    console.print(grid)


def _axis(axis: Axis, signature: Signature) -> str:
    """Which extents are answered and which one is usual, and where the inputs must agree on it."""
    free = next((free for free in signature.free if free.name == axis.name), None)
    if free is None or free.range is None:
        text = f"{axis.name}: any, {axis.opt} in the samples"
    elif free.verified:
        text = f"{axis.name}: {free.range[0]} to {free.range[1]}, as far as it was verified, {axis.opt} in the samples"
    else:
        text = f"{axis.name}: {axis.min} to {axis.max}, usually {axis.opt}"
    inputs = ", ".join(dict.fromkeys(name for name, _ in axis.dims))
    return f"{text}, the same in {inputs}" if len(axis.dims) > 1 else text


def _padded(padding: Padding) -> str:
    """With what rows of several lengths are made equally long, and up to which length."""
    if padding.within is None:
        return "no: built before it was recorded for which values that is right; build again"
    values = ", ".join(f"{each.name} with {each.value:g}" for each in padding.inputs)
    within = "".join(f"; {name} {low:g} to {high:g}" for name, (low, high) in padding.within.items())
    masks = "" if len(padding.masks) == len(get_args(MaskKind)) else f"; masks: {', '.join(padding.masks)}"
    return f"rows of up to {padding.edges[-1]} share calls, {values}{within}{masks}"


def _find(text: str) -> Manifest:
    if (Path(text) / MANIFEST).is_file():
        return Bundle.open(Path(text)).manifest
    text = text.rstrip("/")
    parent, _, name = text.rpartition("/")
    if "@" in name:
        # As in a catalog.
        return _find(text[: -len(name)] + name.replace("@", "/", 1))
    if models := Store(text or "/").models():
        raise ConfigError(f"{text!r} is a store, of {', '.join(models)}; name a model: {text}/{models[0]}")
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
    """Median time of a call of the usual size; a line for each engine where several run the same artifact."""
    kinds = [kind for kind in ENGINE_KINDS if FORMAT_OF[kind] == artifact.format]
    tables = [table for kind in kinds if (table := manifest.latency_of(kind, artifact.name))]
    named = len(tables) > 1
    size = manifest.axes[0].opt if manifest.axes else None
    return (
        "\n".join(f"{table.engine + ' ' if named else ''}{table.predict_ms(rows, size):.3f} ms" for table in tables)
        or "-"
    )


def _parity(parity: Parity | None) -> str:
    return "-" if parity is None else f"{parity.relative_l2:.1e}"


def _figures(parity: Parity) -> str:
    top1 = "" if parity.top1_agreement is None else f", top-1 {parity.top1_agreement:.1%}"
    if parity.metric is not None:
        top1 += f", {parity.metric.name} {parity.metric.value:.4f} (reference {parity.metric.reference:.4f})"
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
