"""The one pass over the tokens, its plan, and the pass that confirms partners on other documents.

Not called `pyuniversal.observe`: a submodule of that name would hide the function.
"""

from .chunks import choose_rows
from .confirmation import check_resumable, confirm_pass, document_batches
from .layout import SourceShape
from .memory import available_bytes
from .one_pass import observe
from .plan import STORAGES, Plan, make_plan
from .ranks import Ranks, started
from .repairing import Chance, best_by_chance

__all__ = [
    "STORAGES",
    "Chance",
    "Plan",
    "Ranks",
    "SourceShape",
    "available_bytes",
    "best_by_chance",
    "check_resumable",
    "choose_rows",
    "confirm_pass",
    "document_batches",
    "make_plan",
    "observe",
    "started",
]
