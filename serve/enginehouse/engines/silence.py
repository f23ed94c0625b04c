"""Engine libraries that report to their makers do not, in any process that imports engines."""

from __future__ import annotations

import sys
from typing import Any

#: OpenVINO reports its import and NNCF each quantization with it, and it makes `~/intel`. Both do without it.
_REPORTERS = ("openvino_telemetry",)


def keep_silent() -> None:
    """Have these libraries find that what they report with is not installed; before they are imported."""
    modules: dict[str, Any] = sys.modules
    for name in _REPORTERS:
        modules.setdefault(name, None)
