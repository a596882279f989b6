"""What the stages of a run do; their arguments, defaults and errors are told in `pipeline`."""

from ..streaming import started
from .chance import chance
from .confirming import accept, confirm, refine
from .inputs import check_table, follow, prepare, reopen
from .merging import merge
from .passing import note, observe
from .planning import plan
from .tables import table
from .verifying import verify

__all__ = [
    "accept",
    "chance",
    "check_table",
    "confirm",
    "follow",
    "merge",
    "note",
    "observe",
    "plan",
    "prepare",
    "refine",
    "reopen",
    "started",
    "table",
    "verify",
]
