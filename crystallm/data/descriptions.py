"""The canonical description's control: the same crystal in a description drawn at random.

Drawn are the cell among those that are equally short, the image under the normaliser (so letters and origin), the
origin along polar axes, each site's point among the equivalent ones on the first representative of its position, and
the order of sites of one element and letter. Elements and letters stay in order, as sampling constraints want them.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from crystallm.asymmetric_unit import AsymmetricUnit, Site
from crystallm.canonical import COORDINATE_STEPS
from crystallm.crystal import Crystal, lattice_from_parameters
from crystallm.space_groups import SpaceGroup
from crystallm.symmetry import identify_positions
from tokenizer.elements import ELEMENT_RANK

SAME_LENGTH_ANG = 0.02  # sums of cell lengths that are this close count as equally short

# The 24 proper matrices that permute axes and turn them round.
AXIS_CHANGES = np.array(
    [
        matrix
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
        if np.linalg.det(matrix := np.eye(3, dtype=np.int64)[list(order)] * signs) > 0
    ]
)


def random_description(unit: AsymmetricUnit, rng: np.random.Generator) -> AsymmetricUnit:
    """The same crystal, to the rounding of the text, in a description drawn at random from `rng`."""
    group = unit.group
    letters = np.array([group.position(site.letter).index for site in unit.sites])
    points = np.array(
        [group.wyckoff[i].coordinates(np.array(site.frac)) for i, site in zip(letters, unit.sites, strict=True)]
    )
    lattice = lattice_from_parameters(*unit.cell)
    if group.number <= 2:  # any change of basis keeps the group, and so the normaliser's table lists none
        change = AXIS_CHANGES[rng.integers(len(AXIS_CHANGES))]
        lattice = _changed(lattice, change)
        letters, points = identify_positions(group, points @ change.T, letters)
    normaliser = group.normaliser
    k = rng.choice(_short_cells(group, lattice))
    lattice = _changed(lattice, normaliser.rotations[k])
    operations = normaliser.operations[k, letters]
    points = points @ normaliser.rotations[k].T + normaliser.translations[k]
    points = np.einsum("sij,sj->si", group.rotations[operations], points) + group.translations[operations]
    points = points + normaliser.polar * rng.integers(0, COORDINATE_STEPS, 3) / COORDINATE_STEPS
    sites = []
    for site, letter, point in zip(unit.sites, normaliser.letters[k, letters], points, strict=True):
        position = group.wyckoff[letter]
        i = rng.integers(len(position.stabiliser_rotations))
        point = position.stabiliser_rotations[i] @ point + position.stabiliser_translations[i]
        x, y, z = (_steps(position.coordinates(point)) / COORDINATE_STEPS).tolist()
        sites.append((ELEMENT_RANK[site.symbol], letter, rng.random(), Site(site.symbol, position.letter, (x, y, z))))
    sites.sort(key=lambda entry: entry[:3])
    return replace(unit, cell=_rounded_cell(group, lattice), sites=tuple(site for *_, site in sites))


def _changed(lattice: np.ndarray, change: np.ndarray) -> np.ndarray:
    """(3, 3), rows a, b, c: the cell in which a point x has the coordinates change @ x."""
    return np.linalg.inv(change).T @ lattice


def _short_cells(group: SpaceGroup, lattice: np.ndarray) -> np.ndarray:
    """The normaliser's cosets whose cell is among the shortest; above the orthorhombic groups all keep the cell."""
    rotations = group.normaliser.rotations
    if group.number >= 75:
        return np.arange(len(rotations))
    total = np.array([np.linalg.norm(_changed(lattice, rotation), axis=1).sum() for rotation in rotations])
    return np.flatnonzero(total <= total.min() + SAME_LENGTH_ANG)


def _steps(frac: np.ndarray) -> np.ndarray:
    return np.floor(frac * COORDINATE_STEPS + 0.5 + 1e-6).astype(np.int64) % COORDINATE_STEPS


def _rounded_cell(group: SpaceGroup, lattice: np.ndarray) -> tuple[float, float, float, float, float, float]:
    """As the text writes it: 0.01 Å and 0.1°, ties exact."""
    a, b, c, *angles = Crystal(lattice, np.zeros((1, 3)), np.array([1])).cell.tolist()
    lengths = [round(length, 2) for length in (a, b, c)]
    for i, j in group.ties.equal_lengths:
        lengths[i] = lengths[j]
    alpha, beta, gamma = (
        round(angle, 1) if tied is None else tied for angle, tied in zip(angles, group.ties.angles, strict=True)
    )
    return lengths[0], lengths[1], lengths[2], alpha, beta, gamma
