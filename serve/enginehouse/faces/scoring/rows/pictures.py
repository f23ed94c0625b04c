"""Encoded pictures in a column -> pixels, as the model's input has its channels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa

from enginehouse.contract.errors import ConfigError, InvalidInput
from enginehouse.contract.magic import LOOKED_AT, recognised
from enginehouse.contract.tensors import TensorSpec

#: Channels of a pixel -> what Pillow calls such a picture.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def fits(kind: pa.DataType, spec: TensorSpec) -> bool:
    """Whether a column of this type may be encoded pictures for an input of pixels."""
    return (
        bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
        and spec.dtype == np.uint8
        and len(spec.shape) in (3, 4)
    )


def decoded(data: Any, spec: TensorSpec) -> np.ndarray:
    """The pixels of an encoded picture, uint8: [height, width, channels], [channels, height, width] or [height, width].

    Where the channels are, `spec` says, which has the batch in front; pictures of other kinds are converted to as many.
    Nothing is scaled: a picture of another size than the model's is a row of a wrong shape. Raises InvalidInput for
    what is no picture.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ConfigError("pictures are decoded by Pillow, which is not here: pip install enginehouse[score]") from None
    row = spec.shape[1:]
    is_first = len(row) == 3 and row[0] in _MODES and row[-1] not in _MODES
    channels = 1 if len(row) == 2 else row[0] if is_first else row[-1]
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert(_MODES.get(channels or 3, "RGB")))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        kind = recognised(memoryview(data)[:LOOKED_AT].tobytes())
        # What Pillow says of data that it does not know names an object in memory.
        what = "it is of no kind that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        if kind is not None and kind.family != "picture":
            what = f"it is {kind.name}"
        raise InvalidInput(f"not a picture that can be decoded: {what}") from None
    if pixels.ndim == 2 and len(row) == 3:
        pixels = pixels[:, :, None]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) if is_first else pixels
