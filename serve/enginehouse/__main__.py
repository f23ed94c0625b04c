"""`python -m enginehouse`."""

import os
import sys

# Python has put the current folder first: a `numpy.py` there, beside a model say, would run. A factory that is named
# adds its folder itself. A checkout may be that folder.
_CURRENT = os.getcwd()  # noqa: PTH109
if sys.path[:1] == [_CURRENT] and not os.path.samefile(_CURRENT, os.path.join(os.path.dirname(__file__), "..")):  # noqa: PTH118, PTH120, PTH121
    del sys.path[0]

from enginehouse.tools.cli import main  # noqa: E402

main()
