"""Which lengths and angles make a cell: the ties of the crystal system, a volume, no lattice vector that is too short.

The square of a lattice vector's length is a known number plus one term in the parameter that is being chosen, so each
vector bounds that parameter in closed form. Knows no tokens.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from crystallm.space_groups import N_GROUPS, space_group

# Volume over the product of the lengths. Flatter cells describe a lattice that a reduced cell describes better.
MIN_UNIT_VOLUME = 0.1
CELL_NAMES = ("a", "b", "c", "alpha", "beta", "gamma")
Cell = tuple[
    float | None, float | None, float | None, float | None, float | None, float | None
]  # Å, degrees; None: free
NO_CELL: Cell = (None, None, None, None, None, None)
PLANES = ((1, 2), (0, 2), (0, 1))  # the axes between which alpha, beta, gamma stand


class CellRules:
    """What the cell of one space group may be."""

    def __init__(self, number: int):
        group = space_group(number)
        self.angles = group.ties.angles  # degrees, None where free
        self.tied_to = dict(group.ties.equal_lengths)
        self.skewed = None in self.angles  # skewed cells may hold lattice vectors outside `vectors`
        self.monoclinic = self.angles[0] is not None and self.angles[1] is None
        self.known_cos = [math.nan if angle is None else cosine(angle) for angle in self.angles]
        reach = range(-2, 3) if self.skewed else range(-1, 2)
        identity = (group.rotations == np.eye(3, dtype=int)).all(axis=(1, 2))
        points = np.array(list(itertools.product(reach, repeat=3)))[:, None] + group.translations[identity]
        points = points.reshape(-1, 3)
        self.vectors = points[np.abs(points).max(axis=1) > 1e-9]  # (n, 3) lattice vectors in units of the axes
        self._by_length = {axis: self._length_terms(axis) for axis in range(3) if axis not in self.tied_to}
        self._by_angle = {k: self._angle_vectors(k) for k in range(3) if self.angles[k] is None}

    def _length_terms(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors decided by this length: squared length = slope * length^2 + others @ lengths^2."""
        own = [axis, *(later for later, first in self.tied_to.items() if first == axis)]
        squares = self.vectors**2
        if self.angles[2] == 120:  # a = b: the term 2 a b cos(gamma) is one in a^2
            squares[:, 0] -= self.vectors[:, 0] * self.vectors[:, 1]
        slope = squares[:, own].sum(axis=1)
        others = np.where(np.isin(np.arange(3), own), 0.0, squares)
        later = [i for i in range(axis + 1, 3) if i not in own]
        decided = (slope > 1e-9) & ~self.vectors[:, later].any(axis=1)
        for k, (i, j) in enumerate(PLANES):
            if self.angles[k] is None:  # not chosen yet
                decided &= (self.vectors[:, i] == 0) | (self.vectors[:, j] == 0)
        return slope[decided], others[decided]

    def _angle_vectors(self, k: int) -> np.ndarray:
        """Vectors decided by angle k: both axes of its plane in them, and no plane of a later free angle."""
        i, j = PLANES[k]
        decided = self.vectors[:, i] * self.vectors[:, j] != 0
        for later in range(k + 1, 3):
            if self.angles[later] is None:
                i, j = PLANES[later]
                decided &= (self.vectors[:, i] == 0) | (self.vectors[:, j] == 0)
        return self.vectors[decided]

    def min_length(self, axis: int, lengths: np.ndarray, shortest_ang: float) -> float:
        """The least value of this length with no lattice vector below `shortest_ang`; `lengths` (3,), Å, up to it."""
        slope, others = self._by_length[axis]
        return math.sqrt(max(0.0, ((shortest_ang**2 - others @ lengths**2) / slope).max(initial=0.0)))

    def angle_mask(
        self, k: int, cosines: np.ndarray, lengths: np.ndarray, chosen: list[float], shortest_ang: float
    ) -> np.ndarray:
        """(n,) bool: values of angle k, given by their cosines, that can still give a cell.

        `chosen`: cosines of the angles before it.
        """
        i, j = PLANES[k]
        v = self._by_angle[k] * lengths  # (n, 3) Å
        rest = shortest_ang**2 - (v**2).sum(axis=1)
        for other, cos in enumerate([*chosen, *self.known_cos[len(chosen) :]]):
            if other != k and not math.isnan(cos):
                p, q = PLANES[other]
                rest = rest - 2 * v[:, p] * v[:, q] * cos
        slope = 2 * v[:, i] * v[:, j]
        bound = rest / slope  # cos >= bound where the slope is positive, else cos <= bound
        lowest, highest = bound[slope > 0].max(initial=-1.0), bound[slope < 0].min(initial=1.0)
        allowed = (cosines >= lowest) & (cosines <= highest)
        if self.monoclinic:
            return allowed & (cosines <= 1e-12) & (cosines**2 <= 1 - MIN_UNIT_VOLUME**2)  # beta >= 90
        if k < 2:  # some later angle must leave a volume: at best sin(alpha) sin(beta)
            sines = (1 - cosines**2) * math.prod(1 - cos**2 for cos in chosen)
            return allowed & (sines >= (2 * MIN_UNIT_VOLUME) ** 2)
        cos_a, cos_b = chosen
        volume = 1 - cos_a**2 - cos_b**2 - cosines**2 + 2 * cos_a * cos_b * cosines
        return allowed & (volume >= MIN_UNIT_VOLUME**2)


def complete_cell(number: int, cell: Cell) -> Cell | None:
    """What these numbers say of a cell of this group: tied lengths follow. None where its ties contradict them."""
    ties = space_group(number).ties
    lengths = list(cell[:3])
    for later, first in ties.equal_lengths:
        lengths[first] = lengths[later] if lengths[first] is None else lengths[first]
    for later, first in ties.equal_lengths:
        lengths[later] = lengths[first] if lengths[later] is None else lengths[later]
    if any(lengths[later] != lengths[first] for later, first in ties.equal_lengths):
        return None
    pairs = list(zip(cell[3:], ties.angles, strict=True))
    if any(asked is not None and fixed is not None and asked != fixed for asked, fixed in pairs):
        return None
    is_monoclinic = ties.angles[0] is not None and ties.angles[1] is None
    if is_monoclinic and cell[4] is not None and cell[4] < 90:
        return None
    a, b, c = lengths
    return (a, b, c, cell[3], cell[4], cell[5])


@functools.lru_cache(maxsize=256)
def groups_of_cell(cell: Cell) -> np.ndarray:
    """(230,) bool: groups, by number - 1, whose ties these numbers keep. P1 is always among them."""
    return np.array([complete_cell(number, cell) is not None for number in range(1, N_GROUPS + 1)])


def has_volume(alpha: float, beta: float, gamma: float) -> bool:
    """Whether these angles, in degrees, leave a cell as much volume as `CellRules` asks for."""
    x, y, z = map(cosine, (alpha, beta, gamma))
    return 1 - x * x - y * y - z * z + 2 * x * y * z >= MIN_UNIT_VOLUME**2


def cosine(angle: float) -> float:
    """Of degrees; exactly 0 at 90."""
    return 0.0 if angle == 90 else math.cos(math.radians(angle))


@functools.cache
def cell_rules(number: int) -> CellRules:
    return CellRules(number)
