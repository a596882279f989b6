"""What the stages of a run do; their arguments, defaults and errors are told in `pipeline`."""

from .confirming import confirm, refine
from .inputs import check_table, prepare, reopen
from .passing import observe
from .planning import plan
from .tables import table
from .verifying import verify

__all__ = ["check_table", "confirm", "observe", "plan", "prepare", "refine", "reopen", "table", "verify"]
