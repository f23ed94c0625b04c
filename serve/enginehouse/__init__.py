"""enginehouse: the best live engine for every request, on a Ray cluster.

These names are the public API. They are imported on first use, so that `import enginehouse` costs nothing: Ray reads
its environment when it is imported, and a process may need only the bundles.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enginehouse.contract.bundle import Bundle
    from enginehouse.contract.config import AppConfig, Catalog, ModelConfig, PoolConfig, RouterConfig
    from enginehouse.contract.errors import (
        ArtifactMissing,
        BodyTimeout,
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
        PermissionDenied,
        RateExceeded,
        ReplicaLost,
        RequestError,
        RequestTooLarge,
        StepDied,
        StoreUnavailable,
        Unauthenticated,
        UnsupportedEncoding,
    )
    from enginehouse.contract.latency import LatencyTable
    from enginehouse.contract.manifest import Artifact, Manifest
    from enginehouse.contract.store import Store
    from enginehouse.contract.tensors import Signature, TensorSpec
    from enginehouse.engines import Engine, load_engine
    from enginehouse.faces.python.client import Client
    from enginehouse.faces.scoring.start import score

__all__ = [
    "AppConfig",
    "Artifact",
    "ArtifactMissing",
    "BodyTimeout",
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
    "PermissionDenied",
    "PoolConfig",
    "RateExceeded",
    "ReplicaLost",
    "RequestError",
    "RequestTooLarge",
    "RouterConfig",
    "Signature",
    "StepDied",
    "Store",
    "StoreUnavailable",
    "TensorSpec",
    "Unauthenticated",
    "UnsupportedEncoding",
    "load_engine",
    "score",
]

#: Where each name is that is not an error.
_MODULE_OF = {
    "Artifact": "contract.manifest",
    "Bundle": "contract.bundle",
    "LatencyTable": "contract.latency",
    "Manifest": "contract.manifest",
    "Client": "faces.python.client",
    "score": "faces.scoring.start",
    "AppConfig": "contract.config",
    "Catalog": "contract.config",
    "ModelConfig": "contract.config",
    "PoolConfig": "contract.config",
    "RouterConfig": "contract.config",
    "Engine": "engines",
    "load_engine": "engines",
    "Store": "contract.store",
    "Signature": "contract.tensors",
    "TensorSpec": "contract.tensors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'enginehouse' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"enginehouse.{_MODULE_OF.get(name, 'contract.errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
