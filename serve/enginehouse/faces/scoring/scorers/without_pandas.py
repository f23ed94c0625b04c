"""Arrow without pandas, in processes that are enginehouse's own: pandas is half of what starting a small job takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType


class _Hidden(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("enginehouse leaves pandas out of Arrow", name=fullname)


def without_pandas() -> None:
    """Have Arrow go without pandas in this process, unless it is imported already.

    Arrow looks for it once, when the first list becomes an array (pyarrow 26), and remembers.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(hidden)
