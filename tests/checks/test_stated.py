"""Formula, multiplicity and space group: what a CIF states against what it lists, in the spellings people use."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crystallm.checks.composition import (
    check_formula,
    check_multiplicity,
    check_stated_formula,
    check_stated_multiplicity,
)
from crystallm.checks.space_group import check_space_group, check_space_group_symbol, stated_number
from crystallm.cif import parse_cif, write_cif

ROCK_SALT = """data_{name}
_chemical_formula_sum '{total}'
_chemical_formula_structural {structural}
_cell_length_a 5.64
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_cell_formula_units_Z 4
_symmetry_space_group_name_H-M '{symbol}'
_symmetry_Int_Tables_number {number}
loop_
_symmetry_equiv_pos_as_xyz
{operators}
loop_
_atom_site_type_symbol
_atom_site_label
_atom_site_symmetry_multiplicity
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na Na0 {na} 0 0 0
Cl Cl1 4 0.5 0.5 0.5
"""


@pytest.fixture(scope="module")
def rock_salt(root):
    """A CIF of NaCl with some statements exchanged."""
    crystal, _ = parse_cif((root / "tests/cifs/NaCl.cif").read_text())
    from crystallm.canonical import canonicalize

    lines = write_cif(canonicalize(crystal)).splitlines()
    start = lines.index("_symmetry_equiv_pos_as_xyz") + 1
    operators = "\n".join(line.split(" ", 1)[1] for line in lines[start : start + 192])
    defaults = {"name": "NaCl", "total": "Na4 Cl4", "structural": "NaCl", "symbol": "Fm-3m", "number": 225, "na": 4}
    return lambda **changes: ROCK_SALT.format(**{**defaults, "operators": operators, **changes})


@pytest.mark.parametrize("name", ["NaCl", "Na4Cl4", "ClNa", "I", "B2", "global", "mp-22862", "Na", "1000041", "CIF"])
def test_a_data_name_is_a_formula_only_where_it_can_be_one(parsed, rock_salt, name):
    assert check_formula(parsed(rock_salt(name=name))) is None


@pytest.mark.parametrize(
    ("changes", "tag"),
    [
        ({"name": "KCl", "total": "?"}, "data_ says KCl"),
        ({"name": "Na2Cl", "total": "?"}, "data_ says Na2Cl"),
        ({"total": "Na4 Cl3"}, "_chemical_formula_sum says Na4Cl3"),
        ({"structural": "NaCl2"}, "_chemical_formula_structural says NaCl2"),
    ],
)
def test_a_formula_that_disagrees_is_named(parsed, rock_salt, changes, tag):
    assert tag in (check_formula(parsed(rock_salt(**changes))) or "")


@pytest.mark.parametrize("structural", ["'Na Cl'", "?", "'(Na+) (Cl-)'", "halite"])
def test_a_structural_formula_that_is_no_plain_formula_is_not_judged(parsed, rock_salt, structural):
    assert check_formula(parsed(rock_salt(structural=structural))) is None


def test_multiplicities(parsed, rock_salt, cif):
    assert check_multiplicity(parsed(rock_salt())) is None
    assert "Na0 states multiplicity 8" in (check_multiplicity(parsed(rock_salt(na=8))) or "")
    assert check_multiplicity(parsed(cif("NaCl"))) is None  # states none


def test_orders_of_the_site_symmetry_are_no_multiplicities(parsed, rock_salt, cif):
    """As SHELXL-97 writes them: 48 of m-3m, for 4 atoms by 192 operators."""
    orders = rock_salt(na=48).replace("Cl Cl1 4", "Cl Cl1 48")
    assert check_multiplicity(parsed(orders)) is None
    assert "Cl1 states multiplicity 96" in (check_multiplicity(parsed(rock_salt().replace("Cl1 4", "Cl1 96"))) or "")
    assert "Na0 states multiplicity 48" in (check_multiplicity(parsed(rock_salt(na=48))) or "")
    newer = orders.replace("_atom_site_symmetry_", "_atom_site_site_symmetry_")
    assert "Na0 states multiplicity 48" in (check_multiplicity(parsed(newer)) or "")


def test_a_canonical_text_states_how_many_formula_units_it_holds(parsed, cif):
    from crystallm.canonical import canonicalize

    text = canonicalize(parse_cif(cif("rutile"))[0]).to_text()
    assert check_formula(parsed(text)) is None
    wrong = text.replace("_crystallm_primitive_formula_units 2", "_crystallm_primitive_formula_units 3")
    assert check_formula(parsed(wrong)) == "the head states Ti3O6 in the cell, the sites hold Ti2O4"


def test_crystallm_wants_all_three_formulas(parsed, rock_salt, cif):
    assert check_stated_formula(parsed(rock_salt())) is None
    assert check_stated_formula(parsed(rock_salt(name="Na4Cl4"))) is None
    assert "data_ says KCl" in (check_stated_formula(parsed(rock_salt(name="KCl"))) or "")
    assert "states no formula" in (check_stated_formula(parsed(rock_salt(structural="?"))) or "")
    assert "no formula" in (check_stated_formula(parsed(rock_salt(name="halite"))) or "")


def test_crystallm_sums_multiplicities(parsed, rock_salt, cif):
    assert check_stated_multiplicity(parsed(rock_salt())) is None
    assert "add up to Na8Cl4" in (check_stated_multiplicity(parsed(rock_salt(na=8))) or "")
    assert "formula sum says Na1Cl1" in (check_stated_multiplicity(parsed(rock_salt(total="Na Cl"))) or "")
    assert check_stated_multiplicity(parsed(cif("NaCl"))) == "the CIF states no site multiplicities"


@pytest.mark.parametrize("symbol", ["Fm-3m", "F m -3 m", "F 4/m -3 2/m", "Fm3m"])
def test_the_space_group_is_judged_by_number_in_any_spelling(parsed, rock_salt, symbol):
    assert check_space_group(parsed(rock_salt(symbol=symbol))) is None


@pytest.mark.parametrize(
    ("symbol", "number"),
    [
        ("C m c a", 64), ("A b a m", 64), ("A b m 2", 39), ("Ccca", 68), ("F 4/m m m", 139), ("F 1 2/m 1", 12),
        ("C 1 21 1", 5), ("B 21/c", 14), ("C 4/m m m", 123), ("C -4 2 m", 115), ("F -4 m 2", 121), ("R -3 c r", 167),
        ("R -3 c H", 167), ("F d -3 m S", 227), ("P 1 21/n 1", 14),
    ],
)  # fmt: skip
def test_old_letters_and_larger_cells_name_their_group(parsed, rock_salt, symbol, number):
    header = replace(parsed(rock_salt()).header, space_group_symbol=symbol, space_group_number=None)
    assert stated_number(header) == number
    assert stated_number(replace(header, space_group_number=number)) == number


def test_two_groups_stated_at_once_are_refused(parsed, rock_salt):
    assert "different space groups" in (check_space_group(parsed(rock_salt(number=221))) or "")
    assert "closest is" in (check_space_group(parsed(rock_salt(symbol="Fm-9m"))) or "")


@pytest.mark.parametrize(
    "variant", ["hematite_rhombohedral_axes", "Si_origin1", "quartz_vesta", "rutile_amcsd", "ZrO2_shelx"]
)
def test_settings_that_databases_write_pass(parsed, cif, variant):
    assert check_space_group(parsed(cif(f"variants/{variant}"))) is None


def test_p1_is_a_claim_only_with_wyckoff_letters(parsed, cif):
    crystal, _ = parse_cif(cif("NaCl"))
    listed = write_cif(crystal)
    assert "'P 1'" in listed
    assert check_space_group(parsed(listed)) is None
    claimed = listed.replace("_atom_site_fract_x\n", "_atom_site_Wyckoff_symbol\n_atom_site_fract_x\n")
    claimed = "\n".join(
        " ".join([*line.split()[:3], "a", *line.split()[3:]]) if line[:2] in ("Na", "Cl") else line
        for line in claimed.splitlines()
    )
    assert check_space_group(parsed(claimed)) == "P1 (1) is stated, Fm-3m (225) is found"


def test_crystallm_compares_symbols(parsed, rock_salt, cif):
    assert check_space_group_symbol(parsed(rock_salt())) is None
    assert check_space_group_symbol(parsed(rock_salt(symbol="F m -3 m"))) is None
    assert "'P1' is stated" in (check_space_group_symbol(parsed(write_p1(cif("NaCl")))) or "")
    zirconia = parsed(cif("ZrO2"))
    other_setting = replace(zirconia, header=replace(zirconia.header, space_group_symbol="P 1 21/n 1"))
    assert check_space_group_symbol(other_setting) == "'P 1 21/n 1' is stated, 'P2_1/c' is found"
    assert check_space_group(other_setting) is None


def write_p1(text: str) -> str:
    return write_cif(parse_cif(text)[0]).replace("'P 1'", "'P1'")
