"""A random description states the same crystal: pymatgen finds a match, and canonicalize finds the text again."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystallm.asymmetric_unit import AsymmetricUnit, to_primitive
from crystallm.canonical import canonicalize
from crystallm.cif import parse_cif
from crystallm.data.descriptions import AXIS_CHANGES, random_description
from crystallm.data.readers import read_sources
from crystallm.interop import to_structure
from crystallm.sample.constraints import Full
from crystallm.sample.rules import rules_of
from tokenizer import CIFTokenizer, Grammar


def primitive(unit: AsymmetricUnit):
    return to_primitive(unit.to_crystal(), unit.group)


@pytest.fixture(scope="module")
def units(root) -> list[AsymmetricUnit]:
    """One crystal in sixteen of the demo corpus."""
    records = list(read_sources([root / "resources/demo/demo.parquet"]))[::16]
    return [canonicalize(parse_cif(record.cif)[0]) for record in records]


def test_it_is_the_same_crystal(units):
    rng, matcher, same, other = np.random.default_rng(0), StructureMatcher(), 0, 0
    for unit in units:
        described = random_description(unit, rng)
        text = described.to_text()
        other += text != unit.to_text()
        same += canonicalize(primitive(AsymmetricUnit.from_text(text))).to_text() == unit.to_text()
        rms = matcher.get_rms_dist(to_structure(primitive(unit)), to_structure(primitive(described)))
        assert rms is not None and rms[0] < 0.01, f"{unit.to_text()}\n{text}"
    assert same >= 0.97 * len(units)  # thirds, rounded, may come back 0.001 beside
    assert other > 0.5 * len(units)


def test_every_freedom_is_drawn_from():
    text = """data_LiNi2O4
_crystallm_primitive_formula_units 2
_symmetry_space_group_name_H-M P-1
_cell_length_a 5.64
_cell_length_b 5.68
_cell_length_c 5.74
_cell_angle_alpha 119.2
_cell_angle_beta 91.5
_cell_angle_gamma 118.5
loop_
_atom_site_type_symbol
_atom_site_Wyckoff_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Li i 0.387 0.765 0.631
Ni a 0.000 0.000 0.000
Ni b 0.000 0.000 0.500
Ni c 0.000 0.500 0.000
Ni e 0.500 0.500 0.000
O i 0.199 0.958 0.228
O i 0.245 0.479 0.208
O i 0.246 0.504 0.785
O i 0.256 0.045 0.757
"""
    unit, rng = AsymmetricUnit.from_text(text), np.random.default_rng(0)
    drawn = [random_description(unit, rng) for _ in range(200)]
    assert len({d.to_text() for d in drawn}) == 200
    assert {d.cell[0] for d in drawn} == {5.64, 5.68, 5.74}  # axes are permuted
    assert len({tuple(s.letter for s in d.sites) for d in drawn}) > 20  # the origin moves among eight centres
    assert any(d.cell[3] < 90 for d in drawn) and any(d.cell[3] > 90 for d in drawn)
    assert {d.sites[0].frac for d in drawn} > {d.sites[0].frac for d in drawn[:20]}
    assert len(AXIS_CHANGES) == 24 and all(round(np.linalg.det(m)) == 1 for m in AXIS_CHANGES)


def test_texts_stay_in_the_grammar_and_in_the_sampling_constraints(units):
    tokenizer, rng = CIFTokenizer(), np.random.default_rng(1)
    grammar, rules = Grammar(tokenizer), rules_of(tokenizer.vocabulary)
    for unit in units[::2]:
        ids = tokenizer.encode(random_description(unit, rng).to_text())
        assert grammar.is_final(grammar.state_after(ids))
        constraint = Full(rules)
        for token in ids:
            choice = constraint.choice()
            if choice.token >= 0:
                allowed = [choice.token]
            else:
                allowed = rules.grammar.slot_tokens[choice.slot]
                allowed = allowed if choice.mask is None else allowed[choice.mask]
            assert token in allowed, tokenizer.decode(ids)
            constraint.advance(token)
