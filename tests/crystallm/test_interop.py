from __future__ import annotations

import io
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.spacegroup import crystal as ase_crystal
from pymatgen.core import DummySpecies, Lattice, Structure
from pymatgen.io.vasp import Poscar

from crystallm.cif import CIFError, parse_cif
from crystallm.crystal import Crystal
from crystallm.interop import (
    from_atoms,
    from_structure,
    parse_structures,
    to_atoms,
    to_structure,
)

CIFS = Path(__file__).parents[1] / "cifs"
NAMES = ["NaCl", "quartz", "ZrO2", "Po", "hematite"]
CUBE = Lattice.cubic(4)


def crystal_of(name: str) -> Crystal:
    return parse_cif((CIFS / f"{name}.cif").read_text(encoding="utf-8"))[0]


def assert_equal(got: Crystal, want: Crystal, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(got.lattice, want.lattice, atol=atol)
    np.testing.assert_array_equal(got.atomic_numbers, want.atomic_numbers)
    delta = got.frac_coords - want.frac_coords
    np.testing.assert_allclose(delta - np.rint(delta), 0, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_pymatgen_and_back(name):
    crystal = crystal_of(name)
    structure = to_structure(crystal)
    assert structure.volume == pytest.approx(crystal.volume_ang3)
    np.testing.assert_allclose(structure.cart_coords, crystal.cart_coords, atol=1e-9)
    assert_equal(from_structure(structure), crystal)


@pytest.mark.parametrize("name", NAMES)
def test_ase_and_back(name):
    crystal = crystal_of(name)
    atoms = to_atoms(crystal)
    np.testing.assert_allclose(atoms.get_positions(), crystal.cart_coords, atol=1e-9)
    np.testing.assert_allclose(atoms.cell.cellpar(), crystal.cell)
    assert atoms.pbc.all()
    assert_equal(from_atoms(atoms), crystal)


def test_charges_and_isotopes_are_elements():
    structure = Structure(CUBE, ["Fe3+", "O2-", "D"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0]])
    assert from_structure(structure).symbols == ["Fe", "O", "H"]


@pytest.mark.parametrize(
    ("species", "reason", "message"),
    [
        ({"Fe": 0.5, "Ni": 0.5}, "partial_occupancy", "site 0 is"),
        ({"Fe": 0.9}, "partial_occupancy", "one whole atom"),
        ({DummySpecies("X"): 1}, "unknown_element", "X0"),
    ],
)
def test_structures_that_are_no_crystals(species, reason, message):
    with pytest.raises(CIFError, match=message) as caught:
        from_structure(Structure(CUBE, [species], [[0, 0, 0]]))
    assert caught.value.reason == reason


def test_empty_structure():
    with pytest.raises(CIFError, match="no_atoms"):
        from_structure(Structure(CUBE, [], []))


@pytest.mark.parametrize(
    ("atoms", "reason", "message"),
    [
        (Atoms("NaCl", positions=[[0, 0, 0], [2, 0, 0]]), "no_cell", "three vectors"),
        (Atoms("Na", cell=[4, 4, 4], pbc=[True, True, False]), "no_cell", "periodic in three directions"),
        (Atoms(cell=[4, 4, 4], pbc=True), "no_atoms", "no atoms"),
        (Atoms(["Na", "X"], cell=[4, 4, 4], pbc=True), "unknown_element", "atom 1 is 'X'"),
    ],
)
def test_atoms_that_are_no_crystals(atoms, reason, message):
    with pytest.raises(CIFError, match=message) as caught:
        from_atoms(atoms)
    assert caught.value.reason == reason


@pytest.mark.filterwarnings("ignore:scaled_positions 0 and 1")
def test_disorder_that_ase_keeps_aside():
    atoms = ase_crystal(
        ["Na", "K"], [(0, 0, 0)] * 2, occupancies=[0.5, 0.5], spacegroup=225, cellpar=[5, 5, 5, 90, 90, 90]
    )
    with pytest.raises(CIFError, match="partial_occupancy"):
        from_atoms(atoms)


def test_poscar():
    crystal = crystal_of("ZrO2")
    (got,) = parse_structures(Poscar(to_structure(crystal)).get_str(significant_figures=12), "poscar")
    assert_equal(got, crystal)


@pytest.mark.filterwarnings("ignore:Elements in POSCAR cannot be determined")
def test_poscar_without_symbols():
    poscar = "comment\n1.0\n4 0 0\n0 4 0\n0 0 4\n1 1\ndirect\n0 0 0\n.5 .5 .5\n"
    with pytest.raises(CIFError, match="unknown_element: no element symbols"):
        parse_structures(poscar, "poscar")


def test_extxyz_of_several_frames():
    crystals, text = [crystal_of(name) for name in NAMES], io.StringIO()
    ase.io.write(text, [to_atoms(crystal) for crystal in crystals], format="extxyz")
    for got, want in zip(parse_structures(text.getvalue(), "extxyz"), crystals, strict=True):
        assert_equal(got, want, atol=1e-6)


def test_plain_xyz_has_no_cell():
    with pytest.raises(CIFError, match="no_cell"):
        parse_structures("1\nwater\nO 0 0 0\n", "extxyz")


@pytest.mark.parametrize("kind", ["poscar", "extxyz"])
@pytest.mark.parametrize("text", ["not a structure", "1\n2\n3\n", "[1, 2]", "{}", '{"lattice": 3}', "\0"])
def test_broken_files_raise_cif_errors_only(kind, text):
    with pytest.raises(CIFError):
        parse_structures(text, kind)
