"""Distances in a periodic crystal, and how close two elements may come. Needs numpy only: sampling imports it too.

Lattices are (3, 3) arrays with the rows a, b, c in Å; coordinates are fractional. Nothing here knows of symmetry, files
or checks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Covalent radii, Å, of Z = 1 ... 96: Cordero et al., Dalton Trans. 2008, 2832, doi 10.1039/b801115j, table 2.
# C is the sp3 value; Mn, Fe and Co are the low-spin ones (the smaller: they bound a distance from below).
_CORDERO = """
0.31 0.28
1.28 0.96 0.84 0.76 0.71 0.66 0.57 0.58
1.66 1.41 1.21 1.11 1.07 1.05 1.02 1.06
2.03 1.76 1.70 1.60 1.53 1.39 1.39 1.32 1.26 1.24 1.32 1.22 1.22 1.20 1.19 1.20 1.20 1.16
2.20 1.95 1.90 1.75 1.64 1.54 1.47 1.46 1.42 1.39 1.45 1.44 1.42 1.39 1.39 1.38 1.39 1.40
2.44 2.15 2.07 2.04 2.03 2.01 1.99 1.98 1.98 1.96 1.94 1.92 1.92 1.89 1.90 1.87 1.87
1.75 1.70 1.62 1.51 1.44 1.41 1.36 1.36 1.32 1.45 1.46 1.48 1.40 1.50 1.50
2.60 2.21 2.15 2.06 2.00 1.96 1.90 1.87 1.80 1.69
"""
MAX_ATOMIC_NUMBER = 118

# Of 128,796 Materials Project crystals 73 (0.057 %) hold a contact below 0.55 times the radii, 183 (0.14 %) below 0.6,
# and half have none below 0.89. What falls is unrelaxed: O-H at 0.5 Å, P-O at 0.9 Å. H needs no factor of its own:
# H-H in H2 stands at 1.19 times its radii. The floor is for H too, whose two radii allow 0.34 Å.
MIN_DISTANCE_FACTOR = 0.55
MIN_DISTANCE_ANG = 0.5


class Contact(NamedTuple):
    """Two sites that are closer than their elements may come; i == j: a site and its own periodic image."""

    i: int
    j: int
    distance_ang: float
    allowed_ang: float


@functools.cache
def covalent_radii() -> Floats:
    """(119,) Å by atomic number; nan at 0. Beyond Cm (96), where nothing was measured, Cm's radius."""
    measured = [float(word) for word in _CORDERO.split()]
    radii = np.array([np.nan, *measured] + [measured[-1]] * (MAX_ATOMIC_NUMBER - len(measured)))
    radii.flags.writeable = False
    return radii


def min_allowed_distance(
    first: ArrayLike, second: ArrayLike, factor: float = MIN_DISTANCE_FACTOR, floor_ang: float = MIN_DISTANCE_ANG
) -> Floats:
    """How close atoms of these atomic numbers may come, Å: `factor` times the sum of their covalent radii.

    Never below the floor. The arguments broadcast: min_allowed_distance(z[:, None], z) is the table of a crystal.
    """
    radii = covalent_radii()
    return np.maximum(factor * (radii[np.asarray(first)] + radii[np.asarray(second)]), floor_ang)


def reduce_lattice(lattice: ArrayLike) -> tuple[Floats, Ints]:
    """The Minkowski-reduced basis of the same lattice, and the integer matrix with reduced = matrix @ lattice.

    Rows come out shortest first; the first is a shortest vector of the lattice. The greedy algorithm of Semaev (2001):
    reduce the two shortest vectors in their plane, take from the third the plane's closest vector, repeat.
    """
    reduced = np.array(lattice, dtype=np.float64)
    if reduced.shape != (3, 3) or not np.isfinite(reduced).all():
        raise ValueError(f"a lattice is a finite (3, 3) array, got shape {reduced.shape}: {reduced.tolist()}")
    lengths = np.linalg.norm(reduced, axis=1)
    if not abs(np.linalg.det(reduced)) > 1e-9 * lengths.prod():
        raise ValueError(f"a lattice spans a volume, but these vectors lie in a plane: {reduced.tolist()}")
    matrix = np.eye(3, dtype=np.int64)
    steps = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)])
    for _ in range(1000):  # ends after a few rounds: each but the last shortens a vector
        order = np.argsort(np.einsum("ij,ij->i", reduced, reduced), kind="stable")
        reduced, matrix = reduced[order], matrix[order]
        while True:  # Gauss, in the plane of the two shortest
            n = round(float(reduced[1] @ reduced[0]) / float(reduced[0] @ reduced[0]))
            reduced[1] -= n * reduced[0]
            matrix[1] -= n * matrix[0]
            if reduced[1] @ reduced[1] >= (reduced[0] @ reduced[0]) * (1 - 1e-12):
                break
            reduced[[0, 1]], matrix[[0, 1]] = reduced[[1, 0]], matrix[[1, 0]]
        plane = reduced[:2]
        nearest = np.rint(np.linalg.solve(plane @ plane.T, plane @ reduced[2])).astype(np.int64)
        candidates = reduced[2] - (nearest + steps) @ plane
        best = int(np.argmin(np.einsum("ij,ij->i", candidates, candidates)))
        reduced[2] = candidates[best]
        matrix[2] -= (nearest + steps[best]) @ matrix[:2]
        if reduced[2] @ reduced[2] >= (reduced[1] @ reduced[1]) * (1 - 1e-12):
            return reduced, matrix
    raise ValueError(f"no reduced basis found for lattice {np.asarray(lattice).tolist()}")


@functools.cache
def _neighbour_cells() -> Floats:
    """(27, 3): the cells around one cell, itself first. In a Minkowski-reduced basis they hold the nearest image."""
    shifts = np.array(np.meshgrid(*[(0.0, -1.0, 1.0)] * 3, indexing="ij")).reshape(3, -1).T
    shifts.flags.writeable = False
    return shifts


def shortest_distances(lattice: ArrayLike, frac_a: ArrayLike, frac_b: ArrayLike | None = None) -> Floats:
    """(n_a, n_b) Å: from each point of `frac_a` to the nearest periodic image of each point of `frac_b`.

    Without `frac_b`: among the points of `frac_a`, and the diagonal is the distance from a site to its own nearest
    image, the shortest lattice vector. Exact in skewed cells too.
    """
    reduced, matrix = reduce_lattice(lattice)
    to_reduced = np.linalg.inv(matrix.astype(np.float64))
    a = np.asarray(frac_a, dtype=np.float64).reshape(-1, 3) @ to_reduced
    b = a if frac_b is None else np.asarray(frac_b, dtype=np.float64).reshape(-1, 3) @ to_reduced
    shifts = _neighbour_cells() @ reduced  # (27, 3) Å
    distances = np.empty((len(a), len(b)))
    rows = max(1, 100_000 // max(1, len(b)))  # bounds the memory to about 60 MB for any number of atoms
    for start in range(0, len(a), rows):
        delta = a[start : start + rows, None, :] - b[None, :, :]  # (rows, n_b, 3)
        delta = (delta - np.rint(delta)) @ reduced  # Å
        squares = 2 * delta @ shifts.T + np.einsum("ij,ij->i", shifts, shifts)  # |delta + shift|^2 - |delta|^2
        nearest = delta + shifts[squares.argmin(axis=-1)]
        distances[start : start + rows] = np.sqrt(np.einsum("ijk,ijk->ij", nearest, nearest))
    if frac_b is None:
        np.fill_diagonal(distances, np.linalg.norm(reduced[0]))
    return distances


def shortest_distance(lattice: ArrayLike, frac_coords: ArrayLike) -> float:
    """The shortest distance between two atoms, Å, periodic images included; one atom: the shortest lattice vector."""
    return float(shortest_distances(lattice, frac_coords).min())


def neighbour_pairs(
    lattice: ArrayLike, frac_coords: ArrayLike, cutoff_ang: float, centres: Iterable[int] | None = None
) -> tuple[Ints, Ints, Ints, Floats]:
    """Every ordered pair of sites within the cutoff: i, j, image (n_pairs, 3) of j, distance; own images included.

    The vector of a pair is (frac_coords[j] + image - frac_coords[i]) @ lattice. `centres`: only pairs with i among
    these.
    """
    reduced, matrix = reduce_lattice(lattice)
    to_reduced = np.linalg.inv(matrix.astype(np.float64))
    coords = np.asarray(frac_coords, dtype=np.float64).reshape(-1, 3)
    frac = coords @ to_reduced
    wrapped = np.floor(frac)
    frac = frac - wrapped  # in [0, 1), so two sites differ by less than one cell along each axis
    heights = 1 / np.linalg.norm(np.linalg.inv(reduced), axis=0)  # Å between the cell's opposite faces
    reach = np.floor(cutoff_ang / heights).astype(int) + 1
    axes = [np.arange(-n, n + 1) for n in reach]
    images = np.array(np.meshgrid(*axes, indexing="ij")).reshape(3, -1).T  # (n_images, 3)
    found: list[tuple[Ints, Ints, Ints, Floats]] = []
    for i in range(len(frac)) if centres is None else centres:
        delta = (frac[None, :, :] - frac[i] + images[:, None, :]) @ reduced  # (n_images, n_atoms, 3) Å
        squares = np.einsum("ijk,ijk->ij", delta, delta)
        near = squares <= cutoff_ang**2
        near[len(images) // 2, i] = False  # the site itself, in its own cell
        image, j = np.nonzero(near)
        found.append((np.full(len(j), i), j, images[image] - wrapped[j] + wrapped[i], np.sqrt(squares[image, j])))
    sources, targets, cells, distances = (np.concatenate(column) for column in zip(*found, strict=True))
    return sources, targets, np.rint(cells @ matrix).astype(np.int64), distances


def coordination_numbers(lattice: ArrayLike, frac_coords: ArrayLike, tolerance: float = 0.1) -> Ints:
    """(n_atoms,): neighbours of each atom no farther than (1 + tolerance) times its nearest one, images included.

    12 in FCC, 8 in BCC (whose second shell is 15 % farther), 4 in diamond, 6 in rock salt.
    """
    reach = shortest_distances(lattice, frac_coords).min(axis=1) * (1 + tolerance)  # (n_atoms,) Å
    i, _, _, distances = neighbour_pairs(lattice, frac_coords, float(reach.max()))
    return np.bincount(i[distances <= reach[i]], minlength=len(reach))


def distance_violations(
    lattice: ArrayLike,
    frac_coords: ArrayLike,
    atomic_numbers: ArrayLike,
    factor: float = MIN_DISTANCE_FACTOR,
    floor_ang: float = MIN_DISTANCE_ANG,
) -> list[Contact]:
    """Pairs of sites closer than `min_allowed_distance`, the worst (smallest share of what is allowed) first."""
    numbers = np.asarray(atomic_numbers)
    distances = shortest_distances(lattice, frac_coords)
    allowed = min_allowed_distance(numbers[:, None], numbers[None, :], factor, floor_ang)
    pairs = np.argwhere(np.triu(distances < allowed)).tolist()
    contacts = [Contact(i, j, float(distances[i, j]), float(allowed[i, j])) for i, j in pairs]
    return sorted(contacts, key=lambda contact: contact.distance_ang / contact.allowed_ang)
