"""Cells divided into smaller ones: against known counts, spglib's symmetry and pymatgen's supercells."""

from __future__ import annotations

import numpy as np
import pytest
import spglib

from crystallm.crystal import Crystal, lattice_from_parameters
from crystallm.geometry import shortest_distance
from crystallm.interop import to_structure
from crystallm.refine.supercells import divisions, hermite_forms, lattice_rotations, supercell
from crystallm.refine.tutorial import PROTOTYPES

CUBE = np.eye(3) * 8.0
SKEWED = lattice_from_parameters(4.1, 5.3, 6.2, 82, 97, 70)
QUARTZ_LIKE = lattice_from_parameters(4.9, 4.9, 5.4, 90, 90, 120)
FCC = np.array([[0, 2.0, 2], [2, 0, 2], [2, 2, 0]])


@pytest.mark.parametrize("index, number", [(1, 1), (2, 7), (3, 13), (4, 35), (6, 91), (8, 155), (16, 651)])
def test_lattices_of_an_index_are_as_many_as_is_known(index: int, number: int):
    """OEIS A001001."""
    forms = hermite_forms(index)
    assert len(forms) == number == len(np.unique(np.linalg.inv(forms).round(9), axis=0))
    assert np.rint(np.linalg.det(forms)).tolist() == [index] * number


@pytest.mark.parametrize("lattice", [CUBE, SKEWED, QUARTZ_LIKE, FCC], ids=["cube", "skewed", "hexagonal", "fcc"])
def test_rotations_of_a_lattice_are_spglibs(lattice: np.ndarray):
    theirs = spglib.get_symmetry((lattice, [[0, 0, 0]], [1]))["rotations"]  # of columns
    ours = lattice_rotations(lattice)
    assert {one.tobytes() for one in ours} == {one.T.astype(np.int64).copy().tobytes() for one in theirs}


@pytest.mark.parametrize("lattice", [CUBE, SKEWED, QUARTZ_LIKE, FCC], ids=["cube", "skewed", "hexagonal", "fcc"])
@pytest.mark.parametrize("index", [1, 2, 6, 8])
def test_a_division_is_of_the_cell_and_compact(lattice: np.ndarray, index: int):
    matrices, weights = divisions(lattice, index)
    assert weights.sum() == pytest.approx(1) and (weights > 0).all()
    shortest = []
    for matrix in matrices:
        assert round(abs(np.linalg.det(matrix))) == index
        small = np.linalg.solve(matrix, lattice)
        np.testing.assert_allclose(matrix @ small, lattice, atol=1e-9)
        shortest.append(shortest_distance(small, np.zeros((1, 3))))
        assert shortest[-1] == pytest.approx(np.linalg.norm(small, axis=1).min())  # reduced
    every = [shortest_distance(np.linalg.solve(form, lattice), np.zeros((1, 3))) for form in hermite_forms(index)]
    assert min(shortest) >= 0.85 * max(every) - 1e-9 and len(shortest) == sum(np.array(every) >= 0.85 * max(every))


def test_a_cube_is_divided_into_cubes_first():
    """Of a cubic cell P, I and F have all 48 rotations: one each of index 8, 2 and 4."""
    for index, shape in ((8, np.eye(3) * 4.0), (2, None), (4, None)):
        matrices, weights = divisions(CUBE, index)
        best = np.linalg.solve(matrices[weights.argmax()], CUBE)
        assert (weights == weights.max()).sum() == 1 and len(lattice_rotations(best)) == 48
        if shape is not None:
            np.testing.assert_allclose(np.abs(best), shape, atol=1e-9)


@pytest.mark.parametrize("times", [(2, 1, 3), [[-1, 1, 1], [1, -1, 1], [1, 1, -1]], [[2, 1, 0], [0, 1, -3], [1, 0, 2]]])
def test_a_supercell_is_pymatgens(times):
    crystal = Crystal(SKEWED, np.random.default_rng(0).random((3, 3)), np.array([11, 17, 8]))
    ours, theirs = supercell(crystal, times), to_structure(crystal) * times
    assert ours.n_atoms == len(theirs)
    np.testing.assert_allclose(ours.lattice, theirs.lattice.matrix, atol=1e-9)
    for z in (11, 17, 8):
        mine = ours.frac_coords[ours.atomic_numbers == z]
        other = np.array([site.frac_coords for site in theirs if z == site.specie.Z])
        far = np.abs((d := mine[:, None] - other[None]) - np.rint(d)).max(axis=-1)
        assert (far.min(axis=1) < 1e-9).all() and (far.min(axis=0) < 1e-9).all()


@pytest.mark.parametrize("times", [(1, 2), [[1, 0, 0], [0, 1, 0], [1, 1, 0]], 2])
def test_what_makes_no_supercell_is_refused(times):
    with pytest.raises(ValueError, match="3 numbers of cells or"):
        supercell(PROTOTYPES[0].crystal(), times)
