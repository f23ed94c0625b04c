"""Whether the libraries are installed that the formats of a recipe are made with: asked before anything is made."""

from __future__ import annotations

import importlib.util

from enginehouse.contract.errors import ConfigError
from enginehouse_build.inputs.recipe import Recipe

#: Module -> the extra that installs it.
_OPENVINO = {"openvino": "cpu"}
_QUANTIZER = {"nncf": "build"}


def check_libraries(recipe: Recipe) -> None:
    """Raises ConfigError for a library that a format asked for by name is made with, and which is not installed.

    Of the formats that nobody named, one without its library is left out and says so; TensorRT may be made elsewhere.
    """
    if "formats" not in recipe.model_fields_set or "openvino" not in recipe.formats:
        return
    needed = _OPENVINO | (_QUANTIZER if "int8" in recipe.precisions else {})
    for module, extra in needed.items():
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"--formats openvino: {module} is not installed; install enginehouse[{extra}] or leave openvino out"
            )
