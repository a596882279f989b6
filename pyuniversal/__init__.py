"""Which neurons are universal across language models, what they mean, and what they do.

Everything public is listed here; nothing is imported before it is used, so `import pyuniversal` costs nothing.
"""

from importlib import import_module

_PUBLIC = {
    "run": "pipeline",
    "plan": "pipeline",
    "observe_stage": "pipeline",
    "merge": "pipeline",
    "table_stage": "pipeline",
    "open_run": "results",
    "diff": "pipeline",
    "Run": "results",
    "correlate": "universality",
    "Correlation": "universality",
    "load_model": "models",
    "Model": "models",
    "ModelSite": "sources",
    "tokenize": "tokens",
    "load_tokens": "tokens",
    "Tokens": "tokens",
    "observe": "streaming",
    "Moments": "totals",
    "Product": "totals",
    "Histogram": "totals",
    "DyadicHistogram": "totals",
    "TokenSums": "totals",
    "Totals": "totals",
    "PyUniversalError": "errors",
    "InputError": "errors",
    "ActivationError": "errors",
    "FileError": "errors",
    "NotEnoughMemoryError": "errors",
    "BackendError": "errors",
    "RankError": "errors",
    "Terminated": "errors",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version("pyuniversal")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pyuniversal' has no attribute {name!r}")
    return getattr(import_module(f"pyuniversal.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
