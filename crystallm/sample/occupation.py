"""Which Wyckoff positions can still complete a formula, jointly over all elements. Knows integers only.

A position with free parameters may be taken any number of times, one without (a point) once, by whichever element.
Counts are atoms in the conventional cell: formula count x formula units in the primitive cell x lattice points.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from crystallm.space_groups import N_GROUPS, space_group

MAX_KEPT = 100_000  # answers of one kind, of all groups together: 400 to 650 bytes each
Ints = tuple[int, ...]


@functools.cache
def _reachable(multiplicities: Ints, limit: int) -> int:
    """Bit c is set where c <= limit is a sum of these multiplicities, each taken any number of times."""
    bits, mask = 1, (1 << (limit + 1)) - 1
    for m in multiplicities:
        step = m
        while step <= limit:  # 1 << m, 1 << 2m, 1 << 4m, ... reach every multiple in log(limit) shifts
            bits |= (bits << step) & mask
            step *= 2
    return bits


class Occupation:
    """The Wyckoff positions of one space group as multiplicities, by letter index."""

    def __init__(self, number: int):
        group = space_group(number)
        self.n_centring = group.n_centring
        self.multiplicity = [p.multiplicity for p in group.wyckoff]
        self.is_point = [p.n_free == 0 for p in group.wyckoff]
        self.classes = sorted({m for m, point in zip(self.multiplicity, self.is_point, strict=True) if point})
        # index in `classes` of a point's multiplicity, -1 for positions with parameters
        pairs = zip(self.multiplicity, self.is_point, strict=True)
        self._class_of = [self.classes.index(m) if point else -1 for m, point in pairs]

    @functools.lru_cache(MAX_KEPT)  # noqa: B019  (a group is kept for good anyway, by `occupation`)
    def letters(self, counts: Ints, start: int = 0, own: int = 0, others: int = 0) -> Ints:
        """Letter indices that the next site may have.

        `counts`: atoms still to be placed, by element, the current one first. `start`: where its letters begin, since
        they do not descend. `own`, `others`: bit masks of the positions that it, and all after it, cannot take.
        """
        return tuple(i for i in range(start, len(self.multiplicity)) if self.fits(i, counts, own, others))

    def fits(self, letter: int, counts: Ints, own: int = 0, others: int = 0) -> bool:
        """Whether the next site may have this letter, as far as the rest can then be placed."""
        left = counts[0] - self.multiplicity[letter]
        if left < 0 or own >> letter & 1:
            return False
        if self.is_point[letter]:  # now nobody may take it
            own, others = own | 1 << letter, others | 1 << letter
        return self.feasible((left, *counts[1:]), letter, own, others)

    def feasible(self, counts: Ints, start: int = 0, own: int = 0, others: int = 0) -> bool:
        """Whether some choice of sites holds all atoms."""
        available, shared, exclusive = [0] * len(self.classes), [0] * len(self.classes), [0] * len(self.classes)
        for letter, k in enumerate(self._class_of):
            if k >= 0:
                for_others = not others >> letter & 1
                available[k] += for_others
                if letter >= start and not own >> letter & 1:
                    (shared if for_others else exclusive)[k] += 1
        split = _Split(self._free(start, own), tuple(exclusive), tuple(shared), self._free(0, others))
        return self._split(counts[0], tuple(sorted(counts[1:])), tuple(available), split, 0)

    @functools.lru_cache(MAX_KEPT)  # noqa: B019
    def _free(self, start: int, closed: int) -> Ints:
        """Multiplicities of the positions that can be taken again and again."""
        letters = (i for i in range(start, len(self.multiplicity)) if not self.is_point[i] and not closed >> i & 1)
        return tuple(sorted({self.multiplicity[i] for i in letters}))

    def _split(self, count: int, rest: Ints, available: Ints, split: _Split, k: int) -> bool:
        """Puts `count` atoms on some points, class by class from k on, and the others on free positions.

        `available`: points left for the elements in `rest`, by class.
        """
        if k == len(self.classes):
            # Rounding the limit up lets few tables serve many counts.
            limit = 1 << max(count, 63).bit_length()
            reachable = bool(_reachable(split.free, limit) >> count & 1)
            return reachable and self._rest_fits(rest, available, split.rest_free)
        for n in range(min(split.exclusive[k] + split.shared[k], count // self.classes[k]) + 1):
            taken = max(0, n - split.exclusive[k])  # points that no other element can use go first
            left = (*available[:k], available[k] - taken, *available[k + 1 :])
            if self._split(count - n * self.classes[k], rest, left, split, k + 1):
                return True
        return False

    @functools.lru_cache(MAX_KEPT)  # noqa: B019
    def _rest_fits(self, rest: Ints, available: Ints, free: Ints) -> bool:
        """Elements that may use every letter: of the points of one multiplicity only the number matters."""
        if not rest:
            return True
        split = _Split(free, (0,) * len(self.classes), available, free)
        return self._split(rest[-1], rest[:-1], available, split, 0)


class _Split(NamedTuple):
    """What one element may use."""

    free: Ints  # multiplicities of its positions with parameters
    exclusive: Ints  # by class, points that only it can use
    shared: Ints  # by class, points that the rest could use as well
    rest_free: Ints  # multiplicities of the positions with parameters for the rest


@functools.cache
def occupation(number: int) -> Occupation:
    return Occupation(number)


@functools.lru_cache(MAX_KEPT)
def _feasible_groups(counts: Ints) -> np.ndarray:
    """(230,) bool: groups whose positions can hold `counts` atoms of the primitive cell. `counts` ascending."""
    alike, of_group = _alike_groups()
    held = [group.feasible(tuple(count * group.n_centring for count in counts)) for group in alike]
    return np.array(held)[of_group]


@functools.cache
def _alike_groups() -> tuple[list[Occupation], np.ndarray]:
    """Groups that differ in what their primitive cell can hold, and for each of the 230 the index of one like it."""
    alike: dict[tuple[tuple[float, bool], ...], int] = {}
    groups: list[Occupation] = []
    of_group = []
    for number in range(1, N_GROUPS + 1):
        group = occupation(number)
        sites = sorted(zip((m / group.n_centring for m in group.multiplicity), group.is_point, strict=True))
        free = {site for site in sites if not site[1]}
        key = (*sorted(free), *(site for site in sites if site[1]))
        if key not in alike:
            alike[key] = len(groups)
            groups.append(group)
        of_group.append(alike[key])
    return groups, np.array(of_group)


def feasible_groups(formula: Iterable[int], formula_units: int) -> np.ndarray:
    """(230,) bool: space groups that can hold so many formula units in the primitive cell, by number - 1."""
    return _feasible_groups(tuple(sorted(n * formula_units for n in formula)))


@functools.cache
def centrings() -> np.ndarray:
    """(230,) lattice points of the conventional cell, by number - 1."""
    return np.array([occupation(n).n_centring for n in range(1, N_GROUPS + 1)])
