"""The engine key: the same everywhere for the same engine, another one for everything that changes it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from enginehouse.contract.errors import ConversionFailed
from enginehouse.contract.manifest import Axis
from enginehouse.contract.tensors import Signature, TensorSpec
from enginehouse.engines.tensorrt.key import EngineKey, mismatch, profile_of, profile_text
from enginehouse.engines.tensorrt.library import readable

KEY = EngineKey(
    onnx="ab" * 32,
    precision="fp16",
    profile="x=1x3/4x3/8x3",
    flavour="tensorrt-rtx",
    version="1.7.1.116",
    compute_capability="8.9",
)
BUILT = replace(KEY, compute_capability="8.6,8.9").record()

IMAGE = TensorSpec("image", np.dtype(np.float32), (None, 3, None, None))
TOKENS = TensorSpec("tokens", np.dtype(np.int64), (None, None))
MASK = TensorSpec("mask", np.dtype(np.int64), (None, None))
SCALE = TensorSpec("scale", np.dtype(np.float32), (1,))
LENGTH = Axis(name="length", min=8, opt=64, max=512, dims=(("tokens", 1), ("mask", 1)))


def test_the_digest_is_the_same_in_every_process() -> None:
    program = f"from enginehouse.engines.tensorrt.key import EngineKey; print({KEY!r}.digest)"
    digests = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert digests == [KEY.digest, KEY.digest]


@pytest.mark.parametrize("field", ["onnx", "precision", "profile", "flavour", "version", "compute_capability"])
def test_every_part_of_the_key_changes_the_digest(field: str) -> None:
    assert replace(KEY, **{field: "other"}).digest != KEY.digest


def test_an_engine_fits_every_capability_that_it_was_built_for() -> None:
    assert mismatch(BUILT, KEY) is None
    assert mismatch(BUILT, replace(KEY, compute_capability="8.6")) is None


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"compute_capability": "9.0"}, ("8.6, 8.9", "this GPU has 9.0")),
        ({"compute_capability": "8"}, ("8.6, 8.9", "this GPU has 8")),
        ({"version": "1.8.0.1"}, ("tensorrt-rtx 1.7.1.116", "tensorrt-rtx 1.8.0.1")),
        ({"flavour": "tensorrt", "version": "11.1.0"}, ("tensorrt-rtx 1.7.1.116", "this node has tensorrt 11.1.0")),
        ({"onnx": "cd" * 32}, ("another onnx",)),
        ({"precision": "fp32", "profile": "x=1x3/1x3/2x3"}, ("another precision, profile",)),
    ],
)
def test_a_mismatch_names_what_was_built_and_what_is_here(node: dict[str, str], words: tuple[str, ...]) -> None:
    reason = mismatch(BUILT, replace(KEY, **node))
    assert reason is not None
    assert all(word in reason for word in words), reason


def test_requirements_without_a_version_mean_that_there_is_no_engine() -> None:
    of_model = {name: BUILT[name] for name in ("onnx", "precision", "profile")}
    assert mismatch(of_model, KEY) == "the bundle has no engine"


def test_the_batch_is_tuned_for_half_of_its_maximum() -> None:
    signature = Signature((TensorSpec("x", np.dtype(np.float32), (None, 3)), SCALE), ())
    assert profile_of(signature, 8, ()) == {"x": ((1, 3), (4, 3), (8, 3))}
    assert profile_of(signature, 1, ()) == {"x": ((1, 3), (1, 3), (1, 3))}


def test_every_free_dimension_has_the_range_of_its_axis() -> None:
    profile = profile_of(Signature((TOKENS, MASK), ()), 4, [LENGTH])
    assert profile["tokens"] == profile["mask"] == ((1, 8), (2, 64), (4, 512))
    assert profile_text(profile) == "mask=1x8/2x64/4x512 tokens=1x8/2x64/4x512"


def test_without_a_batch_dimension_0_is_an_axis_like_any_other() -> None:
    points = Axis(name="points", min=1, opt=100, max=1000, dims=(("cloud", 0),))
    cloud = TensorSpec("cloud", np.dtype(np.float32), (None, 3))
    unbatched = Signature((cloud,), (), batched=False)
    assert profile_of(unbatched, 1, [points]) == {"cloud": ((1, 3), (100, 3), (1000, 3))}
    with pytest.raises(ConversionFailed, match="dimension 0"):
        profile_of(unbatched, 1, ())


def test_a_free_dimension_without_a_range_is_refused_with_the_option_that_gives_one() -> None:
    height = Axis(name="height", min=32, opt=224, max=512, dims=(("image", 2),))
    with pytest.raises(ConversionFailed, match=r"image: FP32\[\*,3,\*,\*\].*dimension 3 .*--axis NAME=MIN:OPT:MAX"):
        profile_of(Signature((IMAGE,), ()), 4, [height])


def test_messages_of_tensorrt_are_shown_without_places_in_its_source() -> None:
    raw = (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check_turing_op_compatibility] Cannot "
        "compile operation 'y' for Turing (SM75): FP32 GEMM is not supported. In compileGraph at "
        "/_src/optimizer/myelin/codeGenerator.cpp:2012)"
    )
    shown = readable(raw)
    assert "Cannot compile operation 'y' for Turing (SM75): FP32 GEMM is not supported." in shown
    assert "cpp" not in shown and "IBuilder" not in shown
    assert len(readable("word " * 1000)) < 450
