"""Requests and answers survive a file, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from enginehouse.contract import tensor_file
from enginehouse.contract.errors import BundleError
from enginehouse.contract.tensors import Tensors


def test_tensors_of_every_kind_come_back_equal(tmp_path: Path) -> None:
    words = np.array([b"", b"nul\0", "äß".encode()], dtype=object).reshape(3, 1)
    requests: list[Tensors] = [
        {"input:0": np.arange(6, dtype=np.uint8).reshape(2, 3), "a/b": np.array([True, False])},
        {"half": np.array([[1.5, -2.0]], dtype=ml_dtypes.bfloat16), "text": words, "scalar": np.float32(3).reshape(())},
        {"empty": np.zeros((0, 4), np.float64)},
    ]
    tensor_file.write(tmp_path / "requests.npz", requests)
    read = tensor_file.read(tmp_path / "requests.npz")
    assert [list(request) for request in read] == [list(request) for request in requests]
    for got, want in zip(read, requests, strict=True):
        for name, array in want.items():
            assert got[name].dtype == array.dtype
            assert got[name].shape == array.shape
            assert got[name].tolist() == array.tolist()


@pytest.mark.parametrize("content", [b"", b"PK not really", b"\x80\x04pickle"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "requests.npz"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="is no archive of requests"):
        tensor_file.read(path)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "requests.npz"
    np.savez(path, **{"index": np.frombuffer(b"[[]]", np.uint8), "0/0": np.array([{}], dtype=object)})
    assert tensor_file.read(path) == [{}]
    np.savez(
        path,
        **{
            "index": np.frombuffer(b'[[{"name":"x","datatype":"FP32","shape":[1]}]]', np.uint8),
            "0/0": np.array([{}], dtype=object),
        },
    )
    with pytest.raises(BundleError, match="allow_pickle"):
        tensor_file.read(path)
