"""The pictures of a run, each a function of its tables.

Every function returns a matplotlib Figure made without pyplot: nothing global is touched, no window opens, any thread may draw. The numbers behind a picture
come from `quantities` and can be had from there.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..errors import InputError
from ..files import atomic, check_writable
from . import quantities
from .depth import depth
from .forest import forest
from .layers import layer_distribution
from .null_by_firing import null_by_firing
from .properties import properties

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("layer_distribution", "universal_neurons_properties", "depth", "claims", "null_by_firing")
DPI = 200

logger = logging.getLogger(__name__)


def draw(name: str, neurons: pd.DataFrame, matches: pd.DataFrame, depth_table: pd.DataFrame, claims: dict[str, Any], nulls: pd.DataFrame) -> Figure:
    """The figure called `name`, one of `NAMES`, of a run's tables.

    Raises:
        InputError: there is no such figure; lists those there are.
    """
    if name == "layer_distribution":
        return layer_distribution(neurons)
    if name == "universal_neurons_properties":
        return properties(neurons)
    if name == "depth":
        return depth(depth_table, neurons, matches)
    if name == "claims":
        return forest(claims)
    if name == "null_by_firing":
        return null_by_firing(neurons, nulls, matches)
    raise InputError(f"there is no figure {name!r}; choose one of {', '.join(NAMES)}")


def save_figures(
    neurons: pd.DataFrame,
    matches: pd.DataFrame,
    depth_table: pd.DataFrame,
    claims: dict[str, Any],
    nulls: pd.DataFrame,
    folder: str | os.PathLike[str],
) -> list[Path]:
    """Draw every figure of a run as PNG of 200 dots an inch, each file whole or absent.

    Args:
        neurons: the neuron table of all models.
        matches: the matches table.
        depth_table: best partners counted by layer.
        claims: the claims.
        nulls: best r by chance.
        folder: where to; made if absent.

    Returns:
        A PNG for each of `NAMES`; of a single model, which has no partners, neuron_properties.png alone.

    Raises:
        FileError: the folder cannot be written.
    """
    folder = check_writable(folder)
    names = {name: name for name in NAMES}
    if not quantities.has_partners(neurons):
        names = {"neuron_properties": "universal_neurons_properties"}
        logger.info("one model alone has no partners: no figures of universal neurons by layer nor of the depth of partners; its properties by layer are drawn")
    paths = []
    for file, name in names.items():
        path = folder / f"{file}.png"
        with atomic(path) as temporary:
            draw(name, neurons, matches, depth_table, claims, nulls).savefig(
                temporary, format="png", dpi=DPI, metadata={"Title": file, "Software": "pyuniversal"}
            )
        paths.append(path)
    return paths
