"""Descriptions against handbook facts, against pymatgen, and against the same crystal given in another way."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure

from crystallm.cif import parse_cif
from crystallm.crystal import Crystal
from crystallm.interop import from_structure, to_structure
from crystallm.metrics.canonical import describe_anew
from crystallm.properties import description as module
from crystallm.properties.description import MAX_SITE_SENTENCES, Description, describe
from crystallm.properties.oxidation import guess_oxidation_states
from crystallm.properties.wordings import WORDINGS

CIFS = Path(__file__).resolve().parents[1] / "cifs"


def of_kind(description: Description, kind: str) -> list[str]:
    return [sentence.text for sentence in description.sentences if sentence.kind == kind]


def test_rock_salt_says_what_is_known_of_it():
    crystal, _ = parse_cif((CIFS / "NaCl.cif").read_text())
    found = describe(crystal)
    text = str(found)
    assert of_kind(found, "symmetry") == ["The space group is Fm-3m (number 225), cubic."]
    assert of_kind(found, "prototype") == ["It has the rock salt structure."]
    assert of_kind(found, "size") == ["The primitive cell holds 2 atoms on 2 distinct sites."]
    assert of_kind(found, "families") == ["It contains alkali metal (Na) and halogen (Cl)."]
    assert of_kind(found, "electronegativity") == ["The electronegativities differ by 2.23."]
    assert "Na (+1) at 4a has 6 neighbours: 6 Cl at 2.8" in text
    density = float(re.search(r"density is ([\d.]+) g/cm3", text)[1])
    assert density == pytest.approx(float(to_structure(crystal).density), abs=0.006)


# Å and coordination from Wyckoff, Crystal Structures; the prototype is the demo corpus's own name for it.
@pytest.mark.parametrize(
    ("prototype", "formula", "name", "sites"),
    [
        ("cscl", "CsCl", "CsCl", ["8 Cl at 3.57", "8 Cs at 3.57"]),
        ("zincblende", "GaAs", "zincblende", ["4 As at 2.45", "4 Ga at 2.45"]),
        ("wurtzite", "ZnO", "wurtzite", ["4 O at 1.9", "4 Zn at 1.9"]),
        ("fluorite", "CaF2", "fluorite", ["8 F at 2.37", "4 Ca at 2.37"]),
        ("antifluorite", "Li2O", "antifluorite", ["4 O at 2.00", "8 Li at 2.00"]),
        ("perovskite", "SrTiO3", "perovskite", ["12 O at 2.76", "6 O at 1.95"]),
        ("spinel", "MgAl2O4", "spinel", ["4 O at 1.9", "6 O at 1.9"]),
        ("rutile", "TiO2", "rutile", ["6 O at 1.95 to 1.98", "3 Ti at 1.95 to 1.98"]),
        ("diamond", "Si", "diamond", ["4 Si at 2.35"]),
        ("fcc", "Cu", "fcc", ["12 Cu at 2.5"]),
        ("bcc", "W", "bcc", ["8 W at 2.74"]),
        ("hcp", "Mg", "hcp", ["12 Mg at 3.20 to 3.21"]),
        ("corundum", "Al2O3", "corundum", ["6 O at 1.8", "4 Al at 1.8"]),
        ("pyrite", "FeS2", "pyrite", ["6 S at 2.2"]),
    ],
)
def test_known_structures(crystal_of, prototype, formula, name, sites):
    found = describe(crystal_of[prototype, formula])
    assert of_kind(found, "prototype") == [f"It has the {name} structure."]
    for site in sites:
        assert site in " ".join(of_kind(found, "site")), str(found)


# Intermetallics whose handbook name goes by size, and ours by electronegativity.
OTHER_WAY_ROUND = {"PIr2", "PRh2", "Si2Ni", "Al2Au", "Ga2Au", "In2Au", "Al2Pt", "Ga2Pt", "In2Pt"}


def test_most_of_the_demo_corpus_is_recognised_and_nothing_as_another(demo):
    right = 0
    for formula, prototype, crystal in demo:
        named = of_kind(describe(crystal), "prototype")
        if named and formula not in OTHER_WAY_ROUND:
            wanted = f"It has the {prototype} structure.".replace("_", " ").lower()
            assert named[0].replace("_", " ").lower() == wanted, formula
            right += 1
    assert right > 0.95 * len(demo)


def test_wyckoff_positions_alone_do_not_make_a_prototype(crystal_of):
    """The positions of wurtzite with atoms in layers: the coordination numbers are other ones."""
    zno = crystal_of["wurtzite", "ZnO"]
    frac = zno.frac_coords.copy()
    frac[zno.atomic_numbers == 8, 2] += 0.115
    flat = describe(Crystal(zno.lattice, frac, zno.atomic_numbers))
    assert "P6_3mc" in str(flat) or "P6_3/mmc" in str(flat)
    assert of_kind(flat, "prototype") != ["It has the wurtzite structure."]


def test_one_text_for_every_description_of_a_crystal(demo):
    rng = np.random.default_rng(3)
    crystals = [crystal for _, _, crystal in demo[::12]]
    for crystal in crystals:
        text = str(describe(crystal))
        assert str(describe(describe_anew(crystal, rng))) == text
        supercell = to_structure(crystal) * rng.permutation([1, 1, 2])
        assert str(describe(from_structure(supercell))) == text


def test_sentences_name_their_atoms(crystal_of):
    crystal = crystal_of["perovskite", "SrTiO3"]
    for sentence in describe(crystal).sentences:
        elements = {crystal.symbols[atom] for atom in sentence.atoms}
        assert elements == ({sentence.text.split()[0]} if sentence.scope == "local" else set())
    covered = [atom for sentence in describe(crystal).sentences for atom in sentence.atoms]
    assert sorted(covered) == list(range(crystal.n_atoms))


def test_one_atom_and_two_hundred():
    po = Structure(Lattice.cubic(3.36), ["Po"], [[0, 0, 0]])
    assert "6 Po at 3.36 Å" in str(describe(from_structure(po)))
    lone = Structure(Lattice.cubic(11.0), ["Na"], [[0, 0, 0]])
    assert "6 Na at 11.00 Å" in str(describe(from_structure(lone)))
    rng = np.random.default_rng(0)
    species = [str(s) for s in rng.choice(["Na", "Si", "O", "F"], 200)]
    many = from_structure(Structure(Lattice.cubic(16.0), species, rng.random((200, 3))))
    found = describe(many)
    local = [sentence for sentence in found.sentences if sentence.scope == "local"]
    assert 1 <= len(local) <= MAX_SITE_SENTENCES
    assert sorted(atom for sentence in local for atom in sentence.atoms) == list(range(200))


def test_without_a_space_group_the_rest_is_said(crystal_of, monkeypatch):
    def fails(crystal):
        raise module.SymmetryError("none")

    monkeypatch.setattr(module, "find_symmetric_sites", fails)
    found = describe(crystal_of["rock_salt", "NaCl"])
    assert {s.kind for s in found.sentences} == {"formula", "families", "electronegativity", "density", "site"}
    assert "Na (+1) (4 sites) has 6 neighbours: 6 Cl at 2.82 Å." in str(found)


def test_every_sentence_is_a_wording_of_its_facts(demo):
    for _, _, crystal in demo[::50]:
        found = describe(crystal)
        assert Description.from_json(found.to_json()) == found
        for sentence in found.sentences:
            assert sentence.text == WORDINGS[sentence.kind][0].format_map(sentence.facts)


def test_no_label_can_get_in(demo):
    """Nothing but a structure goes in, and no word of energies comes out."""
    words = " ".join(str(describe(crystal)) for _, _, crystal in demo[::20]).lower()
    assert not any(word in words for word in ("energy", "ev", "gap", "hull", "modulus", "stable"))


# By hand; pymatgen's first guess is the same but for hydrides and averages.
@pytest.mark.parametrize(
    ("formula", "states"),
    [
        ("NaCl", {"Na": 1, "Cl": -1}),
        ("Fe2O3", {"Fe": 3, "O": -2}),
        ("Fe3O4", {"Fe": 8 / 3, "O": -2}),
        ("CaCO3", {"Ca": 2, "C": 4, "O": -2}),
        ("LiFePO4", {"Li": 1, "Fe": 2, "P": 5, "O": -2}),
        ("LiMn2O4", {"Li": 1, "Mn": 3.5, "O": -2}),
        ("NH4Cl", {"N": -3, "H": 1, "Cl": -1}),
        ("LiBH4", {"Li": 1, "B": 3, "H": -1}),
        ("FeTiO3", {"Fe": 2, "Ti": 4, "O": -2}),
        ("Mg2Si", {"Mg": 2, "Si": -4}),
        ("TiS2", {"Ti": 4, "S": -2}),
        ("Ti2O3", {"Ti": 3, "O": -2}),
        ("FeS2", {}),
        ("Na2O2", {}),
        ("NiAl", {}),
        ("Fe", {}),
        ("XeF2", {}),
    ],
)
def test_oxidation_states(formula, states):
    composition = {str(el): int(n) for el, n in Composition(formula).items()}
    found = guess_oxidation_states(composition)
    assert found == pytest.approx(states)
    if found and "H" not in found and all(state == round(state) for state in found.values()):
        best = Composition(formula).oxi_state_guesses()[0]
        assert found == pytest.approx(best)


def test_a_describer_that_does_not_exist_or_is_not_installed(crystal_of, monkeypatch):
    crystal = crystal_of["rock_salt", "NaCl"]
    with pytest.raises(ValueError, match="'builtin' or 'robocrys', got 'words'"):
        describe(crystal, by="words")
    monkeypatch.setitem(__import__("sys").modules, "robocrys", None)
    with pytest.raises(ImportError, match="extra `describe`"):
        describe(crystal, by="robocrys")


def test_robocrys(crystal_of):
    pytest.importorskip("robocrys")
    found = describe(crystal_of["rutile", "TiO2"], by="robocrys")
    assert "Rutile" in found.sentences[0].text and found.sentences[0].scope == "global"
    assert any(sentence.scope == "local" and "six equivalent O" in sentence.text for sentence in found.sentences)
