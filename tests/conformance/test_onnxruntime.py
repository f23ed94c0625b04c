"""What is ONNX Runtime's own."""

from __future__ import annotations

import platform

import numpy as np
import pytest
from tests.conformance.conftest import Publish, why_not_here
from tests.conformance.models import BY_NAME

from enginehouse.contract.errors import InvalidInput
from enginehouse.engines import load_engine

pytestmark = pytest.mark.skipif(bool(why_not_here("onnxruntime-cpu")), reason=str(why_not_here("onnxruntime-cpu")))


@pytest.mark.parametrize(
    "given",
    [[["a", "é"]], np.array([[b"a", b"\xc3\xa9"]]), np.array([[b"a", "é"]], dtype=object), np.array([["a", "é"]])],
    ids=["list of str", "fixed-width bytes", "mixed objects", "fixed-width str"],
)
def test_text_goes_in_as_str_or_bytes_and_comes_out_as_bytes(publish: Publish, given: object) -> None:
    bundle = publish(BY_NAME["text"], "onnx")
    engine = load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
    assert engine.infer({"x": np.asarray(given)})["y"].tolist() == [[b"a!", "é!".encode()]]


def test_bytes_that_are_not_text_are_the_callers_mistake(publish: Publish) -> None:
    bundle = publish(BY_NAME["text"], "onnx")
    engine = load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1)
    for wrong in (b"\xff\xfe", None, 1.5):
        with pytest.raises(InvalidInput, match="'x'"):
            engine.infer({"x": np.array([[b"a", wrong]], dtype=object)})


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 has no fp16 kernels")
def test_fp16_on_x86_is_reported_as_the_fp32_it_is_computed_in(publish: Publish) -> None:
    bundle = publish(BY_NAME["half"], "onnx", "fp16")
    assert load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifacts[0], threads=1).precision == "fp32"
