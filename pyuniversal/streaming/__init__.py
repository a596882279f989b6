"""The one pass over the tokens, and its plan.

Not called `pyuniversal.observe`: a submodule of that name would hide the function.
"""

from .layout import SourceShape
from .one_pass import observe
from .plan import STORAGES, Plan, make_plan

__all__ = ["STORAGES", "Plan", "SourceShape", "make_plan", "observe"]
