"""Distances are worked by hand or asked of pymatgen, whose periodic distances are another implementation."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from crystallm.crystal import Crystal
from crystallm.geometry import distance_violations
from crystallm.refine.physics import MARGIN, PhysicsValidator, TrainingRange, grade_of

CUBE = np.eye(3) * 5.0
VALIDATOR = PhysicsValidator(min_distance=0.7)
SKEWED = np.array([[4.0, 0, 0], [3.5, 3.0, 0], [1.0, 2.5, 4.5]])


def pymatgen_shortest(lattice: np.ndarray, frac_coords: np.ndarray) -> float:
    distances = Lattice(lattice).get_all_distances(frac_coords, frac_coords)
    return float(distances[~np.eye(len(frac_coords), dtype=bool)].min())


def test_two_atoms_part_along_their_line_each_by_half():
    # 0.3 Å apart along a; wanted 0.7 Å with the margin, so each moves by (0.7 * margin - 0.3) / 2
    report = VALIDATOR.correct_structure([[0.2, 0.4, 0.1], [0.26, 0.4, 0.1]], CUBE, [True, True], max_iterations=10)
    step = (0.7 * MARGIN - 0.3) / 2 / 5
    np.testing.assert_allclose(report.positions, [[0.2 - step, 0.4, 0.1], [0.26 + step, 0.4, 0.1]], atol=1e-12)
    assert report.n_iterations == 1 and report.moved.tolist() == [0, 1] and report.resolved
    assert report.min_distance_before_ang == pytest.approx(0.3)
    assert report.min_distance_after_ang == pytest.approx(0.7 * MARGIN)
    assert report.max_shift_ang == pytest.approx(5 * step)
    assert report.summary() == "2 atoms moved by up to 0.22 Å in 1 iteration: 0.30 Å before, 0.73 Å after"


def test_across_the_border_of_the_cell():
    report = VALIDATOR.correct_structure([[0.99, 0, 0], [0.03, 0, 0]], CUBE, [1, 1])  # 0.2 Å apart through a face
    first, second = report.positions[:, 0]
    assert 0.9 < first < 0.99 and 0.03 < second < 0.1 and report.resolved
    assert ((report.positions >= 0) & (report.positions < 1)).all()


def test_what_keeps_its_distance_comes_back_as_it_was():
    positions = np.array([[0.1, 1.3, -0.2], [0.6, 0.5, 0.5], [np.nan, 7, 7]])  # outside the cell, and padding
    report = VALIDATOR.correct_structure(positions, CUBE, [True, True, False])
    np.testing.assert_array_equal(report.positions, positions)
    assert report.n_iterations == 0 and not len(report.moved) and report.resolved and report.max_shift_ang == 0
    assert report.summary().startswith("nothing moved: ")


def test_padding_is_no_atom_and_indices_count_it():
    # row 1 is padding on top of row 0
    positions = [[0.1, 0.1, 0.1], [0.1, 0.1, 0.1], [0.5, 0.5, 0.5], [0.5, 0.5, 0.55]]
    report = VALIDATOR.correct_structure(positions, CUBE, np.array([True, False, True, True]))
    assert report.moved.tolist() == [2, 3] and report.min_distance_before_ang == pytest.approx(0.25)
    np.testing.assert_array_equal(report.positions[:2], positions[:2])
    assert VALIDATOR.validate(positions, CUBE, [1, 0, 1, 1]).worst_pair == (2, 3)


@pytest.mark.parametrize("lattice", [CUBE, SKEWED], ids=["cube", "skewed"])
@pytest.mark.parametrize("seed", range(3))
def test_random_cells_end_as_far_apart_as_pymatgen_says(lattice, seed):
    frac = np.random.default_rng(seed).random((25, 3))
    before, report = pymatgen_shortest(lattice, frac), VALIDATOR.correct_structure(frac, lattice, np.ones(25))
    assert report.min_distance_before_ang == pytest.approx(before) and before < 0.7
    assert report.min_distance_after_ang == pytest.approx(pymatgen_shortest(lattice, report.positions))
    assert report.resolved and report.min_distance_after_ang >= 0.7
    shift = report.positions - frac
    np.testing.assert_allclose((shift - np.rint(shift)).sum(axis=0), 0, atol=1e-9)  # the centre of mass stays


def test_turning_relabelling_and_another_origin_change_nothing():
    rng = np.random.default_rng(4)
    frac, order = rng.random((10, 3)), rng.permutation(10)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    plain = VALIDATOR.correct_structure(frac, SKEWED).positions
    other = VALIDATOR.correct_structure((frac + 0.37)[order] + 2, SKEWED @ turn).positions
    delta = other - (plain + 0.37)[order]
    np.testing.assert_allclose(delta - np.rint(delta), 0, atol=1e-9)


def test_coincident_atoms_part_the_same_way_every_time():
    positions = np.full((5, 3), 0.25)
    positions[4] += [0, 3, -1]  # the same place by another lattice vector
    first, second = (VALIDATOR.correct_structure(positions, CUBE, np.ones(5, bool)) for _ in range(2))
    np.testing.assert_array_equal(first.positions, second.positions)
    assert first.min_distance_before_ang == pytest.approx(0, abs=1e-12) and first.resolved
    assert pymatgen_shortest(CUBE, first.positions) >= 0.7


def test_a_heap_of_atoms_spreads_where_it_is_and_not_across_the_cell():
    heap = np.full((20, 3), 0.5)
    report = VALIDATOR.correct_structure(heap, np.eye(3) * 30)
    assert report.resolved and report.max_shift_ang < 2  # twenty spheres of 0.7 Å fill one of less than 2 Å
    larger = VALIDATOR.correct_structure(np.full((100, 3), 0.5), np.eye(3) * 30)
    assert not larger.resolved and 0 < larger.min_distance_after_ang < 0.7 and larger.max_shift_ang < 3
    assert VALIDATOR.correct_structure(larger.positions, np.eye(3) * 30, max_iterations=50).resolved


def test_a_small_cell_cannot_be_helped_and_says_so():
    thin = np.diag([0.6, 5.0, 5.0])
    report = VALIDATOR.correct_structure([[0, 0, 0]], thin)
    assert report.own_images.tolist() == [0] and not report.resolved and not len(report.moved)
    assert report.summary() == "nothing moved: 0.60 Å; the cell is too small, 1 of its atoms meet their own images"
    # other pairs are helped all the same
    report = VALIDATOR.correct_structure([[0, 0, 0], [0, 0.05, 0]], thin)
    assert (
        report.moved.tolist() == [0, 1] and not report.resolved and report.min_distance_after_ang == pytest.approx(0.6)
    )
    # a cell of a hundredth of an ångström asks for no memory
    tiny = VALIDATOR.correct_structure(np.zeros((20, 3)), np.eye(3) * 0.01)
    assert not tiny.resolved and tiny.n_iterations == 0
    assert VALIDATOR.validate([[0, 0, 0]], thin).summary() == (
        "FAILED: minimum distance 0.60 Å, an atom meets its own image"
    )


def test_what_cannot_be_resolved_is_no_worse_than_before():
    frac = np.random.default_rng(0).random((60, 3))  # 60 atoms in 27 Å³: no room for 1.2 Å each
    report = PhysicsValidator(1.2).correct_structure(frac, np.eye(3) * 3, max_iterations=3)
    assert not report.resolved and report.n_iterations == 3
    assert report.min_distance_after_ang >= report.min_distance_before_ang
    assert report.summary().endswith(", atoms still overlap")


def test_species_ask_for_what_the_filter_asks_for():
    hydrogen = [[0, 0, 0], [0.148, 0, 0]]  # 0.74 Å, an H₂ molecule
    far = PhysicsValidator(min_distance=1.0)
    assert len(far.correct_structure(hydrogen, CUBE).moved) == 2
    assert len(far.correct_structure(hydrogen, CUBE, species=["H", "H"]).moved) == 0
    # Fe: 0.55 * (1.32 + 1.32) = 1.452 Å
    iron = VALIDATOR.correct_structure([[0, 0, 0], [0.24, 0, 0]], CUBE, species=[26, 26])
    assert iron.min_distance_after_ang == pytest.approx(1.452 * MARGIN)
    frac = np.random.default_rng(1).random((24, 3))
    numbers, lattice = np.array([11, 17, 8] * 8), np.eye(3) * 8
    assert distance_violations(lattice, frac, numbers)
    report = VALIDATOR.correct_structure(frac, lattice, species=torch.tensor(numbers))
    assert report.resolved and not distance_violations(lattice, report.positions, numbers)


@pytest.mark.parametrize(
    "distance, grade",
    [
        (1.0, "excellent"),
        (0.99, "good"),
        (0.7, "good"),
        (0.69, "suspicious"),
        (0.5, "suspicious"),
        (0.49, "unphysical"),
    ],
)
def test_grades(distance, grade):
    assert grade_of(distance) == grade


@pytest.mark.parametrize(
    "distance, species, grade, valid",
    [
        (0.74, None, "good", True),
        (0.74, "H", "excellent", True),  # 0.74 / 0.5 * 0.7 = 1.04
        (0.60, "H", "good", True),
        (0.45, "H", "unphysical", False),
        (1.30, None, "excellent", True),
        (1.30, "Fe", "suspicious", False),  # 1.30 / 1.452 * 0.7 = 0.63
        (1.00, "Fe", "unphysical", False),  # 0.48
        (2.48, "Fe", "excellent", True),  # of metallic iron
    ],
)
def test_grades_of_pairs(distance, species, grade, valid):
    atoms = None if species is None else [species] * 2
    verdict = VALIDATOR.validate([[0, 0, 0], [distance / 5, 0, 0]], CUBE, species=atoms)
    assert (verdict.grade, verdict.valid) == (grade, valid)
    assert verdict.min_distance_ang == pytest.approx(distance) and verdict.worst_pair == (0, 1)


def test_verdicts_are_printed_with_their_meaning():
    passed = VALIDATOR.validate([[0, 0, 0], [1.23 / 5, 0, 0]], CUBE)
    failed = VALIDATOR.validate([[0, 0, 0], [0.42 / 5, 0, 0]], CUBE)
    assert passed.summary() == "PASSED: minimum distance 1.23 Å"
    assert failed.summary() == "FAILED: minimum distance 0.42 Å, atoms overlap"


def test_density_and_training_range_are_warned_of():
    seen = TrainingRange.of([Crystal(np.eye(3) * a, np.zeros((1, 3)), np.array([13])) for a in (2.0, 3.0)])
    assert seen.n_atoms == (1, 1) and seen.volume_per_atom_ang3 == pytest.approx((8.095, 26.905))
    validator = PhysicsValidator(training_range=seen)
    aluminium = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.05), ["Al"], [[0, 0, 0]])
    verdict = validator.validate(aluminium.frac_coords, aluminium.lattice.matrix, species=["Al"] * 4)
    assert verdict.density_g_per_cm3 == pytest.approx(float(aluminium.density), rel=1e-4)
    assert verdict.volume_ang3 == pytest.approx(4.05**3)
    assert verdict.warnings == ("4 atoms, far from the training data's 1-1",) and verdict.valid
    light = validator.validate([[0, 0, 0]], np.eye(3) * 10, species=["Li"])  # 6.94 u in 1000 Å³: 0.0115 g/cm³
    assert light.density_g_per_cm3 == pytest.approx(0.0115, rel=0.01)
    assert light.warnings == (
        "density 0.0115 g/cm³, outside 0.5-20 g/cm³",
        "1e+03 Å³ per atom, far from the training data's 8.1-26.9",
    )
    assert light.summary() == "; warning: ".join(["PASSED: minimum distance 10.00 Å", *light.warnings])
    assert VALIDATOR.validate([[0, 0, 0]], np.eye(3) * 10).density_g_per_cm3 is None
    with pytest.raises(ValueError, match="at least one crystal"):
        TrainingRange.of([])


def test_a_batch_is_its_structures_one_by_one_and_tensors_are_taken():
    rng = np.random.default_rng(0)
    positions, mask = rng.random((3, 6, 3)), np.array([[1] * 6, [1] * 3 + [0] * 3, [1] + [0] * 5], bool)
    cells = np.stack([np.eye(3) * a for a in (2.5, 1.5, 4.0)])
    reports = VALIDATOR.correct_batch(torch.tensor(positions), torch.tensor(cells), torch.tensor(mask), 10)
    for report, one, cell, marks in zip(reports, positions, cells, mask, strict=True):
        np.testing.assert_array_equal(report.positions, VALIDATOR.correct_structure(one, cell, marks).positions)
    assert [len(report.moved) > 0 for report in reports] == [True, True, False]
    with pytest.raises(ValueError, match=r"positions \(B, n, 3\)"):
        VALIDATOR.correct_batch(positions[0], cells, mask)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"mask": [False, False]}, "no atom in the cell: 2 positions, none of them in the mask"),
        ({"positions": np.zeros((0, 3))}, "no atom in the cell: 0 positions"),
        ({"mask": [True]}, r"one place for each of the 2 positions, got shape \(1,\)"),
        ({"mask": [0.5, 1]}, "mask is True where there is an atom"),
        ({"species": ["Na", "Xx"]}, "symbols or atomic numbers from 1 to 118, got 'Xx'"),
        ({"species": [11, 0]}, "from 1 to 118, got 0"),
        ({"species": ["Na"]}, "species has one element for each of the 2 positions, got 1"),
        ({"lattice": np.zeros((3, 3))}, "a lattice spans a volume"),
        ({"lattice": [[1, 0, 0], [0, 1, 0], [1, 1, 0]]}, "a lattice spans a volume"),
        ({"lattice": np.full((3, 3), np.nan)}, r"a lattice is a finite \(3, 3\) array"),
        ({"lattice": np.eye(2)}, r"a lattice is a finite \(3, 3\) array, got shape \(2, 2\)"),
        ({"positions": [[0, 0, 0], [0, np.nan, 0]]}, r"finite, got \[0\.0, nan, 0\.0\] at atom 1"),
        ({"positions": [0.0, 0, 0]}, r"got shape \(3,\)"),
        ({"max_iterations": 0}, "max_iterations must be at least 1, got 0"),
    ],
)
def test_bad_input(arguments, message):
    good = {
        "positions": [[0, 0, 0], [0.5, 0.5, 0.5]],
        "lattice": CUBE,
        "mask": None if "positions" in arguments else [1, 1],
    }
    with pytest.raises(ValueError, match=message):
        VALIDATOR.correct_structure(**good | arguments)
    if "max_iterations" not in arguments:
        with pytest.raises(ValueError, match=message):
            VALIDATOR.validate(**good | arguments)


@pytest.mark.parametrize("distance", [0, -1, float("nan"), 100])
def test_bad_distances(distance):
    with pytest.raises(ValueError, match=r"min_distance must be in \(0, 5\] Å"):
        PhysicsValidator(distance)


def test_five_hundred_atoms_in_bounded_memory():
    frac = np.random.default_rng(0).random((500, 3))
    tracemalloc.start()
    report = VALIDATOR.correct_structure(frac, np.eye(3) * 21, np.ones(500, bool))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.resolved and report.min_distance_before_ang < 0.7
    assert peak < 200e6
