"""What one neuron is, without any other model: how its pre-activation is distributed, what its weights are, what it writes to the vocabulary."""

from .activations import activation_columns, legacy_activation_columns
from .weights import weight_columns

__all__ = ["activation_columns", "legacy_activation_columns", "weight_columns"]
