"""Check an implementation against its float64 reference, time it beside the naive ways, write one row; see README.md in this folder.

`python -m bench` puts the clone's root at the front of sys.path, where the source folder `pyuniversal` (which has no compiled part unless it was installed
editably) would hide the installed package. So the root goes to the end: an installed pyuniversal wins, and without one that of the clone is found.
"""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_others = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]
if len(_others) < len(sys.path):
    sys.path[:] = [*_others, str(_ROOT)]
