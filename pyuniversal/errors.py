"""What can go wrong, in words a user can act on.

Every error that pyuniversal raises on purpose is a `PyUniversalError`; each kind is also the built-in exception that it is nearest to, so that code which
knows nothing of pyuniversal catches it too. A message names the culprit (file, model, layer, neuron, row) and then the remedy.
"""


class PyUniversalError(Exception):
    """Base of all errors that pyuniversal raises on purpose."""


class InputError(PyUniversalError, ValueError):
    """Something that the caller handed in cannot be used: models, text, options, tables."""


class ActivationError(PyUniversalError, ValueError):
    """A model produced activations that no statistic can be made of (NaN, Inf)."""


class FileError(PyUniversalError, OSError):
    """A file or folder cannot be read or written, or does not hold what it should."""


class NotEnoughMemoryError(PyUniversalError, MemoryError):
    """The run does not fit this machine; raised before anything is computed."""


class BackendError(PyUniversalError, NotImplementedError):
    """No implementation of an op accepts these arguments, or the one asked for does not; says why for each."""


class RankError(PyUniversalError, RuntimeError):
    """Another process of a run that several share has ended; its own words are the reason."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came while a pass or a verb of the command line was running; like Ctrl-C, after what was computed has been saved."""
