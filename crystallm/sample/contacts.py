"""Which values of a coordinate keep a site far enough from every placed one and from its own orbit. Knows no tokens.

With all but one coordinate of a site given, the vector to an image is d + x v: the forbidden x are the interval where
this quadratic lies below the squared distance allowed. So a mask over all values costs one quadratic an image, not
1,000 distances.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from crystallm.space_groups import WyckoffPosition, space_group, wrap

# Contacts exactly at the limit pass the distance check in one description of a crystal and may fail in another.
_SLACK_ANG = 1e-6


@dataclass(frozen=True, eq=False)
class Orbit:
    """The images of a site as functions of its coordinates: image k of x is matrices[k] @ x + offsets[k]."""

    position: WyckoffPosition
    matrices: np.ndarray  # (multiplicity, 3, 3), the site itself first
    offsets: np.ndarray  # (multiplicity, 3)
    self_matrices: np.ndarray  # (multiplicity - 1, 3, 3): vector from image k to the site, as a function of x
    self_offsets: np.ndarray  # (multiplicity - 1, 3)
    # By free axis: the vectors that are known once this coordinate is, and change with it.
    known_at: dict[int, np.ndarray]
    constants: tuple[float | None, ...]  # by axis; None where the coordinate depends on a free one

    def coordinate(self, axis: int, frac: np.ndarray) -> float:
        """The exact coordinate that follows from the free ones before it."""
        constant = self.constants[axis]
        if constant is not None:
            return constant
        return float(self.position.affine[axis] @ frac + self.position.constant[axis])

    def images(self, frac: np.ndarray) -> np.ndarray:
        """(3,) -> (multiplicity, 3) in [0, 1)"""
        return wrap(self.matrices @ frac + self.offsets)

    @functools.cached_property
    def _pairs(self) -> dict[tuple[int, tuple[int, ...]], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return {}

    def self_pairs(self, axis: int, extra: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image, slope (n, 3) and lattice shift (n, 3) of each vector to be looked at when `axis` is chosen."""
        if (axis, extra) not in self._pairs:
            images, slopes, shifts = [], [], []
            for k in self.known_at[axis].tolist():
                slope = self.self_matrices[k, :, axis]
                cells = lattice_shifts(tuple(slope.astype(int).tolist()), extra)
                images.append(np.full(len(cells), k))
                slopes.append(np.broadcast_to(slope, cells.shape))
                shifts.append(cells)
            empty = np.zeros((0, 3))
            self._pairs[axis, extra] = (
                np.concatenate([np.zeros(0, int), *images]),
                np.concatenate([empty, *slopes]),
                np.concatenate([empty, *shifts]),
            )
        return self._pairs[axis, extra]


@functools.cache
def lattice_shifts(slope: tuple[int, ...], extra: tuple[int, ...]) -> np.ndarray:
    """(n, 3): the cells in which d + x slope, |d| <= 1/2 and 0 <= x < 1, can come within half a cell of 0.

    `extra` widens the search where the allowed distance is longer than half the spacing of the lattice planes.
    """
    ranges = [range(-max(v, 0) - e, max(-v, 0) + e + 1) for v, e in zip(slope, extra, strict=True)]
    return np.array(list(itertools.product(*ranges)), dtype=np.float64)


@functools.cache
def orbit(number: int, letter: int) -> Orbit:
    """By space-group number and letter index."""
    position = space_group(number).wyckoff[letter]
    matrices = position.orbit_rotations @ position.affine
    offsets = position.orbit_rotations @ position.constant + position.orbit_translations
    self_matrices, self_offsets = matrices[0] - matrices[1:], offsets[0] - offsets[1:]
    known_at = {}
    for i, axis in enumerate(position.free_axes):
        later = self_matrices[:, :, position.free_axes[i + 1 :]].any(axis=(1, 2))
        known_at[axis] = np.flatnonzero(self_matrices[:, :, axis].any(axis=1) & ~later)
    constants = tuple(None if position.affine[axis].any() else float(position.constant[axis]) for axis in range(3))
    return Orbit(position, matrices, offsets, self_matrices, self_offsets, known_at, constants)


@dataclass(frozen=True, eq=False)
class GroupPositions:
    """What is known of a group's positions before any coordinate is."""

    bits: np.ndarray  # (n_positions,) int64, 1 << letter index
    own: np.ndarray  # (n, 3) vectors from a site to its own images that depend on no parameter
    own_letter: np.ndarray  # (n,) letter index
    points: np.ndarray  # (n_points, 3), the positions without parameters
    point_letters: np.ndarray  # (n_points,) letter index


@functools.cache
def group_positions(number: int) -> GroupPositions:
    orbits = [orbit(number, p.index) for p in space_group(number).wyckoff]
    own = [o.self_offsets[~o.self_matrices.any(axis=(1, 2))] for o in orbits]
    points = [o.position for o in orbits if o.position.n_free == 0]
    return GroupPositions(
        bits=1 << np.arange(len(orbits), dtype=np.int64),
        own=np.concatenate(own),
        own_letter=np.repeat(np.arange(len(orbits)), [len(vectors) for vectors in own]),
        points=np.array([p.constant for p in points]).reshape(-1, 3),
        point_letters=np.array([p.index for p in points], dtype=np.int64),
    )


@functools.cache
def line_letters(number: int, largest: int | None) -> tuple[int, ...]:
    """Positions with one free parameter, of at most this multiplicity."""
    found = (p for p in space_group(number).wyckoff if p.n_free == 1)
    return tuple(p.index for p in found if largest is None or p.multiplicity <= largest)


@dataclass(frozen=True, eq=False)
class GroupLines:
    """Positions with one free parameter, and the vectors that depend on it, as rows of one computation."""

    letters: tuple[int, ...]
    base: np.ndarray  # (n_lines, 3): the site where its free coordinate is 0
    # vectors to images of its own: delta + x slope
    own_line: np.ndarray  # (n,) index in `letters`
    own_delta: np.ndarray  # (n, 3)
    own_slope: np.ndarray  # (n, 3)
    # what stands for one vector to another site: it has to be looked at in several cells
    line: np.ndarray  # (n_cells,) index in `letters`
    slope: np.ndarray  # (n_cells, 3)
    cell: np.ndarray  # (n_cells, 3)


@functools.cache
def group_lines(number: int, extra: tuple[int, ...], letters: tuple[int, ...]) -> GroupLines:
    orbits = [orbit(number, letter) for letter in letters]
    empty = (np.zeros(0, dtype=np.int64), np.zeros((0, 3)), np.zeros((0, 3)))
    own, cells = [empty], [empty]
    for index, site in enumerate(orbits):
        (axis,) = site.position.free_axes
        image, slope, shift = site.self_pairs(axis, extra)
        delta = site.self_offsets - np.rint(site.self_offsets)
        own.append((np.full(len(image), index), delta[image] + shift, slope))
        slope = site.matrices[0, :, axis]
        shifts = lattice_shifts(tuple(slope.astype(int).tolist()), extra)
        cells.append((np.full(len(shifts), index), np.broadcast_to(slope, shifts.shape), shifts))
    own_line, own_delta, own_slope = map(np.concatenate, zip(*own, strict=True))
    line, slope, cell = map(np.concatenate, zip(*cells, strict=True))
    base = np.array([site.position.constant for site in orbits]).reshape(-1, 3)
    return GroupLines(letters, base, own_line, own_delta, own_slope, line, slope, cell)


class Contacts:
    """The sites placed so far in one cell.

    It is taken for granted that no vector of the lattice itself is too short.
    """

    def __init__(self, number: int, lattice: np.ndarray, allowed_ang: np.ndarray, n_values: int = 1000):
        """`number` of the space group; `allowed_ang` (n_elements, n_elements): the shortest distances."""
        self.lattice = lattice
        self.metric = lattice @ lattice.T  # (3, 3) Å^2
        self.allowed = allowed_ang + _SLACK_ANG
        self.n_values = n_values
        self.points = np.zeros((0, 3))  # all images of the placed sites
        self.elements = np.zeros(0, dtype=np.int64)  # (n_points,) element indices
        spacing = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0)  # (3,) Å between lattice planes
        reach = np.maximum(np.ceil(self.allowed.max() / spacing - 0.5), 0).astype(int)
        self.extra: tuple[int, ...] = tuple(reach.tolist())
        # (n_positions, n_elements): where an element would be too close to its own images, whatever its coordinates,
        # or, at a point, to something placed
        self.number, self.group = number, group_positions(number)
        self._lines: dict[int, GroupLines] = {}  # element -> the lines it can be on
        self._line_masks: dict[int, np.ndarray] = {}  # element -> (n_lines, n_values)
        self._line_points: dict[int, int] = {}  # element -> how many points these masks take into account
        own = np.full(len(self.group.bits), np.inf)
        if len(self.group.own):
            np.minimum.at(own, self.group.own_letter, self._squares(self.group.own))
        self._blocked = own[:, None] < self.allowed.diagonal() ** 2

    def place(self, site: Orbit, frac: np.ndarray, element: int) -> None:
        """`frac` (3,): the free coordinates of the site, 0 for the others."""
        images = site.images(frac)
        self.points = np.concatenate([self.points, images])
        self.elements = np.concatenate([self.elements, np.full(len(images), element)])
        if len(self.group.points):
            squares = self._squares(self.group.points[:, None] - images).min(axis=1)  # (n_points,)
            self._blocked[self.group.point_letters] |= squares[:, None] < self.allowed[element] ** 2

    def blocked(self, element: int, n_atoms: int | None = None) -> list[int]:
        """Per element, from this one on, a bit mask of the letters where it cannot be.

        `n_atoms` of this element are left: positions of more, except points, are not looked at.
        """
        letters = line_letters(self.number, n_atoms)
        if letters:
            lines = self._lines.get(element)
            if lines is None or not set(letters) <= set(lines.letters):
                self._set_lines(element, letters)
            lines, masks = self._lines[element], self.line_masks(element)
            self._blocked[lines.letters, element] |= ~masks.any(axis=1)
        return (self.group.bits @ self._blocked[:, element:]).tolist()

    def _set_lines(self, element: int, letters: tuple[int, ...]) -> None:
        self._lines[element] = group_lines(self.number, self.extra, letters)
        self._line_masks.pop(element, None)
        self._line_points.pop(element, None)

    def line_masks(self, element: int) -> np.ndarray:
        """(n_lines, n_values) bool: `coordinate_mask` of the lines that this element can be on."""
        lines = self._lines[element]
        n_lines, done = len(lines.letters), self._line_points.get(element, 0)
        if element not in self._line_masks:
            squares = np.full(len(lines.own_line), self.allowed[element, element] ** 2)
            mask = self._outside(lines.own_delta, lines.own_slope, squares, lines.own_line, n_lines)
            self._line_masks[element] = mask
        if done < len(self.points):
            delta = lines.base[lines.line][:, None] - self.points[done:]  # (n_cells, n_points, 3)
            delta = (delta - np.rint(delta) + lines.cell[:, None]).reshape(-1, 3)
            n_points = len(self.points) - done
            slope, line = lines.slope.repeat(n_points, axis=0), lines.line.repeat(n_points)
            squares = np.tile(self.allowed[element, self.elements[done:]] ** 2, len(lines.line))
            self._line_masks[element] &= self._outside(delta, slope, squares, line, n_lines)
            self._line_points[element] = len(self.points)
        return self._line_masks[element]

    def _squares(self, delta: np.ndarray) -> np.ndarray:
        """(..., 3) -> (...,) Å^2: the shortest equivalent of a vector, exact where it is too short."""
        delta = delta - np.rint(delta)
        if any(self.extra):
            delta = delta[..., None, :] + lattice_shifts((0, 0, 0), self.extra)
            return np.einsum("...j,...j->...", delta @ self.metric, delta).min(axis=-1)
        return np.einsum("...j,...j->...", delta @ self.metric, delta)

    def coordinate_mask(self, site: Orbit, axis: int, frac: np.ndarray, element: int) -> np.ndarray:
        """(n_values,) bool: values of coordinate `axis` that keep every distance decided by it.

        `frac` (3,): the coordinates chosen so far, 0 for `axis` and for those still to come. Distances to other sites
        are decided with the last free coordinate, those to the site's own images sometimes before.
        """
        if site.position.n_free == 1:
            letter = site.position.index
            if element not in self._lines or letter not in self._lines[element].letters:
                self._set_lines(element, line_letters(self.number, None))
            return self.line_masks(element)[self._lines[element].letters.index(letter)]
        own, slope, shift = site.self_pairs(axis, self.extra)
        delta = site.self_matrices @ frac + site.self_offsets
        delta = (delta - np.rint(delta))[own] + shift
        squares = np.full(len(delta), self.allowed[element, element] ** 2)
        if axis == site.position.free_axes[-1] and len(self.points):
            other_slope = site.matrices[0, :, axis]
            cells = lattice_shifts(tuple(other_slope.astype(int).tolist()), self.extra)
            other = site.matrices[0] @ frac + site.offsets[0] - self.points
            other = ((other - np.rint(other))[:, None] + cells).reshape(-1, 3)
            delta = np.concatenate([delta, other])
            slope = np.concatenate([slope, np.broadcast_to(other_slope, other.shape)])
            squares = np.concatenate([squares, np.repeat(self.allowed[element, self.elements] ** 2, len(cells))])
        return self._outside(delta, slope, squares)[0]

    def _outside(
        self, delta: np.ndarray, slope: np.ndarray, squares: np.ndarray, row: np.ndarray | None = None, n_rows: int = 1
    ) -> np.ndarray:
        """(n_rows, n_values) bool: grid values x with |delta + x slope|^2 >= squares for every vector of the row."""
        in_metric = delta @ self.metric
        c = np.einsum("ij,ij->i", in_metric, delta) - squares
        b = np.einsum("ij,ij->i", in_metric, slope)
        a = np.einsum("ij,ij->i", slope @ self.metric, slope)
        discriminant = b * b - a * c
        near = np.flatnonzero(discriminant > 0)
        if len(near) == 0:
            return np.ones((n_rows, self.n_values), dtype=bool)
        a, b, root = a[near], b[near], np.sqrt(discriminant[near])
        first = np.maximum(np.ceil((-b - root) / a * self.n_values), 0).astype(np.int64)
        last = np.minimum(np.floor((-b + root) / a * self.n_values), self.n_values - 1).astype(np.int64)
        inside = first <= last
        offset = 0 if row is None else row[near[inside]] * (self.n_values + 1)
        size = n_rows * (self.n_values + 1)
        change = np.bincount(first[inside] + offset, minlength=size)
        change -= np.bincount(last[inside] + 1 + offset, minlength=size)
        return np.cumsum(change).reshape(n_rows, -1)[:, :-1] == 0  # each row's changes add up to 0
