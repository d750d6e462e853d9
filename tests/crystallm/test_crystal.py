from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from ase.geometry import cell_to_cellpar
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Composition, Element, Lattice, Structure

from crystallm.crystal import Crystal, atomic_masses, formula_text, lattice_from_parameters, reduce_composition, wrap

CUBE = np.eye(3) * 4.0
lengths = st.floats(1, 50)
angles = st.floats(65, 115)  # any three of these span a cell


def test_rock_salt_by_hand():
    # a = 5.6402 Å, four formula units: 4 * 58.44 g/mol / (6.02214e23 * 179.43e-24 cm3) = 2.163 g/cm3
    frac = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0], [0.5] * 3, [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]
    crystal = Crystal.from_parameters((5.6402, 5.6402, 5.6402, 90, 90, 90), frac, ["Na"] * 4 + ["Cl"] * 4)
    assert crystal.n_atoms == 8
    assert crystal.volume_ang3 == pytest.approx(5.6402**3)
    assert crystal.density_g_per_cm3 == pytest.approx(2.163, abs=2e-3)
    assert (crystal.reduced_formula, crystal.formula_units) == ("NaCl", 4)
    assert crystal.composition == {"Na": 4, "Cl": 4}
    np.testing.assert_allclose(crystal.cart_coords[4], [2.8201] * 3)


@given(lengths, lengths, lengths, angles, angles, angles)
def test_cell_of_parameters_as_in_pymatgen_and_ase(a, b, c, alpha, beta, gamma):
    lattice = lattice_from_parameters(a, b, c, alpha, beta, gamma)
    np.testing.assert_allclose(lattice, Lattice.from_parameters(a, b, c, alpha, beta, gamma).matrix, atol=1e-9)
    crystal = Crystal(lattice, np.zeros((1, 3)), np.array([84]))
    np.testing.assert_allclose(crystal.cell, [a, b, c, alpha, beta, gamma], rtol=1e-9)
    np.testing.assert_allclose(crystal.cell, cell_to_cellpar(lattice), rtol=1e-9)
    assert crystal.volume_ang3 == pytest.approx(abs(np.linalg.det(lattice)))


def test_right_angles_leave_no_dust():
    assert lattice_from_parameters(3, 4, 5, 90, 90, 90).tolist() == [[3, 0, 0], [0, 4, 0], [0, 0, 5]]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ((0, 4, 4, 90, 90, 90), "lengths must be positive"),
        ((4, -4, 4, 90, 90, 90), "lengths must be positive"),
        ((4, 4, float("nan"), 90, 90, 90), "lengths must be positive"),
        ((4, 4, float("inf"), 90, 90, 90), "lengths must be positive"),
        ((4, 4, 4, 0, 90, 90), "between 0 and 180"),
        ((4, 4, 4, 90, 180, 90), "between 0 and 180"),
        ((4, 4, 4, 120, 120, 120), "its volume is 0"),  # the three vectors lie in a plane
        ((4, 4, 4, 60, 60, 150), "its volume is 0"),
    ],
)
def test_impossible_cells(cell, message):
    with pytest.raises(ValueError, match=message):
        lattice_from_parameters(*cell)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_wrap_stays_below_one(values):
    wrapped = wrap(values)
    assert ((wrapped >= 0) & (wrapped < 1)).all()
    turns = np.array(values) - wrapped
    np.testing.assert_allclose(turns, np.rint(turns), atol=1e-9)


def test_minus_nothing_wraps_to_zero():
    assert Crystal(CUBE, [[-1e-17, 1.0, -0.25]], [11]).frac_coords.tolist() == [[0, 0, 0.75]]


@pytest.mark.parametrize(
    ("lattice", "frac_coords", "atomic_numbers", "message"),
    [
        (CUBE[:2], [[0, 0, 0]], [11], r"\(3, 3\) lattice.*got \(2, 3\)"),
        (CUBE, [[0, 0]], [11], r"got \(3, 3\), \(1, 2\)"),
        (CUBE, [[0, 0, 0]], [11, 17], r"\(1, 3\) and \(2,\)"),
        (CUBE, np.zeros((0, 3)), np.zeros(0, int), "n >= 1"),
        (CUBE * np.nan, [[0, 0, 0]], [11], "finite"),
        (np.ones((3, 3)), [[0, 0, 0]], [11], "spans a volume"),
        (CUBE, [[0, 0, 0], [0, np.inf, 0]], [11, 17], "at atom 1"),
        (CUBE, [[0, 0, 0]], [0], "from 1 to 118"),
        (CUBE, [[0, 0, 0]], [119], "from 1 to 118"),
        (CUBE, [[0, 0, 0]], [11.5], "whole numbers"),
    ],
)
def test_rejected_arrays(lattice, frac_coords, atomic_numbers, message):
    with pytest.raises(ValueError, match=message):
        Crystal(lattice, frac_coords, atomic_numbers)


def test_unknown_symbol():
    with pytest.raises(ValueError, match="'Xx' is no element symbol"):
        Crystal.from_parameters((4, 4, 4, 90, 90, 90), [[0, 0, 0]], ["Xx"])


def test_arrays_are_read_only_copies():
    frac_coords = np.zeros((1, 3))
    crystal = Crystal(CUBE, frac_coords, np.array([11]))
    frac_coords[0, 0] = 0.5
    assert crystal.frac_coords[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        crystal.frac_coords[0, 0] = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        crystal.lattice = CUBE


def test_survives_pickle():
    crystal = Crystal(CUBE, [[0.1, 0.2, 0.3]], [11])
    again = pickle.loads(pickle.dumps(crystal))
    np.testing.assert_array_equal(again.frac_coords, crystal.frac_coords)


@given(
    st.dictionaries(
        st.sampled_from(["Na", "Cl", "Fe", "O", "H", "Ca", "Ti", "S", "Cs"]), st.integers(1, 40), min_size=1
    )
)
def test_formula_as_pymatgen_orders_and_reduces_it(composition):
    reduced, formula_units = reduce_composition(composition)
    theirs = Composition(composition)
    divisor = np.gcd.reduce(list(composition.values()))  # pymatgen itself keeps H2, O2 and the like
    assert formula_units == divisor
    in_order = sorted(composition, key=lambda symbol: (Element(symbol).X, symbol))
    assert list(reduced) == in_order
    assert {symbol: count * formula_units for symbol, count in reduced.items()} == dict(theirs.get_el_amt_dict())
    assert formula_text(reduced) == "".join(s + (str(n) if n > 1 else "") for s, n in reduced.items())


def test_density_as_in_pymatgen():
    structure = Structure(Lattice.hexagonal(3.2, 5.2), ["Mg", "Mg"], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]])
    crystal = Crystal(structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    assert crystal.density_g_per_cm3 == pytest.approx(structure.density, rel=1e-4)


def test_masses_as_in_pymatgen():
    # pymatgen's table is older; the masses of unstable elements are those of one isotope or another
    theirs = np.array([float(Element.from_Z(z).atomic_mass) for z in range(1, 119)])
    stable = np.r_[0:42, 43:60, 61:83, 89:92]
    np.testing.assert_allclose(atomic_masses()[1:][stable], theirs[stable], rtol=2e-3)
    np.testing.assert_allclose(atomic_masses()[1:], theirs, rtol=0.02)
