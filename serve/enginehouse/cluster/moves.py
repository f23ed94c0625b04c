"""What a model may be changed to while clients use it: refused before the cluster hears of it."""

from __future__ import annotations

from enginehouse.contract import numerics
from enginehouse.contract.compatibility import differences
from enginehouse.contract.config import Catalog, ModelConfig
from enginehouse.contract.errors import ConfigError, EnginehouseError
from enginehouse.contract.store import Store


def pinned(store: str, model: ModelConfig) -> ModelConfig:
    """`model` with the digest of the bundle that `store` has now, unless it names one."""
    if model.digest:
        return model
    return model.model_copy(update={"digest": Store(store).digest(model.name, model.version)})


def check_settings(store: str, model: ModelConfig) -> None:
    """Raise ConfigError, with what there is, when no artifact of `model`, a bundle of `store`, may answer as it is set.

    Or when calls would have more rows than its build has verified.
    """
    manifest = Store(store).manifest(model.name, model.version)
    numerics.check(manifest, numerics.rule_of(model, manifest))
    if manifest.request_signature().batched and (model.max_batch_size or 0) > manifest.max_batch:
        raise ConfigError(
            f"--max-batch-size {model.max_batch_size}: {model.id} was verified with up to {manifest.max_batch} rows in "
            f"a batch; say at most {manifest.max_batch}, or build it with --max-batch {model.max_batch_size}"
        )


def check_signature(before: Catalog, store: str, model: ModelConfig) -> None:
    """Raise ConfigError when clients of the version in `before` could not go on with `model`, a bundle of `store`."""
    old = before.find(model.name)
    if old is None or (before.store, old.id, old.digest) == (store, model.id, model.digest):
        return
    new = Store(store).manifest(model.name, model.version)
    try:
        known = Store(before.store).manifest(old.name, old.version)
    except (EnginehouseError, OSError) as error:
        raise ConfigError(
            f"{model.id} cannot be compared with {old.id}, which is served: {error}; --force changes to it all the same"
        ) from None
    if found := differences(known.request_signature(), new.request_signature()):
        keep = f"name {old.id} to keep that, " if before.store == store else ""
        raise ConfigError(
            f"clients of {old.id} could not go on with {model.id}: {'; '.join(found)}; {keep}serve {model.id} under "
            "another name, or say --force to change to it all the same"
        )
