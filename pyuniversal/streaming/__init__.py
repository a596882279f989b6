"""The one pass over the tokens, and its plan.

Not called `pyuniversal.observe`: a submodule of that name would hide the function.
"""

from .one_pass import observe
from .plan import Plan, SourceShape, make_plan

__all__ = ["Plan", "SourceShape", "make_plan", "observe"]
