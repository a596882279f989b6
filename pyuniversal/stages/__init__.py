"""What the stages of a run do; their arguments, defaults and errors are told in `pipeline`."""

from .chance import chance
from .confirming import confirm, refine
from .inputs import check_table, prepare, reopen
from .passing import observe
from .planning import plan
from .tables import table
from .verifying import verify

__all__ = ["chance", "check_table", "confirm", "observe", "plan", "prepare", "refine", "reopen", "table", "verify"]
