"""What people send in the place of an inference request, made by the libraries that people make it with."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import pickle
import uuid
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from tritonclient.grpc import service_pb2

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)


def picture(format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, format)
    return file.getvalue()


def saved(save: Callable[..., Any], *arguments: Any, **named: Any) -> bytes:
    file = io.BytesIO()
    save(file, *arguments, **named)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("request.json", "{}")
    return file.getvalue()


def posted(**how: Any) -> bytes:
    return httpx.Request("POST", "http://localhost", **how).read()


def call(name: str, framed: bool) -> bytes:
    message = service_pb2.ModelInferRequest(model_name=name, inputs=[{"name": "x", "datatype": "FP32", "shape": [1]}])
    data: bytes = message.SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data if framed else data


TABLE = pyarrow.table({"x": [1.0, 2.0]})
#: By kind: the bytes, and how a message has to call them.
FOREIGN: Mapping[str, tuple[bytes, str]] = {
    "jpeg": (picture("JPEG"), "a JPEG picture (image/jpeg)"),
    "png": (picture("PNG"), "a PNG picture (image/png)"),
    "gif": (picture("GIF"), "a GIF picture (image/gif)"),
    "bmp": (picture("BMP"), "a BMP picture (image/bmp)"),
    "tiff": (picture("TIFF"), "a TIFF picture (image/tiff)"),
    "webp": (picture("WEBP"), "a WebP picture (image/webp)"),
    "npy": (saved(np.save, PIXELS), "a numpy array (.npy)"),
    "npz": (saved(np.savez, x=PIXELS), "an archive of numpy arrays (.npz)"),
    "compressed npz": (saved(np.savez_compressed, image=PIXELS), "an archive of numpy arrays (.npz)"),
    "parquet": (saved(lambda file: pyarrow.parquet.write_table(TABLE, file)), "a Parquet file"),
    "zip": (zipped(), "a zip archive (application/zip)"),
    "gzip": (gzip.compress(b'{"inputs": []}'), "gzip data (application/gzip)"),
    "bzip2": (bz2.compress(b'{"inputs": []}'), "bzip2 data"),
    "pickle": (pickle.dumps(PIXELS), "a Python pickle"),
    "form with a file": (posted(files={"image": ("x.jpg", picture("JPEG"))}), "a form (multipart/form-data)"),
    "form": (posted(data={"image": "1", "k": "2"}), "a form (application/x-www-form-urlencoded)"),
    "protobuf": (call("digits", framed=False), "a protobuf message"),
    "protobuf, other name": (call(uuid.UUID(int=5).hex, framed=False), "a protobuf message"),
    "grpc": (call("digits", framed=True), "a protobuf message"),
    "html": (b"<!DOCTYPE html><html></html>", "HTML or XML"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "a Git LFS pointer in the place of the file itself (git lfs pull)",
    ),
    "utf-16": (json.dumps({"inputs": []}).encode("utf-16"), "UTF-16 text"),
    "byte-order mark": (json.dumps({"inputs": []}).encode("utf-8-sig"), "text with a byte-order mark in front"),
    "floats": (np.linspace(0.1, 1, 50).astype(np.float32).tobytes() + bytes(8), "binary data"),
}
