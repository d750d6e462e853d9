"""Which choices of Wyckoff positions have a higher symmetry than their space group, whatever their coordinates.

Na on a and Cl on b of F-43m is rock salt, so Fm-3m. An operation outside the group is a symmetry of a structure if it
carries the sites of every element into themselves. Asked of positions instead of sites, that is a table of a few rows a
group: which position each position is carried to. What only special values of coordinates or of the cell bring about
is not seen here; the check of the found group sees it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crystallm.space_groups import space_group


def has_supergroup(number: int, letters: Sequence[Sequence[int]]) -> bool:
    """Whether sites on these positions (indices, by element) have more symmetry than the group has, in every cell."""
    group = space_group(number)
    maps = group.position_maps
    for of_element in letters:
        used = sorted(set(of_element))
        free = [index for index in used if group.wyckoff[index].n_free]
        points = [index for index in used if not group.wyckoff[index].n_free]
        maps = maps[(maps[:, free] == free).all(axis=1)]
        maps = maps[(np.sort(maps[:, points], axis=1) == points).all(axis=1)]
        if len(maps) == 0:
            return False
    return True
