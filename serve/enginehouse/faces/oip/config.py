"""The protocol's model configuration, as Triton answers it: what clients and perf_analyzer read of it."""

from __future__ import annotations

from typing import Any

from enginehouse.contract.tensors import Signature, TensorSpec, datatype

#: Where Triton's name of a datatype is not `TYPE_` and that of the protocol.
_NAMES = {"BYTES": "TYPE_STRING"}


def model_config(name: str, signature: Signature, max_batch: int) -> dict[str, Any]:
    """The document of `GET /v2/models/{name}/config`; -1 stands for a free dimension.

    Of a batched model `max_batch_size` is the most rows of an engine call, and `dims` are without the batch; requests
    may have more rows.
    """
    document: dict[str, Any] = {
        "name": name,
        "platform": "enginehouse",
        "backend": "enginehouse",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": max_batch if signature.batched else 0,
        "input": [_described(spec, signature.batched) for spec in signature.inputs],
        "output": [_described(spec, signature.batched) for spec in signature.outputs],
    }
    return document | ({"dynamic_batching": {}} if signature.batched else {})


def _described(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    kind = datatype(spec.dtype)
    dims = [-1 if dim is None else dim for dim in spec.shape[1 if batched else 0 :]]
    return {"name": spec.name, "data_type": _NAMES.get(kind, f"TYPE_{kind}"), "dims": dims}
