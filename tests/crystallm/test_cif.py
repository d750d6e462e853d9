from __future__ import annotations

import io
import pickle
import random
import sys
import warnings
from pathlib import Path

import ase.io
import gemmi
import numpy as np
import pytest
import spglib
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.io.cif import CifParser

from crystallm import cif_symmetry
from crystallm.asymmetric_unit import AsymmetricUnit, Site
from crystallm.cif import (
    MAX_ATOMS,
    REASONS,
    CIFError,
    _neighbours,
    is_canonical,
    parse_cif,
    read_provenance,
    split_cif,
    write_cif,
)
from crystallm.cif_write import full_symbol
from crystallm.crystal import Crystal, reduce_composition, same_proportions
from crystallm.interop import from_atoms, from_structure, to_structure
from crystallm.space_groups import space_group

CIFS = Path(__file__).parents[1] / "cifs"
# Atoms in the conventional cell, measured density (g/cm3), shortest bond (Å): the handbooks' values
KNOWN = {
    "NaCl": (8, 2.165, 2.820),
    "Si": (8, 2.329, 2.352),
    "rutile": (6, 4.25, 1.949),
    "SrTiO3": (5, 5.12, 1.953),
    "quartz": (9, 2.65, 1.605),
    "ZrO2": (12, 5.81, 2.05),
    "Po": (1, 9.2, 3.359),
    "hematite": (30, 5.26, 1.946),
}

ROCK_SALT = """data_NaCl
{symmetry}
_chemical_formula_sum 'Na Cl'
_cell_length_a 5.64
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Na1 Na+ 0 0 0 1
Cl1 Cl- 0.5 0.5 0.5 1
"""
SYMBOL = "_symmetry_space_group_name_H-M 'F m -3 m'"


def rock_salt(symmetry: str = SYMBOL) -> str:
    return ROCK_SALT.format(symmetry=symmetry)


def text_of(name: str) -> str:
    return (CIFS / f"{name}.cif").read_text(encoding="utf-8")


def shortest_distance(crystal: Crystal) -> float:
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3)
    vectors = crystal.frac_coords[:, None, None] - crystal.frac_coords[None, :, None] + shifts
    distances = np.linalg.norm(vectors @ crystal.lattice, axis=-1)
    return distances[distances > 1e-9].min()


def assert_same_atoms(got: Crystal, want: Crystal, tolerance_ang: float = 0.005) -> None:
    """The same cell with the same atoms, in any order."""
    np.testing.assert_allclose(got.cell, want.cell, atol=1e-3)
    np.testing.assert_array_equal(np.sort(got.atomic_numbers), np.sort(want.atomic_numbers))
    vectors = got.frac_coords[:, None] - want.frac_coords
    distances = np.linalg.norm((vectors - np.rint(vectors)) @ want.lattice, axis=-1)
    distances[got.atomic_numbers[:, None] != want.atomic_numbers] = np.inf
    assert distances.min(axis=0).max() < tolerance_ang
    assert distances.min(axis=1).max() < tolerance_ang


def read_with_pymatgen(text: str) -> Crystal:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_structure(CifParser.from_str(text).parse_structures(primitive=False)[0])


def read_with_ase(text: str) -> Crystal:
    return from_atoms(ase.io.read(io.StringIO(text), format="cif"))


def read_with_gemmi(text: str) -> Crystal:
    structure = gemmi.make_small_structure_from_block(gemmi.cif.read_string(text).sole_block())
    sites = structure.get_all_unit_cell_sites()
    cell = structure.cell
    return Crystal.from_parameters(
        (cell.a, cell.b, cell.c, cell.alpha, cell.beta, cell.gamma),
        [site.fract.tolist() for site in sites],
        [site.element.name for site in sites],
    )


READERS = {"pymatgen": read_with_pymatgen, "ase": read_with_ase, "gemmi": read_with_gemmi}


# ---------------------------------------------------------------- real crystals


@pytest.mark.parametrize("name", KNOWN)
def test_known_crystals(name):
    n_atoms, density, bond = KNOWN[name]
    crystal, header = parse_cif(text_of(name))
    assert crystal.n_atoms == n_atoms
    assert crystal.density_g_per_cm3 == pytest.approx(density, rel=0.005)
    assert shortest_distance(crystal) == pytest.approx(bond, abs=0.005)
    assert same_proportions(header.formula_sum, crystal.composition)
    assert header.formula_units == crystal.formula_units


@pytest.mark.parametrize("name", KNOWN)
def test_known_crystals_as_others_read_them(name):
    crystal, _ = parse_cif(text_of(name))
    if name not in ("Si", "hematite"):  # pymatgen takes "F d -3 m :2" without operators for P 1
        assert_same_atoms(crystal, read_with_pymatgen(text_of(name)))
    if name != "hematite":  # and gemmi does not know ICSD's "R -3 c H"
        assert_same_atoms(crystal, read_with_gemmi(text_of(name)))


@pytest.mark.parametrize("path", sorted((CIFS / "variants").glob("*.cif")), ids=lambda path: path.stem)
def test_one_crystal_as_different_programs_write_it(path):
    got = to_structure(parse_cif(path.read_text(encoding="utf-8"))[0])
    want = to_structure(parse_cif(text_of(path.stem.split("_")[0]))[0])
    matcher = StructureMatcher(ltol=0.01, stol=0.02, angle_tol=0.5, scale=False)
    rms, farthest = matcher.get_rms_dist(got, want) or (np.inf, np.inf)
    assert rms < 0.002
    assert farthest < 0.002


def test_enantiomorphic_groups_are_two():
    text = text_of("quartz")
    assert shortest_distance(parse_cif(text)[0]) == pytest.approx(1.605, abs=1e-3)
    assert shortest_distance(parse_cif(text.replace("P 32 2 1", "P 31 2 1"))[0]) < 1.4  # no quartz, no silicate


def test_header_states_what_the_file_says():
    _, header = parse_cif(text_of("hematite"))
    assert header.block == "15840-ICSD"
    assert header.formula_sum == {"Fe": 2, "O": 3}
    assert (header.space_group_symbol, header.space_group_number) == ("R -3 c H", 167)
    assert header.site_labels == ("Fe1", "O1")
    assert header.site_letters == ("c", "e")
    assert header.site_multiplicities == header.found_multiplicities == (12, 18)
    assert header.n_operators == 36


# ---------------------------------------------------------------- symmetry


def operations(rotations: np.ndarray, translations: np.ndarray) -> set[tuple[int, ...]]:
    rows = np.concatenate([np.rint(rotations).reshape(-1, 9), np.rint(translations * 24) % 24], axis=1)
    return set(map(tuple, rows.astype(int).tolist()))


@pytest.fixture(scope="module")
def hall_settings() -> list[tuple[spglib.SpaceGroupType, set[tuple[int, ...]]]]:
    """spglib's 530 settings with their operations."""
    database = [(spglib.get_spacegroup_type(n), spglib.get_symmetry_from_database(n)) for n in range(1, 531)]
    return [(kind, operations(ops["rotations"], ops["translations"])) for kind, ops in database]


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")
def test_hall_symbols_of_all_settings(hall_settings):
    for kind, want in hall_settings:
        (got,) = cif_symmetry.stated_settings({"_symmetry_space_group_name_hall": [f";{kind.hall_symbol}\n;"]})
        assert operations(got.rotations, got.translations) == want, kind.hall_symbol


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")
def test_full_symbols_of_all_settings(hall_settings):
    """P 1 1 2_1/a, A 2_1/m 2/m 2/a, F 4_1/d -3 2/m :1, R -3 2/c :R ..."""
    seen = 0
    for kind, want in hall_settings:
        symbol = kind.international_full
        if "e" in symbol.lower() and kind.choice not in ("", "1", "2"):
            continue  # a double glide plane: the symbol is that of two settings
        candidates = cif_symmetry.stated_settings({"_symmetry_space_group_name_h-m": [f"'{symbol}'"]})
        assert want in [operations(c.rotations, c.translations) for c in candidates], (kind.number, symbol)
        if kind.choice in ("1", "2", "H", "R"):
            (chosen,) = cif_symmetry.stated_settings({"_space_group_name_h-m_alt": [f"'{symbol} :{kind.choice}'"]})
            assert operations(chosen.rotations, chosen.translations) == want, (kind.number, symbol, kind.choice)
        seen += 1
    assert seen == 500


@pytest.mark.parametrize(
    "symbol",
    ["Fm-3m", "F m -3 m", "Fm3m", "F m 3 m", "F_m_-3_m", "FM-3M", "F 4/m -3 2/m", "F4/m-32/m", "Fm-3m (225)",
     "F m -3 m (No. 225)"],
)  # fmt: skip
def test_spellings_of_one_symbol(symbol):
    crystal, header = parse_cif(rock_salt(f"_symmetry_space_group_name_H-M '{symbol}'"))
    assert (crystal.n_atoms, header.n_operators, header.space_group_symbol) == (8, 192, symbol)


@pytest.mark.parametrize(
    "symmetry",
    [
        "_symmetry_space_group_name_H-M F m -3 m",  # without quotes: no CIF, but seen
        "_symmetry_Int_Tables_number 225",
        "_space_group_IT_number 225",
        "_space_group.IT_number 225",
        "_space_group_name_Hall '-F 4 2 3'",
        "_symmetry_space_group_name_H-M ?\n_symmetry_Int_Tables_number 225",
        "_symmetry_space_group_name_H-M 'my favourite'\n_symmetry_Int_Tables_number 225",
    ],
)
def test_other_ways_to_state_the_group(symmetry):
    assert parse_cif(rock_salt(symmetry))[0].n_atoms == 8


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")
@pytest.mark.parametrize(
    ("symbol", "number"),
    [("P 1 21/c 1", 14), ("P2(1)/c", 14), ("I2/a", 15), ("B 21/c", 14), ("R-3m:H", 166), ("R-3mH", 166),
     ("R-3m :R", 166), ("Pnma", 62), ("P b n m", 62), ("Cmca", 64), ("Cmce", 64), ("P6(3)/mmc", 194),
     ("P 63/m 2/m 2/c", 194), ("P 2_1 2_1 2_1", 19), ("C 4/m m m", 123), ("F -1", 2), ("Fd-3m:1", 227),
     ("F d -3 m Z", 227), ("Fd-3m O2", 227), ("I 41/a m d S", 141), ("Ia3d", 230), ("P -4 2(1) m", 113)],
)  # fmt: skip
def test_symbols_name_their_group(symbol, number):
    """spglib names the group of the operations alone; a generic cell of no metric symmetry is not needed for that."""
    setting = cif_symmetry.stated_settings({"_symmetry_space_group_name_h-m": [f"'{symbol}'"]})[0]
    rotations, translations = setting.rotations.astype(int), setting.translations
    metric = np.mean([r.T @ np.diag([9.0, 10.0, 11.0]) @ r for r in rotations], axis=0)
    found = spglib.get_spacegroup_type_from_symmetry(rotations, translations, lattice=np.linalg.cholesky(metric))
    assert found.number == number


def test_short_monoclinic_symbol_follows_the_unique_axis_of_the_cell():
    text = text_of("ZrO2").replace("P 1 21/c 1", "P 21/c")
    turned = (
        text.replace("angle_beta 99.230", "angle_beta 90").replace("angle_gamma 90", "angle_gamma 99.230")
        .replace("P 21/c", "P 21")
    )  # fmt: skip
    assert parse_cif(text)[1].n_operators == 4
    assert parse_cif(turned)[1].n_operators == 2


def test_rhombohedral_axes_are_known_by_the_cell():
    _, header = parse_cif(text_of("variants/hematite_rhombohedral_axes"))
    assert header.n_operators == 12  # 36 on hexagonal axes


@pytest.mark.parametrize(
    "atoms",
    [
        "Mg1 0 0 0\nAl1 0.625 0.625 0.625\nO1 0.3875 0.3875 0.3875\n",  # origin choice 1
        "Mg1 .125 .125 .125\nAl1 .5 .5 .5\nO1 0.2625 0.2625 0.2625\n",  # origin choice 2
    ],
)
@pytest.mark.parametrize("units", ["_cell_formula_units_Z 8", ""])
def test_origin_is_known_by_the_formula(atoms, units):
    """Spinel; the symbol is silent on the origin."""
    text = rock_salt(f"_symmetry_space_group_name_H-M 'F d -3 m'\n{units}").replace("5.64", "8.08")
    head = text.replace("'Na Cl'", "'Mg Al2 O4'").split("loop_")[0]
    text = f"{head}loop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n{atoms}"
    crystal, _ = parse_cif(text)
    assert crystal.composition == {"Mg": 8, "Al": 16, "O": 32}
    assert shortest_distance(crystal) == pytest.approx(1.92, abs=0.02)  # Mg-O and Al-O of spinel: 1.92-1.93 Å


def test_operators_win_over_the_symbol():
    listed = "loop_\n_symmetry_equiv_pos_as_xyz\n'x, y, z'\n'-x, -y, -z'\n"
    crystal, header = parse_cif(rock_salt(listed + SYMBOL))
    assert (crystal.n_atoms, header.n_operators, header.space_group_symbol) == (2, 2, "F m -3 m")


def test_lone_identity_loses_to_a_symbol_that_explains_the_multiplicities():
    """As CrystaLLM writes: x, y, z for any group."""
    listed = "loop_\n_symmetry_equiv_pos_site_id\n_symmetry_equiv_pos_as_xyz\n1 'x, y, z'\n"
    assert parse_cif(rock_salt(listed + SYMBOL))[0].n_atoms == 2  # nothing speaks for the symbol
    text = rock_salt(listed + SYMBOL + "\n_cell_formula_units_Z 4")
    assert parse_cif(text)[0].n_atoms == 8


@pytest.mark.parametrize(
    ("triplets", "n_atoms"),
    [
        ("'x,y,z'\n'x+1/2,y+1/2,z'", 4),
        ("x,y,z\n'.5+X , Y+0.5, +Z'", 4),
        ("x, y, z\nx+1/2, y+1/2, z", 4),  # blanks without quotes
        ("'x,y,z'\n'x+1/3,y,z'\n'x+0.667,y,z'", 6),
        ("'x,y,z'\n'x,y,z'\n'x+1,y,z'", 2),  # the same one three times
        ("'x,y,z,+1'\n'x+1/2,y+1/2,z,-1'", 4),  # of a magnetic CIF
    ],
)
def test_spellings_of_operators(triplets, n_atoms):
    assert parse_cif(rock_salt(f"loop_\n_space_group_symop_operation_xyz\n{triplets}"))[0].n_atoms == n_atoms


def test_atoms_listed_near_a_special_position_are_put_on_it():
    """1/3 as 0.33 and 0.3333, and a coordinate off its mirror plane by less than the tolerance."""
    cell = "_cell_length_a 3.2\n_cell_length_b 3.2\n_cell_length_c 5.2\n"
    cell += "_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 120\n_space_group_IT_number 194\n"
    loop = "loop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
    for x, y, z in (
        ("0.33", "0.67", "0.25"),
        ("0.3333", "0.6667", ".25"),
        ("1/3", "2/3", "1/4"),
        (".333", ".666", ".255"),
    ):
        crystal, header = parse_cif(f"data_Mg\n{cell}{loop}Mg1 {x} {y} {z}\n")
        assert header.found_multiplicities == (2,)
        np.testing.assert_allclose(crystal.frac_coords, [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]], atol=1e-12)


def test_sites_apart_by_more_than_the_tolerance_stay_apart():
    crystal, _ = parse_cif(rock_salt("_space_group_IT_number 221").replace("Na1 Na+ 0 0 0", "Na1 Na+ 0.06 0 0"))
    assert crystal.composition == {"Na": 6, "Cl": 1}


# ---------------------------------------------------------------- sites


@pytest.mark.parametrize(
    ("written", "element"),
    [("Fe3+", "Fe"), ("Fe+3", "Fe"), ("FE", "Fe"), ("fe2.5+", "Fe"), ("O2-", "O"), ("O-2", "O"), ("D", "H"),
     ("T", "H"), ("D1+", "H"), ("Cl1-", "Cl"), ("Si0+", "Si"), ("Cu(2+)", "Cu"), ("CL1-", "Cl"), ("No", "No")],
)  # fmt: skip
def test_spellings_of_atom_types(written, element):
    text = rock_salt("").replace("Na+ 0 0 0", f"{written} 0 0 0")
    assert element in parse_cif(text)[0].composition


@pytest.mark.parametrize(
    ("label", "formula", "element"),
    [("Fe1A", "Fe Cl", "Fe"), ("FE2", "Fe Cl", "Fe"), ("O2'", "O Cl", "O"), ("Ow1", "O Cl", "O"), ("D3", "D Cl", "H"),
     ("CA1", "C6 Cl", "C"), ("CA1", "Ca Cl", "Ca"), ("CA1", "", "Ca"), ("HO1", "H2 Cl", "H"), ("Ho1", "Ho Cl", "Ho"),
     ("N(1)", "N Cl", "N")],
)  # fmt: skip
def test_elements_by_label(label, formula, element):
    text = rock_salt("").replace("_atom_site_type_symbol\n", "").replace("'Na Cl'", f"'{formula}'" if formula else "?")
    text = text.replace("Na1 Na+", f'"{label}"').replace("Cl1 Cl-", "Cl1")
    assert element in parse_cif(text)[0].composition


def test_mixed_valence_on_one_site_is_one_atom():
    text = rock_salt().replace("Na1 Na+ 0 0 0 1", "Fe1 Fe2+ 0 0 0 0.33\nFe2 Fe3+ 0 0 0 0.67")
    crystal, header = parse_cif(text)
    assert crystal.composition == {"Fe": 4, "Cl": 4}
    assert header.site_labels == ("Fe1", "Cl1")


def test_many_sites_of_mixed_valence_take_no_time():
    """Pairs at one place to within 1e-4, on either side of a box's edge and of the cell's."""
    rng = np.random.default_rng(0)
    places = np.concatenate([[[0, 0, 0], [0.25, 0.3, 0.001]], rng.integers(0, 1000, (2998, 3)) / 1000])
    shifts = rng.choice([-4e-5, 4e-5], places.shape)
    rows = [f"Fe{k} Fe2+ {x} {y} {z} 0.5" for k, (x, y, z) in enumerate([*(places + shifts), *(places - shifts)])]
    text = rock_salt("").replace("Na1 Na+ 0 0 0 1\nCl1 Cl- 0.5 0.5 0.5 1", "\n".join(rows)).replace("5.64", "564.0")
    crystal, header = parse_cif(text)
    assert header.site_labels == tuple(f"Fe{k}" for k in range(3000)) and crystal.n_atoms == 3000
    near = _neighbours(places)
    looked_at = [near(k) for k in range(len(places))]
    assert all(k in js for k, js in enumerate(looked_at)) and sum(map(len, looked_at)) < 2 * len(places)
    far = text.replace(rows[1], "Fe1 Fe2+ 0.25 0.3003 0.001 0.5")
    with pytest.raises(CIFError, match=r"site 'Fe1' is occupied by 0\.5"):
        parse_cif(far)


def zirconia(coordinates: str, more: str = "") -> str:
    head = text_of("variants/ZrO2_shelx").split("data_I")[1].split("loop_")[0]
    tags = "".join(f"_atom_site_Cartn_{axis}\n" for axis in "xyz")
    return f"data_I{head}{more}\nloop_\n_atom_site_label\n{tags}{coordinates}\n"


@pytest.mark.filterwarnings("ignore:crystal system")
def test_cartesian_axes_are_those_of_other_programs():
    """a along x, b in the xy plane; with pymatgen's axes the fractions would be others."""
    text = zirconia("Zr1 1.24 0.206 1.094").replace("P2(1)/c", "P 21/c").replace("99.230(1)", "99.2")
    for written, rounded in [("5.1505(1)", "5.15"), ("5.2116(1)", "5.21"), ("5.3173(1)", "5.32")]:
        assert written in text
        text = text.replace(written, rounded)
    crystal, _ = parse_cif(text)
    cell = gemmi.UnitCell(5.15, 5.21, 5.32, 90, 99.2, 90)
    want = cell.fractionalize(gemmi.Position(1.24, 0.206, 1.094)).tolist()
    np.testing.assert_allclose(crystal.frac_coords[0], want, atol=1e-6)
    np.testing.assert_allclose(want, [0.2752, 0.0395, 0.2083], atol=1e-4)
    np.testing.assert_allclose(read_with_ase(text).frac_coords[0], want, atol=1e-6)


def test_cartesian_axes_as_the_file_states_them():
    """The crystal of pymatgen's axes, c along z, moved by a vector."""
    frac = np.array([0.2754, 0.0395, 0.2083])
    lattice = parse_cif(text_of("variants/ZrO2_shelx"))[0].lattice
    vector = np.array([1.0, -2.0, 0.5])
    lines = [f"_atom_sites_Cartn_tran_matrix_{i + 1}{j + 1} {lattice[j, i]:.6f}" for i in range(3) for j in range(3)]
    lines += [f"_atom_sites_Cartn_tran_vector_{i + 1} {vector[i]}" for i in range(3)]
    x, y, z = frac @ lattice + vector
    crystal, _ = parse_cif(zirconia(f"Zr1 {x:.6f} {y:.6f} {z:.6f}", "\n".join(lines)))
    np.testing.assert_allclose(crystal.frac_coords[0], frac, atol=1e-6)
    with pytest.raises(CIFError, match=r"_atom_sites_cartn_tran_vector_2 is None; wanted a number"):
        parse_cif(zirconia(f"Zr1 {x} {y} {z}", "\n".join(lines).replace(lines[10], "")))


@pytest.mark.parametrize("occupancy", ["1", "1.0", "1.", "1.00(2)", "?", ".", "0.9999"])
def test_full_occupancies(occupancy):
    assert parse_cif(rock_salt().replace("0 0 0 1", f"0 0 0 {occupancy}"))[0].n_atoms == 8


BROKEN = {
    "empty": ("", "empty", "white space"),
    "blank": (" \n\t\n", "empty", "white space"),
    "no CIF": ("not a cif", "syntax", "wanted a CIF"),
    "truncated": (rock_salt()[:-12], "syntax", "number of values"),
    "repeated item": (rock_salt() + "_cell_length_a 5.64\n", "syntax", "_cell_length_a"),
    "two crystals": (rock_salt() + rock_salt().replace("data_", "data_B"), "several_blocks", "NaCl, BNaCl"),
    "no cell": (rock_salt().replace("_cell_length_b 5.64\n", ""), "no_cell", "_cell_length_b"),
    "unknown cell": (rock_salt().replace("_alpha 90", "_alpha ?"), "no_cell", "_cell_angle_alpha"),
    "cell in words": (rock_salt().replace("_length_a 5.64", "_length_a long"), "bad_cell", "'long'"),
    "zero length": (rock_salt().replace("_length_a 5.64", "_length_a 0"), "bad_cell", "must be positive"),
    "negative length": (rock_salt().replace("_length_a 5.64", "_length_a -5.64"), "bad_cell", "-5.64"),
    "nan length": (rock_salt().replace("_length_a 5.64", "_length_a nan"), "bad_cell", "must be positive"),
    "flat cell": (rock_salt().replace(" 90\n", " 120\n"), "bad_cell", "volume is 0"),
    "no atoms": (rock_salt().split("loop_")[0], "no_atoms", "_atom_site_type_symbol"),
    "no coordinates": (
        rock_salt().split("loop_")[0] + "loop_\n_atom_site_label\nNa1\n", "no_atoms", "_atom_site_fract_x"),
    "only dummies": (
        rock_salt().replace("occupancy", "calc_flag").replace(" 1\n", " dum\n"),  # codespell:ignore dum
        "no_atoms", "empty"),
    "no z": (rock_salt().replace("_atom_site_fract_z", "_atom_site_U"), "bad_coordinate", "_fract_z"),
    "unknown coordinate": (rock_salt().replace("0 0 0", "0 ? 0"), "bad_coordinate", r"fract_y of site 'Na1' is '\?'"),
    "axes against cell": (
        rock_salt("\n".join(f"_atom_sites_Cartn_tran_matrix_{i}{j} {i + j}" for i in (1, 2, 3) for j in (1, 2, 3)))
        .replace("_fract_", "_Cartn_"), "bad_coordinate", "do not fit the cell"),
    "nan coordinate": (rock_salt().replace("0 0 0", "0 nan 0"), "bad_coordinate", "'Na1'.*finite"),
    "infinite coordinate": (rock_salt().replace("0 0 0", "0 1e999 0"), "bad_coordinate", "finite"),
    "unknown element": (rock_salt().replace("Na+", "Xy"), "unknown_element", "'Xy'"),
    "molecule": (rock_salt().replace("Na+", "NH4"), "unknown_element", "'NH4'"),
    "phosphate": (rock_salt().replace("Na+", "PO4"), "unknown_element", "'PO4'"),
    "element 119": (rock_salt().replace("Na+", "Uue"), "unknown_element", "'Uue'"),
    "vacancy": (rock_salt().replace("Na+", "Vac"), "vacancy", "'Vac'"),
    "half an atom": (rock_salt().replace("0 0 0 1", "0 0 0 0.5"), "partial_occupancy", "'Na1' is occupied by 0.5"),
    "no atom": (rock_salt().replace("0 0 0 1", "0 0 0 0"), "partial_occupancy", "wanted 1"),
    "nan of an atom": (rock_salt().replace("0 0 0 1", "0 0 0 nan"), "partial_occupancy", "nan"),
    "occupancy in words": (rock_salt().replace("0 0 0 1", "0 0 0 full"), "partial_occupancy", "'full'"),
    "two elements share a site": (
        rock_salt().replace("Na1 Na+ 0 0 0 1", "Na1 Na 0 0 0 .5\nK1 K 0 0 0 .5"), "partial_occupancy", "ordered"),
    "hidden hydrogens": (
        rock_salt().replace("occupancy", "attached_hydrogens"), "implicit_hydrogens", "1 hydrogens"),
    "two atoms at one place": (
        rock_salt().replace("0.5 0.5 0.5", "0 0 0.999"), "overlap", r"'Na1' \(Na\) and 'Cl1' \(Cl\)"),
    "two atoms made one by symmetry": (
        rock_salt().replace("0.5 0.5 0.5", "0 0.5 0.5"), "overlap", "wanted one atom"),
    "unknown group": (rock_salt("_symmetry_space_group_name_H-M 'Q m -3 m'"), "bad_symmetry", "'Q m -3 m'"),
    "group 231": (rock_salt("_space_group_IT_number 231"), "bad_symmetry", "'231'"),
    "group against cell": (
        rock_salt().replace("_length_a 5.64", "_length_a 8.1"), "bad_symmetry", "does not fit the cell"),
    "no operator": (rock_salt("loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,q'"), "bad_symmetry", "'x,y,q'"),
    "operator of two parts": (rock_salt("_symmetry_equiv_pos_as_xyz 'x,y'"), "bad_symmetry", "'x,y'"),
    "flattening operator": (
        rock_salt("loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\n'x,x,z'"), "bad_symmetry", "no lattice"),
    "no identity": (rock_salt("_symmetry_equiv_pos_as_xyz '-x,-y,-z'"), "bad_symmetry", "identity"),
    "modulated": (
        rock_salt("loop_\n_space_group_symop_ssg_operation_algebraic\n'x1,x2,x3,x4'\n'-x1,-x2,-x3,-x4'"),
        "bad_symmetry", "_space_group_symop_ssg_operation_algebraic: a modulated structure"),
    "no group": (
        rock_salt("loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\n'-x,-y,z'\n'-x,y,-z'"), "bad_symmetry", "no group"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_rejected_by_name(case):
    text, reason, message = BROKEN[case]
    with pytest.raises(CIFError, match=message) as caught:
        parse_cif(text)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"{reason}: ")


def test_every_reason_is_tried():
    elsewhere = {"binary", "not_utf8", "too_large", "no_block"}
    assert {reason for _, reason, _ in BROKEN.values()} | elsewhere == set(REASONS)


def test_bytes():
    assert parse_cif(b"\xef\xbb\xbf" + rock_salt().replace("\n", "\r\n").encode())[0].n_atoms == 8
    latin = rock_salt().replace("data_NaCl", "# Röntgen\ndata_NaCl\n_publ_author_name 'Müller'").encode("latin-1")
    assert parse_cif(latin)[0].n_atoms == 8
    for value, broken in (("Na1 Na+", "'Na1é' Na"), ("a 5.64", "a '5.64é'"), ("'F m", "'éF m")):
        with pytest.raises(CIFError, match=r"not_utf8: block 'NaCl': _[-\w]+ is '.*', of bytes that are no UTF-8"):
            parse_cif(rock_salt().replace(value, broken).encode("latin-1"))
    with pytest.raises(CIFError, match="binary: byte 0 at position 1, which no text has"):
        parse_cif(b"\x89\0\xff")
    with pytest.raises(CIFError, match="too_large: 20,000,001 bytes"):
        parse_cif(b"#" * 20_000_001)


def test_too_many_atoms(monkeypatch):
    row = "Na1 Na+ 0 0 0 1\n"
    text = rock_salt("").replace(row, row * (MAX_ATOMS + 1))
    with pytest.raises(CIFError, match="too_large: block 'NaCl': 10,002 sites, at most 10,000 atoms"):
        parse_cif(text)
    monkeypatch.setattr(cif_symmetry, "expand", None)  # nothing of this is built
    with pytest.raises(CIFError, match="10,000 sites under 192 operators, at most 10,000 atoms"):
        parse_cif(rock_salt().replace(row, row * (MAX_ATOMS - 1)))


def test_error_survives_pickle():
    error = pickle.loads(pickle.dumps(CIFError("no_cell", "block 'x': none")))
    assert (error.reason, str(error)) == ("no_cell", "no_cell: block 'x': none")


def test_broken_texts_raise_cif_errors_only():
    rng = random.Random(0)
    sources = [text_of(name) for name in [*KNOWN, "variants/ZrO2_shelx", "variants/rutile_amcsd"]]
    sources += [write_cif(unit_of_all_kinds(np.random.default_rng(0), number)) for number in (14, 166, 227)]
    parsed = 0
    for _ in range(600):
        text = rng.choice(sources)
        for _ in range(rng.randint(1, 2)):
            i = rng.randrange(len(text) + 1)
            j = i + rng.choice([0, 1, 1, 2, 30])
            text = (
                text[:i] + rng.choice(["", "?", "'", "\n", " ", "-", "9", "_", "nan", "loop_\n", ",", "é"]) + text[j:]
            )
        try:
            crystal, _ = parse_cif(text)
            parsed += 1
            assert crystal.n_atoms >= 1
        except CIFError as err:
            assert err.reason in REASONS
    assert 100 < parsed < 500


# ---------------------------------------------------------------- blocks


def test_split_gives_a_record_for_each_crystal():
    first = "# band_gap_ev +1.10\n" + rock_salt().replace("data_NaCl", "data_first")
    text = "# a file\ndata_global\n_x 1\n\n" + first + "# the second\n" + rock_salt()
    parts = split_cif(text, "salts")
    assert [name for name, _ in parts] == ["salts#first", "salts#NaCl"]
    assert parts[0][1] == first
    assert parts[1][1] == "# the second\n" + rock_salt()
    assert all(parse_cif(part)[0].n_atoms == 8 for _, part in parts)


def test_split_keeps_a_single_crystal_whole():
    for text in (rock_salt(), "# comment\n" + rock_salt(), "no block at all", ""):
        assert split_cif(text, "x") == [("x", text)]
    text = text_of("variants/ZrO2_shelx")
    ((name, body),) = split_cif(text, "ZrO2")
    assert name == "ZrO2"
    assert body.startswith("data_I\n") and text.endswith(body)


def test_split_is_not_misled_by_text_fields_and_repeated_names():
    field = "_publ_abstract\n;\ndata_inside a text\n;\n"
    parts = split_cif(rock_salt() + field + rock_salt() + field, "x")
    assert [name for name, _ in parts] == ["x#NaCl", "x#NaCl~2"]
    assert all(body == rock_salt() + field for _, body in parts)


def test_named_block():
    text = rock_salt() + rock_salt("").replace("data_NaCl", "data_other")
    assert parse_cif(text, block="other")[0].n_atoms == 2
    with pytest.raises(CIFError, match="no_block: no block 'third'; the file has NaCl, other"):
        parse_cif(text, block="third")


# ---------------------------------------------------------------- writing


def unit_of_all_kinds(rng: np.random.Generator, number: int) -> AsymmetricUnit:
    """Random cell, with sites on the first, a middle and the general position of the group."""
    group = space_group(number)
    lengths, angles = rng.uniform(6, 9, 3).round(2), rng.uniform(75, 105, 3).round(1)
    for i, j in group.ties.equal_lengths:
        lengths[i] = lengths[j]
    angles = [free if fixed is None else fixed for free, fixed in zip(angles.tolist(), group.ties.angles, strict=True)]
    sites, counts = [], {}
    for k, element in {0: "Na", len(group.wyckoff) // 2: "Ti", len(group.wyckoff) - 1: "O"}.items():
        position = group.wyckoff[k]
        frac = position.coordinates(rng.uniform(0.05, 0.95, 3).round(3))
        sites.append(Site(element, position.letter, tuple(frac.round(3) % 1)))
        counts[element] = position.multiplicity
    formula, units = reduce_composition(counts)
    return AsymmetricUnit(
        tuple(formula.items()), units // group.n_centring, number, (*lengths.tolist(), *angles), tuple(sites)
    )


def spread_unit(number: int) -> AsymmetricUnit:
    """Without atoms so close that gemmi, which merges below 0.4 Å, would count them as one."""
    rng = np.random.default_rng(number)
    units = (unit_of_all_kinds(rng, number) for _ in range(200))
    return next(unit for unit in units if shortest_distance(unit.to_crystal()) > 0.45)


@pytest.mark.parametrize("number", range(1, 231))
def test_full_cif_of_every_group_is_one_crystal_to_all(number):
    unit = spread_unit(number)
    want = unit.to_crystal()
    text = write_cif(unit)
    for read in READERS.values():
        assert_same_atoms(read(text), want)
    crystal, header = parse_cif(text)
    assert_same_atoms(crystal, want)
    assert header.found_multiplicities == header.site_multiplicities == unit.multiplicities
    assert same_proportions(header.formula_sum, dict(unit.formula))
    assert header.formula_units == want.formula_units
    assert float(text.split("_cell_volume ")[1].split()[0]) == pytest.approx(want.volume_ang3)
    # gemmi reads the symbol, too: it names the setting in which the operators are written
    named = gemmi.find_spacegroup_by_name(header.space_group_symbol)
    listed = gemmi.cif.read_string(text).sole_block().find_values("_symmetry_equiv_pos_as_xyz")
    assert named.number == number
    assert {op.triplet() for op in named.operations()} == {
        gemmi.Op(gemmi.cif.as_string(triplet)).wrap().triplet() for triplet in listed
    }


def test_symbols_are_spelled_out():
    symbols = {2: "P -1", 14: "P 1 21/c 1", 19: "P 21 21 21", 64: "C m c e", 141: "I 41/a m d :2", 148: "R -3 :H"}
    symbols |= {156: "P 3 m 1", 167: "R -3 c :H", 194: "P 63/m m c", 206: "I a -3", 225: "F m -3 m", 227: "F d -3 m :2"}
    assert {number: full_symbol(space_group(number)) for number in symbols} == symbols


def test_written_perovskite_line_by_line():
    sites = (Site("Ca", "a", (0, 0, 0)), Site("Ti", "b", (0.5, 0.5, 0.5)), Site("O", "c", (0, 0.5, 0.5)))
    unit = AsymmetricUnit((("Ca", 1), ("Ti", 1), ("O", 3)), 1, 221, (3.89, 3.89, 3.89, 90.0, 90.0, 90.0), sites)
    lines = write_cif(unit, provenance={"model": "tiny", "seed": 0}).splitlines()
    assert lines[:4] == [
        '# crystallm.provenance.model "tiny"',
        "# crystallm.provenance.seed 0",
        "data_CaTiO3",
        "_chemical_formula_sum 'Ca Ti O3'",
    ]
    assert "_symmetry_space_group_name_H-M 'P m -3 m'" in lines
    assert "_cell_volume 58.86386900" in lines
    assert lines[-1] == "O1 O 3 c 0.00000000 0.50000000 0.50000000 1"
    assert sum(line.endswith("'") and line[0].isdigit() for line in lines) == 48


def test_provenance_round_trip():
    provenance = {"model": "sha256:ab12", "seed": 7, "settings": {"top_p": 0.9, "note": "two\nlines, data_x"}}
    text = write_cif(parse_cif(text_of("NaCl"))[0], provenance)
    assert read_provenance(text) == provenance
    assert read_provenance(text_of("NaCl")) == {}
    assert parse_cif(text)[0].n_atoms == 8


cells = st.tuples(*[st.floats(2, 30)] * 3, *[st.floats(65, 115)] * 3)
coordinates = st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3)


@given(cells, st.lists(st.tuples(coordinates, st.integers(1, 118)), min_size=1, max_size=12))
def test_plain_crystals_round_trip(cell, atoms):
    crystal = Crystal.from_parameters(cell, [frac for frac, _ in atoms], [z for _, z in atoms])
    try:
        again, header = parse_cif(write_cif(crystal))
    except CIFError as err:
        assert err.reason == "overlap" and shortest_distance_or_zero(crystal) < 0.1001
        return
    np.testing.assert_allclose(again.lattice, crystal.lattice, atol=1e-6)
    np.testing.assert_array_equal(again.atomic_numbers, crystal.atomic_numbers)
    delta = again.frac_coords - crystal.frac_coords
    assert np.abs(delta - np.rint(delta)).max() < 1e-8
    assert header.space_group_number == 1
    assert same_proportions(header.formula_sum, crystal.composition)


def test_a_left_handed_basis_is_no_mirror_image():
    """Quartz with a and b exchanged: the same crystal, with coordinates along axes that make a left-handed system."""
    quartz, _ = parse_cif(text_of("quartz"))
    exchanged = Crystal(quartz.lattice[[1, 0, 2]], quartz.frac_coords[:, [1, 0, 2]], quartz.atomic_numbers)
    again, _ = parse_cif(write_cif(exchanged))
    assert _group_of(again) == _group_of(quartz) == _group_of(exchanged) == "P3_221"


def _group_of(crystal: Crystal) -> str:
    return spglib.get_spacegroup((crystal.lattice, crystal.frac_coords, crystal.atomic_numbers), 1e-3).split(" ")[0]


def shortest_distance_or_zero(crystal: Crystal) -> float:
    vectors = crystal.frac_coords[:, None] - crystal.frac_coords
    distances = np.linalg.norm((vectors - np.rint(vectors)) @ crystal.lattice, axis=-1)
    return distances[~np.eye(len(distances), dtype=bool)].min()


# ---------------------------------------------------------------- canonical text


@pytest.mark.parametrize("number", range(1, 231, 7))
def test_canonical_text_and_full_cif_are_one_crystal(number):
    unit = spread_unit(number)
    text = unit.to_text()
    assert is_canonical(text) and not is_canonical(write_cif(unit))
    crystal, header = parse_cif(text)
    assert_same_atoms(crystal, parse_cif(write_cif(unit))[0])
    assert header.formula_units == crystal.formula_units
    assert header.space_group_number == number
    assert header.site_letters == tuple(site.letter for site in unit.sites)
    assert header.found_multiplicities == unit.multiplicities


def test_canonical_text_with_the_line_ends_of_windows():
    text = spread_unit(14).to_text()
    assert_same_atoms(parse_cif(text.replace("\n", "\r\n").encode())[0], parse_cif(text)[0])


def test_canonical_errors_carry_their_reason():
    text = spread_unit(14).to_text()
    for broken, reason in [(text.replace("\nO ", "\nOx "), "unknown_element"), (text.split("Na a")[0], "no_atoms"),
                           (text.replace("alpha 90.0", "alpha 9"), "syntax")]:  # fmt: skip
        with pytest.raises(CIFError) as caught:
            parse_cif(broken)
        assert caught.value.reason == reason


def test_an_overlap_states_the_distance_of_the_file():
    """Cl, 0.036 Å from the special position of Na, is moved onto it; the image that lies closest counts."""
    for place in ("0.0064 0 0", "0 0.9936 1"):
        with pytest.raises(CIFError, match=r"'Na1' \(Na\) and 'Cl1' \(Cl\) are 0\.036 Å apart"):
            parse_cif(rock_salt().replace("0.5 0.5 0.5", place))


def test_canonical_overlap():
    sites = (Site("Na", "a", (0, 0, 0)), Site("Cl", "a", (0, 0, 0)))
    unit = AsymmetricUnit((("Na", 1), ("Cl", 1)), 1, 225, (5.64, 5.64, 5.64, 90.0, 90.0, 90.0), sites)
    with pytest.raises(CIFError, match=r"overlap: .*one atom at a place"):
        parse_cif(unit.to_text())


def test_sampling_needs_no_gemmi(monkeypatch):
    for name in ("gemmi", "spglib", "pymatgen"):
        monkeypatch.setitem(sys.modules, name, None)
    unit = spread_unit(166)
    assert parse_cif(unit.to_text())[0].n_atoms == unit.to_crystal().n_atoms
    assert write_cif(unit).startswith("data_")
