"""`ray.serve` goes without pandas where it may, and everybody else has it."""

from __future__ import annotations

import subprocess
import sys


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


def test_serve_goes_without_pandas_and_others_have_it() -> None:
    said = run(
        "from enginehouse.cluster import light; light.without_pandas(); import sys, ray.serve; "
        "from ray.serve._private import utils; print('pandas' in sys.modules, utils.pd); "
        "import pandas, ray.data; print(len(pandas.DataFrame({'x': [1, 2]})), ray.data.Dataset.__name__)"
    )
    assert said.splitlines() == ["False None", "2 Dataset"]


def test_who_imported_pandas_before_keeps_it() -> None:
    said = run(
        "import pandas; from enginehouse.cluster import light; light.without_pandas(); "
        "from ray.serve._private import utils; print(utils.pd is pandas)"
    )
    assert said == "True"


def test_what_is_run_at_the_start_of_a_worker_is_there() -> None:
    from enginehouse.cluster import light

    ((variable, path),) = light.HOOK.items()
    module, _, function = path.rpartition(".")
    said = run(
        "import importlib; from ray._private import ray_constants; "
        f"print(ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR == {variable!r}, "
        f"callable(getattr(importlib.import_module({module!r}), {function!r})))"
    )
    assert said == "True True"
