"""The published vocabulary: known ids, and a plain longest-match loop written from its description."""

import random
import re

import pytest

from tokenizer import CIFTokenizer, Grammar
from tokenizer.crystallm_v1 import UnknownTokenWarning, normalize_v1
from tokenizer.space_group_symbols import SPACE_GROUP_SYMBOLS

KEYWORD = "_symmetry_space_group_name_H-M"

TEXT = """data_Cd1Cu1N3
loop_
_atom_type_symbol
_atom_type_electronegativity
_atom_type_radius
_atom_type_ionic_radius
Cd 1.6900 1.5500 1.0900
Cu 1.9000 1.3500 0.8200
N 3.0400 0.6500 0.3000
_symmetry_space_group_name_H-M Pm-3m
_cell_length_a 4.2793
_cell_angle_alpha 90.0000
_symmetry_Int_Tables_number 221
_chemical_formula_structural CdCuN3
_chemical_formula_sum 'Cd1 Cu1 N3'
_cell_volume 78.3634
_cell_formula_units_Z 1
loop_
_symmetry_equiv_pos_site_id
_symmetry_equiv_pos_as_xyz
1 'x, y, z'
loop_
_atom_site_type_symbol
_atom_site_label
_atom_site_symmetry_multiplicity
_atom_site_fract_x
_atom_site_occupancy
Cd Cd0 1 0.0000 0.0000 0.0000 1
N N2 3 0.0000 0.0000 0.5000 1

"""


@pytest.fixture(scope="module")
def v1() -> CIFTokenizer:
    return CIFTokenizer("crystallm_v1", on_unknown="raise")


def plain_encode(text: str, tokens: list[str]) -> list[int] | None:
    """Longest match at each position; a `_sg` token where the group's line says so. None if nothing fits somewhere."""
    ids, position = [], 0
    while position < len(text):
        value, newline, _ = text[position:].partition("\n")
        fits = [token for token in tokens if text.startswith(token, position) and not token.endswith("_sg")]
        if text[:position].endswith(KEYWORD + " ") and newline and value + "_sg" in tokens:
            ids.append(tokens.index(value + "_sg"))
            position += len(value)
        elif fits:
            ids.append(tokens.index(max(fits, key=len)))
            position += len(max(fits, key=len))
        else:
            return None
    return ids


def test_known_ids(v1):
    assert v1.vocab_size == 371
    assert v1.encode("data_Na2Cl2\n") == [124, 54, 91, 5, 91, 142]
    places = {"Si": 0, "Ar": 88, "0": 89, "9": 98, "_cell_length_b": 99, "_atom_type_oxidation_number": 129, "x": 130}
    places |= {" ": 141, "\n": 142, "P6/mmm_sg": 143, "Cmme_sg": 369, "<unk>": 370}
    assert {text: v1.id(text) for text in places} == places


def test_equals_longest_match(v1):
    tokens = [token.decode() for token in v1.vocabulary.tokens]
    assert v1.encode(TEXT) == plain_encode(TEXT, tokens)
    assert v1.decode(v1.encode(TEXT)) == TEXT
    rng, compared = random.Random(0), 0
    groups = [symbol for symbol in SPACE_GROUP_SYMBOLS if symbol not in v1.missing["space_groups"]]
    for _ in range(300):
        text = "".join(rng.choices(tokens[:143], k=30)) + f"\n{KEYWORD} {rng.choice(groups)}{rng.choice(['', ' '])}\n"
        text = re.sub(" +", " ", text)
        expected = plain_encode(text, tokens)
        if expected is not None:  # None: C and data_ were joined to Cd and ata_, or a blank cut the group's line
            assert v1.encode(text) == expected
            compared += 1
    assert compared > 100


def test_group_token_only_as_value_of_its_line(v1):
    pm_element, pm_group = v1.id("Pm"), v1.id("Pm_sg")
    ids = v1.encode(f"{KEYWORD} Pm\nPm 1\n")
    assert ids.count(pm_group) == 1 and ids.count(pm_element) == 1 and ids.index(pm_group) < ids.index(pm_element)
    assert pm_group not in v1.encode(f"{KEYWORD} Pm")  # no newline yet: a prompt that is cut here
    assert v1.decode(ids) == f"{KEYWORD} Pm\nPm 1\n"


def test_what_it_lacks(v1):
    assert v1.missing["space_groups"] == ("P4_222", "P6", "P432")
    up_to_lawrencium = ["Po", "At", "Rn", "Fr", "Ra", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr"]
    assert list(v1.missing["elements"])[:14] == up_to_lawrencium and len(v1.missing["elements"]) == 14 + 15
    with pytest.raises(ValueError, match=r"'o'.*first in line 2.*lacks the elements Po"):
        v1.encode("data_Na\nPo")
    with pytest.raises(ValueError, match="lacks the space groups P6"):
        v1.encode(f"{KEYWORD} P6\n")
    assert CIFTokenizer().missing == {"elements": (), "space_groups": ()}


def test_unknown_is_said(v1):
    tok = CIFTokenizer("crystallm_v1")
    with pytest.warns(UnknownTokenWarning, match="'§'"):
        assert tok.encode("Na§Cl") == [54, 370, 5]
    with pytest.raises(ValueError, match="'§'"):
        v1.encode("Na§Cl")
    with pytest.raises(ValueError, match="no 'pad' token"):
        _ = tok.pad_id
    with pytest.raises(ValueError, match="needs a vocabulary of lexemes"):
        Grammar(tok)


def test_blanks_and_lines_are_normalised(v1):
    raw = "# generated using pymatgen\n\ndata_NaCl\n_cell_length_a   5.6900\t\n  Na  Na0  \n\n# end\n"
    text = "data_NaCl\n_cell_length_a 5.6900\nNa Na0\n\n"
    assert normalize_v1(raw) == text == normalize_v1(text)
    assert v1.encode("a_cell".removeprefix("a") + "_length_a   5.0") == v1.encode("_cell_length_a 5.0")
    assert [ids.tolist() for ids in v1.encode_batch([text, TEXT])] == [v1.encode(text), v1.encode(TEXT)]
    assert v1.decode_bytes(v1.encode_bytes(text.encode())) == text.encode()
