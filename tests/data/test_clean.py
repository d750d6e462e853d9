import pytest

from crystallm.cif import parse_cif
from crystallm.data.clean import CleanOptions, clean_record, formula_of
from crystallm.records import CIFRecord
from tokenizer import CIFTokenizer


def clean(cif, **options):
    return clean_record(CIFRecord("x", cif), CleanOptions(**options))


def test_rock_salt_by_hand(rock_salt):
    row = clean(rock_salt())
    assert row.rejected_by is None
    assert row.text == (
        "data_NaCl\n_crystallm_primitive_formula_units 1\n_symmetry_space_group_name_H-M Fm-3m\n"
        "_cell_length_a 5.64\n_cell_length_b 5.64\n_cell_length_c 5.64\n"
        "_cell_angle_alpha 90.0\n_cell_angle_beta 90.0\n_cell_angle_gamma 90.0\n"
        "loop_\n_atom_site_type_symbol\n_atom_site_Wyckoff_symbol\n"
        "_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
        "Na a 0.000 0.000 0.000\nCl b 0.500 0.500 0.500\n"
    )
    assert (row.reduced_formula, row.space_group_number, row.n_atoms, row.n_sites) == ("NaCl", 225, 2, 8)
    assert row.n_tokens == len(CIFTokenizer().encode(row.text))
    assert row.properties["volume_per_atom_ang3"] == pytest.approx(5.64**3 / 8)
    assert row.properties["density_g_per_cm3"] == pytest.approx(2.16, abs=0.01)  # halite, CRC Handbook: 2.17


def test_two_descriptions_are_one_text(caesium_chloride):
    assert clean(caesium_chloride()).text == clean(caesium_chloride(shift=0.3)).text


@pytest.mark.parametrize(
    "change, reason",
    [
        (("_cell_length_a 5.64\n", ""), "no_cell"),
        (("_cell_length_a 5.64", "_cell_length_a -5.64"), "bad_cell"),
        (("Cl 0.5", "Qq 0.5"), "unknown_element"),
        (("0.5 0.5 0.5", "0.5 nan 0.5"), "bad_coordinate"),
        (("F m -3 m", "F q -3 m"), "bad_symmetry"),
        (("5.64", "564.0"), "not_representable"),
    ],
)
def test_reasons(rock_salt, change, reason):
    row = clean(rock_salt().replace(*change))
    assert row.rejected_by == reason
    assert row.reason and not row.text


@pytest.mark.parametrize(
    "formula, wrong",
    [("Na Cl", ""), ("Cl4 Na4", ""), ("H4 Cl Na O2", "H4 Cl1 Na1 O2"), ("?", ""), ("NACL", ""), ("Na Cl H0", "")],
)
def test_the_formula_stated_is_that_of_the_atoms(rock_salt, formula, wrong):
    row = clean(rock_salt().replace("_cell_length_a", f"_chemical_formula_sum '{formula}'\n_cell_length_a"))
    assert row.rejected_by == ("formula" if wrong else None)
    assert row.reason == (f"the formula stated is {wrong}, the sites hold NaCl" if wrong else "")


def test_options_reject_by_name(rock_salt):
    assert clean(rock_salt(), excluded_formulas=frozenset({"NaCl"})).rejected_by == "excluded_formula"
    row = clean(rock_salt(), max_sites=1)
    assert (row.rejected_by, row.reason) == ("too_many_sites", "2 atoms in the primitive cell, the limit is 1")
    assert clean(rock_salt(), max_sites=2, check_round_trip=True).rejected_by is None


def test_round_trip_is_checked(rock_salt, monkeypatch):
    other = parse_cif(rock_salt().replace("0.5 0.5 0.5", "0.25 0.25 0.25"))  # zinc blende in the place of what was read
    monkeypatch.setattr("crystallm.canonical.AsymmetricUnit.to_crystal", lambda self: other[0])
    monkeypatch.setattr("crystallm.data.clean.canonicalize", lambda crystal: _unit(rock_salt))
    assert clean(rock_salt(), check_round_trip=True).rejected_by == "round_trip"


def _unit(rock_salt):
    from crystallm.asymmetric_unit import AsymmetricUnit, Site

    sites = (Site("Na", "a", (0.0, 0.0, 0.0)), Site("Cl", "b", (0.5, 0.5, 0.5)))
    return AsymmetricUnit((("Na", 1), ("Cl", 1)), 1, 225, (5.64, 5.64, 5.64, 90.0, 90.0, 90.0), sites)


def test_a_record_rejected_before_passes_through():
    record = CIFRecord("x", "", rejected_by="too_large", reason="21 MB", provenance={"source": "a.tar", "split": "val"})
    row = clean_record(record, CleanOptions())
    assert (row.id, row.rejected_by, row.reason, row.source, row.split) == ("x", "too_large", "21 MB", "a.tar", "val")


def test_formula_of(rock_salt):
    assert formula_of(CIFRecord("x", rock_salt())) == "NaCl"
    assert formula_of(CIFRecord("x", "data_x\n")) is None
    assert formula_of(CIFRecord("x", "", rejected_by="empty")) is None
