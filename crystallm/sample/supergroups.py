"""Which choices of Wyckoff positions have a higher symmetry than their space group, whatever their coordinates.

Na on a and Cl on b of F-43m is rock salt, so Fm-3m. An operation outside the group is a symmetry of a structure if it
carries the sites of every element into themselves. Asked of positions instead of sites, that is a table of a few rows a
group: which position each position is carried to. What only special values of coordinates or of the cell bring about
is not seen here; the check of the found group sees it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from crystallm.sample.occupation import MAX_KEPT, Ints, occupation
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


@functools.cache
def all_maps(number: int) -> int:
    """Bit mask of the rows of the group's table, from which `surviving` takes away."""
    return (1 << len(space_group(number).position_maps)) - 1


@functools.lru_cache(MAX_KEPT)
def surviving(number: int, maps: int, letters: tuple[int, ...], is_whole: bool) -> int:
    """Those of the maps that carry sites of one element on these positions into themselves.

    `is_whole`: these are all its sites. As long as others may follow, only positions with parameters decide.
    """
    group = space_group(number)
    free = [index for index in letters if group.wyckoff[index].n_free]
    points = sorted(set(letters).difference(free))
    for row in range(len(group.position_maps)):
        carried = group.position_maps[row]
        kept = (carried[free] == free).all() and (not is_whole or (np.sort(carried[points]) == points).all())
        if not kept:
            maps &= ~(1 << row)
    return maps


@functools.lru_cache(MAX_KEPT)
def can_escape(
    number: int, counts: Ints, start: int = 0, own: int = 0, others: int = 0, letters: Ints = (), maps: int = -1
) -> bool:
    """Whether the atoms left can be placed so that no supergroup remains: arguments as of `Occupation.letters`.

    `letters`: of the current element's sites so far, each once. `maps`: what the elements before it have left of
    `all_maps`.
    """
    maps = surviving(number, maps & all_maps(number), letters, counts[0] == 0)
    if maps == 0:
        return True
    if counts[0] == 0:
        return len(counts) > 1 and can_escape(number, counts[1:], 0, others, others, (), maps)
    group = occupation(number)
    for letter in reversed(range(start, len(group.multiplicity))):  # the general position escapes at once
        if not group.fits(letter, counts, own, others):
            continue
        taken = 1 << letter if group.is_point[letter] else 0
        left = (counts[0] - group.multiplicity[letter], *counts[1:])
        used = tuple(sorted({*letters, letter}))
        if can_escape(number, left, letter, own | taken, others | taken, used, maps):
            return True
    return False
