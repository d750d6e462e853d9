from dataclasses import replace

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystallm.asymmetric_unit import AsymmetricUnit, Site
from crystallm.canonical import canonicalize
from crystallm.data.dedup import Entry, Family, duplicate_texts, families, matches_in_family
from crystallm.interop import to_structure


def rutile(metal="Ti", a=4.59, c=2.96, u=0.305):
    sites = (Site(metal, "a", (0.0, 0.0, 0.0)), Site("O", "f", (u, u, 0.0)))
    return AsymmetricUnit(((metal, 1), ("O", 2)), 2, 136, (a, a, c, 90.0, 90.0, 90.0), sites)


def entries(*units):
    return [Entry(row, unit.to_text()) for row, unit in enumerate(units)]


def test_equal_texts_keep_the_first():
    a, b = rutile(), rutile("Sn")
    assert duplicate_texts(entries(a, b, a, b, a)) == {2: 0, 3: 1, 4: 0}


def test_priority_goes_before_order():
    a, b = entries(rutile(), rutile())
    assert duplicate_texts([replace(a, priority=1), b]) == {0: 1}


def test_families_share_formula_units_and_group():
    groups = list(families(entries(rutile(), rutile("Sn"), rutile(u=0.31), rutile("Sn", u=0.31), rutile("Ge"))))
    assert [[entry.row for entry in family.entries] for family in groups] == [[0, 2], [1, 3]]


def test_similar_structures_match_and_others_do_not():
    units = rutile(), rutile(u=0.306), rutile(u=0.45), rutile(a=4.60), rutile(a=5.2, c=3.4)
    (family,) = families(entries(*units))
    # 2 has other coordinates; 4 differs by 40 % in volume, though StructureMatcher, which scales, would have it match
    assert matches_in_family(family, 20) == {1: 0, 3: 0}


def test_agrees_with_matching_all_pairs(caesium_chloride):
    """Beside a loop over all pairs with pymatgen's defaults on the conventional cells."""
    chance = np.random.default_rng(0)
    units = [rutile(u=round(0.29 + 0.08 * x, 3), a=round(4.5 + 0.2 * x, 2)) for x in chance.random(12)]
    units = list({unit.to_text(): unit for unit in units}.values())
    matcher, kept, expected = StructureMatcher(), [], {}
    for row, unit in enumerate(units):
        structure = to_structure(unit.to_crystal())
        near = [k for k in kept if 1 / 1.1 <= units[k].to_crystal().volume_ang3 / unit.to_crystal().volume_ang3 <= 1.1]
        same = [k for k in near if matcher.fit(to_structure(units[k].to_crystal()), structure)]
        if same:
            expected[row] = same
        else:
            kept.append(row)
    found = matches_in_family(Family(tuple(entries(*units))), 100)
    assert found.keys() == expected.keys()
    assert all(found[row] in expected[row] for row in found)


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_comparisons_are_bounded(monkeypatch, limit):
    calls = []

    def never(first, second, tolerances):
        calls.append(tolerances)
        return False

    monkeypatch.setattr("crystallm.data.dedup.fits", never)
    (family,) = families(entries(*(rutile(u=0.25 + 0.01 * k) for k in range(8))))
    assert matches_in_family(family, limit) == {}
    assert len(calls) == sum(min(k, limit) for k in range(8))


def test_canonical_texts_are_their_own_description():
    assert canonicalize(rutile().to_crystal()).to_text() == rutile().to_text()
