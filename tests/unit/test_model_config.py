"""Model configurations as Triton's clients read them."""

from __future__ import annotations

import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from enginehouse.contract.tensors import DTYPES, Signature, TensorSpec
from enginehouse.faces import oip


def test_every_datatype_has_its_name_and_dims_are_without_the_batch() -> None:
    inputs = tuple(TensorSpec(kind, dtype, (None, 3, None)) for kind, dtype in DTYPES.items())
    signature = Signature(inputs, (TensorSpec("y", np.dtype(np.float32), (None, 10)),))
    document = oip.model_config("m", signature, 32)
    config = json_format.ParseDict(document, model_config_pb2.ModelConfig())
    assert config.max_batch_size == 32 and config.HasField("dynamic_batching")
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [(kind, [3, -1]) for kind in DTYPES]
    assert len({tensor.data_type for tensor in config.input}) == len(DTYPES)
    assert all(tensor.data_type != model_config_pb2.TYPE_INVALID for tensor in config.input)


def test_a_model_without_a_batch_has_all_dims() -> None:
    spec = TensorSpec("x", np.dtype(np.float32), (2, None))
    config = oip.model_config("m", Signature((spec,), (spec,), batched=False), 32)
    assert (config["max_batch_size"], config["input"][0]["dims"], "dynamic_batching" in config) == (0, [2, -1], False)
