"""What the stages of a run do; their arguments, defaults and errors are told in `pipeline`."""

from ..streaming import started
from .chance import chance
from .confirming import confirm, refine
from .inputs import check_table, follow, prepare, reopen
from .merging import merge
from .passing import observe
from .planning import plan
from .tables import table
from .verifying import verify

__all__ = [
    "chance",
    "check_table",
    "confirm",
    "follow",
    "merge",
    "observe",
    "plan",
    "prepare",
    "refine",
    "reopen",
    "started",
    "table",
    "verify",
]
