"""`enginehouse models`: add, update, remove and list models on a running application."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from enginehouse.cluster import connect
from enginehouse.contract.config import Catalog, ModelConfig
from enginehouse.contract.errors import ConfigError, NoBackend
from enginehouse.contract.manifest import NumericsRule
from enginehouse.tools.cli.cluster import on_cluster
from enginehouse.tools.cli.console import out, say
from enginehouse.tools.cli.options import seconds
from enginehouse.tools.cli.serve import model_of, moved, wait_until_served
from enginehouse.tools.cli.status import Address, failing, say_what_failed, show

app = typer.Typer(no_args_is_help=True, help="Add, update, remove and list models of a running application.")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Model in the application's store, `name` or `name@version`.")],
    numerics: Annotated[
        NumericsRule | None, typer.Option(help="Which artifacts may answer; default: what the bundle says, else full.")
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Most rows merged into one batch; default: the best measured.")
    ] = None,
    batch_wait_ms: Annotated[
        float | None, typer.Option(min=0, max=10_000, help="How long a batch waits for more requests; default 0.")
    ] = None,
    resident: Annotated[
        bool | None, typer.Option(help="Let routers host it too, which saves the hop to a pool; default: not.")
    ] = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Settings that are not named go back to their defaults, and are not kept.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Also a version that clients of the present one could not go on with, or that fails on some backends.",
        ),
    ] = False,
    timeout: Annotated[float, typer.Option(callback=seconds, help="Seconds to wait until it answers.")] = 120,
    address: Address = "auto",
) -> None:
    """Serve a model, or move it to another version, which keeps its settings, or change those.

    `name` alone is the newest version, or the served one where the command names settings. What cannot be loaded, be
    it on one backend of those that are live now, leaves in place what was there.
    """
    with on_cluster(address):
        from enginehouse.cluster import deploy

        before = deploy.live_catalog()
        old = before.find(name.partition("@")[0])
        named: dict[str, Any] = {
            "numerics": numerics,
            "max_batch_size": max_batch_size,
            "batch_wait_ms": batch_wait_ms,
            "resident": resident,
        }
        only_settings = reset or any(value is not None for value in named.values())
        model = model_of(before.store, entry_of(name, old, only_settings), None if reset else old, **named)
        if force:
            model = model.model_copy(update={"forced": True})
        deploy.add_model(model, force)
        say(f"{moved(model, old)}: loading{_kept(model, named)}")

        def check() -> None:
            now = deploy.live_catalog().find(model.name)
            if now != model:
                what = f"replaced by {_with_settings(now)}" if now else "removed"
                raise ConfigError(f"{_with_settings(model)} was {what} by another command meanwhile")

        # For this model alone: others may be loading, changed or removed by other commands meanwhile.
        document = wait_until_served(Catalog(store=before.store, models=(model,)), timeout, check=check)
        entry = next(entry for entry in document["models"] if entry["name"] == model.name)
        if entry["state"] == "failed":
            deploy.take_back(model, old)
            raise NoBackend(_not_changed(model, old, entry))
        show(document | {"models": [entry]})
        say_what_failed(entry)


def _not_changed(model: ModelConfig, old: ModelConfig | None, entry: dict[str, Any]) -> str:
    """Why `model` does not answer, and what does: `entry` is of the status."""
    to_blame = failing(entry)
    is_partial = bool(to_blame) and any(backend["state"] in ("live", "idle") for backend in entry["backends"])
    if not is_partial:
        to_blame += [backend for backend in entry["backends"] if backend["state"] == "unavailable"]
    reasons = [f"{backend['pool']}: {backend['reason']}" for backend in to_blame]
    if entry["reason"] and not is_partial:
        reasons.insert(0, entry["reason"])
    why = "; ".join(reasons)
    if old is None:
        return f"{model.id} was not added: {why}"
    if is_partial:
        why += "; the other backends could go on with it: --force changes to it all the same"
    if old.id == model.id:
        return f"{old.id} goes on with the settings it had; with the new ones it cannot serve: {why}"
    return f"{old.id} goes on serving, {model.id} cannot: {why}"


def _with_settings(model: ModelConfig) -> str:
    told = ", ".join(f"{key} {value}" for key, value in model.settings().items())
    return f"{model.id} ({told})" if told else model.id


def entry_of(name: str, live: ModelConfig | None, only_settings: bool) -> str:
    """What is asked for by `name`: with `only_settings` and no version that which is `live`, which they are for."""
    return live.id if live is not None and only_settings and "@" not in name else name


def _kept(model: ModelConfig, named: dict[str, Any]) -> str:
    """Settings that are not the defaults and were not named by this command."""
    kept = {key: value for key, value in model.settings().items() if named[key] is None}
    told = ", ".join(f"{key} {value}" for key, value in kept.items())
    return f", with {told} as before (--reset for the defaults)" if told else ""


@app.command()
def remove(name: Annotated[str, typer.Argument(help="Model to stop serving.")], address: Address = "auto") -> None:
    """Stop serving a model; its engines are unloaded once they are idle."""
    with connect.connected(address) as found:
        from enginehouse.cluster import deploy

        deploy.remove_model(name)
    say(f"{name}: removed from the cluster at {found}")


@app.command("list")
def list_models(address: Address = "auto") -> None:
    """List what the application has been told to serve."""
    with on_cluster(address):
        from enginehouse.cluster import deploy

        catalog = deploy.live_catalog()
    for model in catalog.models:
        out.print(model.id, highlight=False)
