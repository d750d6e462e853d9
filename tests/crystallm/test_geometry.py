"""Distances against brute force over many cells, against ASE and pymatgen, and under what must not change them."""

from __future__ import annotations

import ase.data
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from crystallm.geometry import (
    MIN_DISTANCE_ANG,
    covalent_radii,
    distance_violations,
    min_allowed_distance,
    neighbour_pairs,
    reduce_lattice,
    shortest_distance,
    shortest_distances,
)

cells = st.tuples(*[st.floats(1.5, 12)] * 3, *[st.floats(20, 150)] * 3)
shears = st.tuples(*[st.integers(-3, 3)] * 6)


def skewed(cell: tuple[float, ...], shear: tuple[int, ...]) -> np.ndarray:
    """A lattice of positive volume, described by far from its shortest vectors."""
    a, b, c, alpha, beta, gamma = cell
    cos = np.cos(np.radians([alpha, beta, gamma]))
    if 1 + 2 * cos.prod() - (cos**2).sum() < 0.02:
        alpha = beta = gamma = 90.0
    lattice = Lattice.from_parameters(a, b, c, alpha, beta, gamma).matrix
    p, q, r, s, t, u = shear
    return np.array([[1, p, q], [0, 1, r], [0, 0, 1]]) @ np.array([[1, 0, 0], [s, 1, 0], [t, u, 1]]) @ lattice


def brute_distances(lattice: np.ndarray, frac: np.ndarray, reach: int) -> np.ndarray:
    """(n, n) nearest images among (2 reach + 1)^3 cells, one after another."""
    best = np.full((len(frac), len(frac)), np.inf)
    for shift in np.ndindex(*[2 * reach + 1] * 3):
        image = np.array(shift) - reach
        distance = np.linalg.norm((frac[None] - frac[:, None] + image) @ lattice, axis=-1)
        if not image.any():
            np.fill_diagonal(distance, np.inf)
        best = np.minimum(best, distance)
    return best


def test_radii_are_those_of_ase():
    np.testing.assert_array_equal(covalent_radii()[1:97], ase.data.covalent_radii[1:97])
    assert len(covalent_radii()) == 119 and np.isnan(covalent_radii()[0])
    assert (covalent_radii()[97:] == covalent_radii()[96]).all()


def test_min_allowed_distance_broadcasts_and_has_a_floor():
    numbers = np.array([11, 17, 1])
    table = min_allowed_distance(numbers[:, None], numbers[None, :], factor=0.5)
    assert table[0, 1] == table[1, 0] == pytest.approx(0.5 * (1.66 + 1.02))
    assert table[2, 2] == MIN_DISTANCE_ANG


@given(cells, shears)
@settings(max_examples=30, deadline=None)
def test_reduced_basis_spans_the_same_lattice_and_starts_with_its_shortest_vector(cell, shear):
    lattice = skewed(cell, shear)
    reduced, matrix = reduce_lattice(lattice)
    np.testing.assert_allclose(matrix @ lattice, reduced, atol=1e-7)
    assert abs(round(np.linalg.det(matrix))) == 1
    combinations = np.array(list(np.ndindex(9, 9, 9))) - 4
    lengths = np.linalg.norm(combinations[combinations.any(axis=1)] @ reduced, axis=1)
    assert np.linalg.norm(reduced[0]) == pytest.approx(lengths.min())
    assert (np.diff(np.linalg.norm(reduced, axis=1)) >= -1e-9).all()


@given(cells, shears, st.integers(0, 2**31), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_shortest_distances_equal_brute_force_over_the_reduced_cell(cell, shear, seed, n_atoms):
    lattice = skewed(cell, shear)
    frac = np.random.default_rng(seed).random((n_atoms, 3))
    reduced, matrix = reduce_lattice(lattice)
    expected = brute_distances(reduced, (frac @ np.linalg.inv(matrix)) % 1, reach=4)
    np.testing.assert_allclose(shortest_distances(lattice, frac), expected, atol=1e-7)
    assert shortest_distance(lattice, frac) == pytest.approx(expected.min())


def test_shortest_distances_between_two_sets_are_pymatgens():
    rng = np.random.default_rng(0)
    for _ in range(20):
        lattice = Lattice.from_parameters(*rng.uniform(3, 9, 3), *rng.uniform(65, 110, 3))
        a, b = rng.random((4, 3)), rng.random((6, 3))
        np.testing.assert_allclose(shortest_distances(lattice.matrix, a, b), lattice.get_all_distances(a, b), atol=1e-8)


def test_one_atom_cell_gives_the_shortest_lattice_vector():
    fcc = np.array([[0, 2, 2], [2, 0, 2], [2, 2, 0.0]])
    assert shortest_distance(fcc, [[0.3, 0.1, 0.9]]) == pytest.approx(np.sqrt(8))
    # the same lattice, its third vector replaced by one ten cells away
    assert shortest_distance(fcc + np.diag([0, 0, 1]) @ fcc[[0, 0, 0]] * 10, [[0, 0, 0]]) == pytest.approx(np.sqrt(8))


def test_distances_stay_under_translation_permutation_rotation_and_supercell():
    rng = np.random.default_rng(3)
    lattice, frac = rng.normal(size=(3, 3)) * 4, rng.random((5, 3))
    before = shortest_distances(lattice, frac)
    order = rng.permutation(5)
    np.testing.assert_allclose(shortest_distances(lattice, frac + rng.normal(size=3) * 9), before, atol=1e-8)
    np.testing.assert_allclose(shortest_distances(lattice, frac[order]), before[np.ix_(order, order)], atol=1e-8)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    np.testing.assert_allclose(shortest_distances(lattice @ rotation, frac), before, atol=1e-8)
    doubled = np.concatenate([frac, frac + np.array([1, 0, 0])]) / [2, 1, 1]
    assert shortest_distance(lattice * [[2], [1], [1]], doubled) == pytest.approx(before.min())


def test_overlapping_sites_are_at_zero_distance_across_the_cell_border():
    assert shortest_distance(np.eye(3) * 5, [[0, 0, 0], [1 - 1e-12, 0, 1]]) < 1e-10


@given(cells, shears, st.integers(0, 2**31), st.integers(1, 4), st.floats(1, 4))
@settings(max_examples=25, deadline=None)
def test_neighbour_pairs_are_pymatgens(cell, shear, seed, n_atoms, cutoff):
    lattice = skewed(cell, shear)
    cutoff += 1.23e-4  # beside no round length: pymatgen counts what lies on the sphere, up to 1e-8
    frac = np.random.default_rng(seed).uniform(-2, 2, (n_atoms, 3))
    i, j, image, distance = neighbour_pairs(lattice, frac, cutoff)
    np.testing.assert_allclose(np.linalg.norm((frac[j] + image - frac[i]) @ lattice, axis=1), distance, atol=1e-6)
    structure = Structure(Lattice(lattice), ["Na"] * n_atoms, frac)
    _, _, _, expected = structure.get_neighbor_list(cutoff)
    np.testing.assert_allclose(np.sort(distance), np.sort(expected), atol=1e-6)
    assert len(np.unique(np.column_stack([i, j, image]), axis=0)) == len(i)


def test_violations_name_the_worst_pair_first():
    frac = [[0, 0, 0], [0.1, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.7]]
    contacts = distance_violations(np.eye(3) * 6, frac, [11, 17, 8, 22])
    assert [(c.i, c.j) for c in contacts] == [(0, 1), (2, 3)]
    assert contacts[0].distance_ang == pytest.approx(0.6)
    assert contacts[0].allowed_ang == pytest.approx(float(min_allowed_distance(11, 17)))
    assert distance_violations(np.eye(3) * 1.0, [[0, 0, 0]], [84])[0][:3] == (0, 0, 1.0)
    assert distance_violations(np.eye(3) * 3.35, [[0, 0, 0]], [84]) == []  # Po, one atom in its cell


@pytest.mark.parametrize("lattice", [np.zeros((3, 3)), np.ones((3, 3)), np.full((3, 3), np.nan), np.eye(2)])
def test_what_spans_no_volume_is_refused_with_its_value(lattice):
    with pytest.raises(ValueError, match="lattice"):
        shortest_distance(lattice, [[0, 0, 0]])
