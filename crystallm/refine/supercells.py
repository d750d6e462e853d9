"""Supercells, and cells taken apart: the smaller lattices that hold a given one, and how likely each is a crystal's."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from crystallm.crystal import Crystal, Floats, Ints
from crystallm.geometry import reduce_lattice, shortest_distances

COMPACT = 0.85  # a smaller lattice is drawn if its shortest vector is so near to the longest that its index allows
METRIC_TOLERANCE = 1e-3  # of squared lengths, for the rotations of a lattice


def supercell(crystal: Crystal, times: ArrayLike) -> Crystal:
    """`times`: so many cells along a, b and c, or integers (3, 3), the rows of the new lattice in those of the old."""
    matrix = np.asarray(times, dtype=np.int64)
    matrix = np.diag(matrix) if matrix.ndim == 1 else matrix
    index = round(abs(float(np.linalg.det(matrix)))) if matrix.shape == (3, 3) else 0
    if index == 0:
        raise ValueError(f"a supercell is made by 3 numbers of cells or (3, 3) integers of rank 3, got {times!r}")
    low, high = matrix.clip(max=0).sum(axis=0), matrix.clip(min=0).sum(axis=0)
    grid = np.stack(np.meshgrid(*map(np.arange, low, high + 1), indexing="ij"), axis=-1).reshape(-1, 3)
    inverse = np.rint(index * np.linalg.inv(matrix)).astype(np.int64)  # times the index: integers
    inside = grid @ inverse
    cells = grid[((inside >= 0) & (inside < index)).all(axis=1)]
    frac = (crystal.frac_coords[None] + cells[:, None]).reshape(-1, 3) @ np.linalg.inv(matrix)
    return Crystal(matrix @ crystal.lattice, frac, np.tile(crystal.atomic_numbers, len(cells)))


def doubled(crystal: Crystal) -> Crystal:
    """Two cells of it along the shortest vector of its lattice."""
    _, change = reduce_lattice(crystal.lattice)
    return supercell(crystal, np.diag([2, 1, 1]) @ np.rint(change).astype(np.int64))


def hermite_forms(index: int) -> Ints:
    """(n, 3, 3) with determinant `index`: each way to divide a cell into so many that are alike.

    Lower triangular, what stands left of a diagonal entry less than it: Hermite normal forms by columns, one for each
    lattice with cell = form @ smaller cell (Hart and Forcade 2008, section II).
    """
    forms = []
    for a in divisors(index):
        for b in divisors(index // a):
            c = index // (a * b)
            forms += [[[a, 0, 0], [x, b, 0], [y, z, c]] for x in range(b) for y in range(c) for z in range(c)]
    return np.array(forms, dtype=np.int64)


def divisions(lattice: ArrayLike, index: int) -> tuple[Ints, Floats]:
    """(n, 3, 3) integers, (n,): the compact ways to divide a cell into `index`, and how likely each is.

    lattice = matrix @ smaller lattice, which is Minkowski-reduced. A crystal has as a rule the symmetry that its cell
    shows, so a division weighs as the cube of the number of rotations of the cell that keep it.
    """
    lattice = np.asarray(lattice, dtype=np.float64)
    forms = hermite_forms(index)
    shortest = _shortest_vectors_ang(lattice, forms)
    forms = forms[shortest >= COMPACT * shortest.max()]
    inverse = np.linalg.inv(forms)
    turned = inverse[:, None] @ lattice_rotations(lattice) @ forms[:, None]  # (n, n_rotations, 3, 3)
    kept = (np.abs(turned - np.rint(turned)) < 1e-6).all(axis=(2, 3)).sum(axis=1)
    weights = kept.astype(np.float64) ** 3
    changes = [reduce_lattice(one @ lattice)[1] for one in inverse]  # reduced = change @ smaller
    matrices = [np.rint(form @ np.linalg.inv(change)) for form, change in zip(forms, changes, strict=True)]
    return np.array(matrices, dtype=np.int64), weights / weights.sum()


def lattice_rotations(lattice: ArrayLike) -> Ints:
    """(n, 3, 3) integers R with R @ lattice a rotation of the lattice onto itself, improper ones too: 2 to 48."""
    reduced, change = reduce_lattice(lattice)
    entries = np.stack(np.meshgrid(*[(-1, 0, 1)] * 9, indexing="ij"), axis=-1).reshape(-1, 3, 3)
    metric = reduced @ reduced.T
    same = np.abs(entries @ metric @ entries.transpose(0, 2, 1) - metric) <= METRIC_TOLERANCE * metric.trace()
    rotations = np.linalg.inv(change) @ entries[same.all(axis=(1, 2))] @ change
    return np.rint(rotations).astype(np.int64)


def _shortest_vectors_ang(lattice: Floats, forms: Ints) -> Floats:
    """(n,) of the smaller lattices"""
    own = float(np.linalg.norm(reduce_lattice(lattice)[0][0]))
    shortest = np.empty(len(forms))
    diagonals = forms.diagonal(axis1=1, axis2=2)
    for diagonal in np.unique(diagonals, axis=0):
        places = np.flatnonzero((diagonals == diagonal).all(axis=1))
        cells = np.stack(np.meshgrid(*map(np.arange, diagonal), indexing="ij"), axis=-1).reshape(-1, 3)[1:]
        if not len(cells):  # the cell itself
            shortest[places] = own
            continue
        points = (cells @ np.linalg.inv(forms[places])).reshape(-1, 3)  # the translations, in fractions of the cell
        far = shortest_distances(lattice, points, np.zeros((1, 3))).reshape(len(places), len(cells))
        shortest[places] = np.minimum(far.min(axis=1), own)
    return shortest


def divisors(number: int) -> list[int]:
    return [k for k in range(1, number + 1) if number % k == 0]
