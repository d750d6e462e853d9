"""What is known of each element, from a generated table (bin/make_element_table.py). Needs numpy only."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from crystallm.resources import resource_path


@functools.cache
def element_table() -> Mapping[str, np.ndarray]:
    """(118,) each, row Z - 1: electronegativity, covalent_radius_ang, group, ...; nan where nothing is known."""
    with np.load(resource_path("resources/elements.npz")) as table:
        columns = {name: table[name] for name in table}
    for column in columns.values():
        column.flags.writeable = False
    return MappingProxyType(columns)
