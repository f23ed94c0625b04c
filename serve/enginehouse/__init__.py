"""enginehouse: the best live engine for every request, on a Ray cluster.

These names are the public API. They are imported on first use, so that `import enginehouse` costs nothing: Ray reads
its environment when it is imported, and a process may need only the bundles.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enginehouse.bundle import Bundle
    from enginehouse.client import Client
    from enginehouse.config import AppConfig, Catalog, ModelConfig, PoolConfig, RouterConfig
    from enginehouse.engines import Engine, load_engine
    from enginehouse.errors import (
        ArtifactMissing,
        BuildError,
        BundleError,
        CapacityError,
        ConfigError,
        ConversionFailed,
        DeadlineExceeded,
        DigestMismatch,
        EngineError,
        EnginehouseError,
        EngineUnavailable,
        ExportFailed,
        InferenceFailed,
        InvalidInput,
        ManifestInvalid,
        ModelNotFound,
        NoBackend,
        Overloaded,
        ParityFailed,
        ReplicaLost,
        RequestError,
        RequestTooLarge,
        StepDied,
    )
    from enginehouse.latency import LatencyTable
    from enginehouse.manifest import Artifact, Manifest
    from enginehouse.store import Store
    from enginehouse.tensors import Signature, TensorSpec

__all__ = [
    "AppConfig",
    "Artifact",
    "ArtifactMissing",
    "BuildError",
    "Bundle",
    "BundleError",
    "CapacityError",
    "Catalog",
    "Client",
    "ConfigError",
    "ConversionFailed",
    "DeadlineExceeded",
    "DigestMismatch",
    "Engine",
    "EngineError",
    "EngineUnavailable",
    "EnginehouseError",
    "ExportFailed",
    "InferenceFailed",
    "InvalidInput",
    "LatencyTable",
    "Manifest",
    "ManifestInvalid",
    "ModelConfig",
    "ModelNotFound",
    "NoBackend",
    "Overloaded",
    "ParityFailed",
    "PoolConfig",
    "ReplicaLost",
    "RequestError",
    "RequestTooLarge",
    "RouterConfig",
    "Signature",
    "StepDied",
    "Store",
    "TensorSpec",
    "load_engine",
]

_ROOM_OF = {
    "Artifact": "manifest",
    "Bundle": "bundle",
    "LatencyTable": "latency",
    "Manifest": "manifest",
    "Client": "client",
    "AppConfig": "config",
    "Catalog": "config",
    "ModelConfig": "config",
    "PoolConfig": "config",
    "RouterConfig": "config",
    "Engine": "engines",
    "load_engine": "engines",
    "Store": "store",
    "Signature": "tensors",
    "TensorSpec": "tensors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'enginehouse' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"enginehouse.{_ROOM_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
