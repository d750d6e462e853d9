"""Bounds on lengths and angles against the shortest vector of the lattice that results."""

from __future__ import annotations

import numpy as np
import pytest

from crystallm.crystal import lattice_from_parameters
from crystallm.geometry import reduce_lattice
from crystallm.sample.cells import MIN_UNIT_VOLUME, cell_rules
from crystallm.space_groups import space_group

SHORTEST = 2.5


def shortest_vector(number: int, lattice: np.ndarray) -> float:
    group = space_group(number)
    identity = (group.rotations == np.eye(3, dtype=int)).all(axis=(1, 2))
    steps = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    vectors = (steps[:, None] + group.translations[identity]).reshape(-1, 3) @ lattice
    lengths = np.linalg.norm(vectors, axis=1)
    return float(lengths[lengths > 1e-6].min())


@pytest.mark.parametrize("number", [16, 21, 22, 23, 75, 79, 143, 146, 168, 195, 196, 197])
def test_least_length_is_where_the_lattice_becomes_too_short(number: int) -> None:
    rng = np.random.default_rng(number)
    cell = cell_rules(number)
    angles = [angle or 90.0 for angle in cell.angles]
    free = [axis for axis in range(3) if axis not in cell.tied_to]
    for _ in range(20):
        lengths = np.zeros(3)
        for axis in free:
            least = cell.min_length(axis, lengths, SHORTEST)
            length = least if axis == free[-1] else least + rng.uniform(0, 2)
            lengths[[axis, *(tied for tied, first in cell.tied_to.items() if first == axis)]] = length
        assert shortest_vector(number, lattice_from_parameters(*lengths, *angles)) == pytest.approx(SHORTEST)


@pytest.mark.parametrize("number", [1, 3, 5])
def test_angles_leave_a_volume_and_no_short_vector(number: int) -> None:
    rng = np.random.default_rng(number)
    cell = cell_rules(number)
    grid = np.arange(10.0, 170.1, 2.0)
    for _ in range(10):
        lengths, angles = rng.uniform(4, 7, 3), []  # those of C2 keep its lattice points apart
        for k in range(3):
            if cell.angles[k] is not None:
                angles.append(cell.angles[k])
                continue
            cosines = [np.cos(np.radians(angle)) if angle != 90 else 0.0 for angle in angles]
            mask = cell.angle_mask(k, np.cos(np.radians(grid)), lengths, cosines, SHORTEST)
            if k == max(i for i in range(3) if cell.angles[i] is None):
                for angle, allowed in zip(grid, mask, strict=True):
                    assert allowed == is_good(number, lengths, [*angles, angle, *cell.angles[k + 1 :]]), angle
            assert mask.any()
            angles.append(float(rng.choice(grid[mask])))


def is_good(number: int, lengths: np.ndarray, angles: list[float]) -> bool:
    if number >= 3 and angles[1] < 90:  # monoclinic: beta is not acute
        return False
    try:
        lattice = lattice_from_parameters(*lengths, *angles)
    except ValueError:
        return False
    return bool(
        np.linalg.det(lattice) >= MIN_UNIT_VOLUME * lengths.prod() and shortest_vector(number, lattice) >= SHORTEST
    )


def test_ties() -> None:
    assert cell_rules(225).tied_to == {1: 0, 2: 0} and cell_rules(225).angles == (90, 90, 90)
    assert cell_rules(166).tied_to == {1: 0} and cell_rules(166).angles == (90, 90, 120)
    assert cell_rules(14).tied_to == {} and cell_rules(14).angles == (90, None, 90)


def test_reduced_cells_of_the_brute_force_are_the_same() -> None:
    """The helper above searches four cells far; the reduction of geometry.py has no such limit."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        lattice = lattice_from_parameters(*rng.uniform(3, 6, 3), *rng.uniform(60, 120, 3) * [1, 1, 0.9])
        assert shortest_vector(1, lattice) == pytest.approx(np.linalg.norm(reduce_lattice(lattice)[0][0]))
