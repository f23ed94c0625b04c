"""Ray Serve without pandas, which it imports into each of its processes for an encoder that nothing here uses.

That is 32 MiB and 0.2 s of CPU time a process (Ray Serve 2.60), of which a local cluster has eight. Whoever else
imports pandas gets it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

#: Ray calls the function of this name when a worker process starts (`worker_process_setup_hook` of runtime
#: environments, which would be an agent's work and a process that was not started ahead).
HOOK = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "enginehouse.cluster.light.without_pandas"}
#: The package that goes without: its only import of pandas is in a `try`.
IMPORTER = "ray.serve"


def without_pandas() -> None:
    """Have `ray.serve` go without pandas in this process, if it is not imported yet."""
    if IMPORTER not in sys.modules:
        sys.meta_path.insert(0, _NotForServe())


class _NotForServe(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "pandas" and _importer().startswith(f"{IMPORTER}."):
            raise ModuleNotFoundError("enginehouse leaves pandas out of ray.serve", name=fullname)


def _importer() -> str:
    """The module whose import statement is being executed."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("importlib."):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__"))
