"""The lattice test lets through every pair that StructureMatcher calls the same, and few others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.canonical import canonicalize
from crystallm.checks.match_index import CrystalIndex, MatchIndex, is_scaled_copy, lattice_vectors, matches
from crystallm.cif import parse_cif


@pytest.fixture(scope="module")
def cells(root):
    """Triclinic, monoclinic and orthorhombic cells of one composition, some of them bent into others."""
    text = canonicalize(parse_cif((root / "tests/cifs/NaCl.cif").read_text())[0]).to_text()
    formula, units, *_ = text.split("\n")
    rng, made = np.random.default_rng(1), []
    for _ in range(40):
        a, b, c = np.sort(rng.uniform(3, 6, 3))
        alpha, beta, gamma = rng.uniform(75, 105, 3)
        sites = [f"Na a {rng.uniform(0, 0.1):.3f} 0.000 0.000", f"Cl a {rng.uniform(0.4, 0.6):.3f} 0.500 0.500"]
        lines = [formula, units, "_symmetry_space_group_name_H-M P1"]
        lines += [f"_cell_length_{name} {value:.2f}" for name, value in zip("abc", (a, b, c), strict=True)]
        names = ("alpha", "beta", "gamma")
        lines += [f"_cell_angle_{name} {value:.1f}" for name, value in zip(names, (alpha, beta, gamma), strict=True)]
        header = text[text.index("loop_") : text.index("_fract_z\n") + 8]
        made.append("\n".join([*lines, header, *sites]) + "\n")
    return made


def test_no_pair_that_matches_is_left_out(cells):
    n_matches = n_fitting = 0
    for text in cells:
        index = MatchIndex(other for other in cells if other != text)
        fitting = {index.texts[k] for k in index._fitting(text, range(len(index)))}
        matching = {other for other in index.texts if matches(text, other)}
        assert matching <= fitting
        n_matches, n_fitting = n_matches + len(matching), n_fitting + len(fitting)
    assert 20 < n_matches <= n_fitting < 0.5 * len(cells) ** 2


def test_the_first_of_the_same_group_comes_before_others(root):
    text = canonicalize(parse_cif((root / "tests/cifs/rutile.cif").read_text())[0]).to_text()
    near, nearer = (text.replace("_cell_length_c 2.96", f"_cell_length_c {c}") for c in ("3.05", "2.97"))
    other_group = near.replace("H-M P4_2/mnm", "H-M P4_2nm").replace("O f", "O c").replace("Ti a", "Ti a")
    AsymmetricUnit.from_text(other_group)
    assert MatchIndex([near, nearer, text]).find(text) == 2
    assert MatchIndex([near, nearer]).find(text) == 0
    index = MatchIndex([other_group, nearer])
    assert index.find(text) == 1 and index.n_pairs == 1
    assert MatchIndex().find(text) is None


def test_one_index_holds_one_composition(root):
    text = canonicalize(parse_cif((root / "tests/cifs/rutile.cif").read_text())[0]).to_text()
    index = MatchIndex([text])
    with pytest.raises(ValueError, match="got 'data_SnO2"):
        index.add(text.replace("Ti", "Sn"))


def test_lattice_vectors_are_all_there_are():
    rng = np.random.default_rng(0)
    for _ in range(5):
        matrix = rng.normal(size=(3, 3))
        vectors, lengths = lattice_vectors(matrix, 3.0)
        steps = np.stack(np.meshgrid(*[np.arange(-40, 41)] * 3), -1).reshape(-1, 3)
        expected = np.linalg.norm(steps @ matrix, axis=1)
        expected = expected[(expected > 0) & (expected <= 3.0)]
        assert len(vectors) == len(expected)
        np.testing.assert_allclose(lengths, np.sort(expected))
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), lengths)


def test_scaled_copies_match_and_nothing_else_passes_for_one(root):
    """The shortcut against the matcher: stretched by up to twice its tolerance, in cells at right angles or not."""
    n_copies = 0
    for name in ("NaCl", "rutile", "quartz", "hematite", "SrTiO3", "ZrO2", "Po"):
        text = canonicalize(parse_cif((root / f"tests/cifs/{name}.cif").read_text())[0]).to_text()
        unit, rng = AsymmetricUnit.from_text(text), np.random.default_rng(0)
        for _ in range(4):
            a, b, c = (round(x * rng.uniform(0.7, 1.4), 2) for x in unit.cell[:3])
            stretched = replace(unit, cell=(a, b, c, *unit.cell[3:])).to_text()
            scale, strain = rng.uniform(0.8, 1.3), rng.uniform(0.995, 1.005)
            copy = (*(x * scale for x in unit.cell[:2]), unit.cell[2] * scale * strain, *unit.cell[3:])
            scaled = replace(unit, cell=copy).to_text()
            assert not is_scaled_copy(text, stretched) or matches(text, stretched)
            if is_scaled_copy(text, scaled):
                n_copies += 1
                assert matches(text, scaled) and MatchIndex([scaled]).find(text) == 0
        moved = text.replace("0.000", "0.001")
        assert not is_scaled_copy(text, moved)
    assert n_copies >= 12
    monoclinic = canonicalize(parse_cif((root / "tests/cifs/ZrO2.cif").read_text())[0]).to_text()
    assert not is_scaled_copy(monoclinic, monoclinic.replace("_cell_length_a 5.", "_cell_length_a 6."))


def test_an_index_of_any_composition_gives_ids(root):
    quartz, rutile = (
        canonicalize(parse_cif((root / f"tests/cifs/{name}.cif").read_text())[0]).to_text()
        for name in ("quartz", "rutile")
    )
    near = quartz.replace("_cell_length_c 5.4", "_cell_length_c 5.5")
    assert near != quartz and matches(near, quartz)
    index = CrystalIndex()
    assert index.find(quartz) is None
    index.add(rutile, "rutile")
    index.add(near, "near")
    assert index.find(quartz) == "near" and index.find(rutile) == "rutile"
    index.add(quartz, "quartz")
    assert index.find(quartz) == "quartz", "an equal text before anything is matched"
    assert index.find(rutile.replace("Ti", "Sn")) is None
