"""The fast RMS distance against pymatgen's StructureMatcher, called plainly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from crystallm.cif import parse_cif
from crystallm.crystal import Crystal
from crystallm.interop import from_structure, to_structure
from crystallm.matching import PUBLISHED, SAME, _may_be_centred, distance_to, fits, reduce_crystal
from crystallm.metrics.csp import plain_rms_distance, rms_distance

MATCHERS = {PUBLISHED: StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3), SAME: StructureMatcher()}
REAL = ("NaCl", "Si", "rutile", "SrTiO3", "quartz", "hematite", "ZrO2", "Po")


def crystal_of(root: Path, name: str) -> Crystal:
    return parse_cif((root / f"tests/cifs/{name}.cif").read_text(encoding="utf-8"))[0]


def distorted(crystal: Crystal, seed: int, shift_ang: float, strain: float) -> Crystal:
    """Another cell of the lattice, its atoms in another order, moved and strained at random."""
    rng = np.random.default_rng(seed)
    basis = np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]])[rng.permutation(3)]
    frac = crystal.frac_coords + rng.normal(0, shift_ang, (crystal.n_atoms, 3)) @ np.linalg.inv(crystal.lattice)
    order = rng.permutation(crystal.n_atoms)
    lattice = crystal.lattice @ (np.eye(3) + rng.normal(0, strain, (3, 3)))
    moved = (frac + rng.random(3)) @ np.linalg.inv(basis)
    return Crystal(basis @ lattice, moved[order], crystal.atomic_numbers[order])


def assert_same(predicted: Crystal, reference: Crystal) -> None:
    fast, plain = rms_distance(predicted, reference), plain_rms_distance(predicted, reference)
    # The matcher stops at the first mapping below 1e-5, and which comes first may differ.
    assert fast == pytest.approx(plain, abs=1e-5, nan_ok=True)
    for tolerances, matcher in MATCHERS.items():
        same = matcher.fit(to_structure(predicted), to_structure(reference))
        assert fits(reduce_crystal(predicted), reduce_crystal(reference), tolerances) == same


@pytest.mark.parametrize("name", REAL)
def test_distorted_crystals(root: Path, name: str) -> None:
    crystal = crystal_of(root, name)
    for seed, (shift, strain) in enumerate([(0, 0), (0.05, 0.01), (0.3, 0.03), (0.6, 0.1)]):
        assert_same(distorted(crystal, seed, shift, strain), crystal)


@pytest.mark.parametrize("name", ["NaCl", "rutile", "quartz"])
def test_supercells_and_primitive_cells(root: Path, name: str) -> None:
    crystal = crystal_of(root, name)
    double = from_structure(to_structure(crystal) * (1, 1, 2))
    primitive = from_structure(to_structure(crystal).get_primitive_structure())
    for predicted, reference in [(double, primitive), (primitive, double), (distorted(double, 3, 0.02, 0), crystal)]:
        assert_same(predicted, reference)
        assert rms_distance(predicted, reference) < 0.1
    assert_same(distorted(double, 5, 0.4, 0.05), crystal)  # no longer a supercell: another number of atoms


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    stretch=st.floats(0.3, 4.0),
    near=st.booleans(),
)
def test_random_triclinic_cells(seed: int, counts: list[int], stretch: float, near: bool) -> None:
    rng = np.random.default_rng(seed)
    numbers = np.repeat([3, 8, 26][: len(counts)], counts)
    lattice = (np.eye(3) + rng.uniform(-0.4, 0.4, (3, 3))) * 3.0 * len(numbers) ** (1 / 3) * [[1], [1], [stretch]]
    crystal = Crystal(lattice, rng.random((len(numbers), 3)), numbers)
    other = Crystal(np.eye(3) * 4 + rng.uniform(-1, 1, (3, 3)), rng.random((len(numbers), 3)), numbers)
    assert_same(distorted(crystal, seed, 0.1, 0.02) if near else other, crystal)


def test_what_need_not_be_reduced(root: Path) -> None:
    salt, rutile = crystal_of(root, "NaCl"), crystal_of(root, "rutile")
    reference = reduce_crystal(salt)
    assert len(reference.atomic_numbers) == 2
    assert np.isnan(distance_to(rutile, reference))  # another composition
    three = Crystal(salt.lattice, salt.frac_coords[:3], salt.atomic_numbers[[0, 1, 4]])
    assert np.isnan(distance_to(three, reference))  # 3 atoms are no multiple of 2
    assert distance_to(salt, reference) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", REAL)
def test_a_centred_cell_is_never_overlooked(root: Path, name: str) -> None:
    """Where the quick look says that no cell is smaller, get_primitive_structure finds none."""
    structure = to_structure(crystal_of(root, name))
    for cell in (structure, structure * (2, 1, 1), structure * (1, 3, 1)):
        niggli: Structure = cell.get_reduced_structure("niggli")
        n_primitive = len(niggli.get_primitive_structure())
        numbers = np.array(niggli.atomic_numbers)
        if not _may_be_centred(np.array(niggli.lattice.abc), niggli.frac_coords, numbers):
            assert n_primitive == len(niggli)
        assert len(reduce_crystal(from_structure(niggli)).atomic_numbers) == n_primitive
