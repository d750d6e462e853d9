"""One description a crystal: known crystals, random crystals described anew, round trips, bad texts."""

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError, to_primitive
from crystallm.canonical import canonicalize
from crystallm.crystal import Crystal, lattice_from_parameters
from crystallm.metrics.canonical import describe_anew
from crystallm.space_groups import space_group
from crystallm.symmetry import find_space_group

PEROVSKITE = """data_CaTiO3
_crystallm_primitive_formula_units 1
_symmetry_space_group_name_H-M Pm-3m
_cell_length_a 3.89
_cell_length_b 3.89
_cell_length_c 3.89
_cell_angle_alpha 90.0
_cell_angle_beta 90.0
_cell_angle_gamma 90.0
loop_
_atom_site_type_symbol
_atom_site_Wyckoff_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Ca a 0.000 0.000 0.000
Ti b 0.500 0.500 0.500
O c 0.000 0.500 0.500
"""


def from_structure(structure):
    numbers = [site.specie.Z for site in structure]
    return Crystal(structure.lattice.matrix, structure.frac_coords % 1.0, np.array(numbers))


def to_structure(crystal):
    return Structure(crystal.lattice, crystal.atomic_numbers, crystal.frac_coords)


def random_crystal(number, rng, n_sites=3):
    """A crystal of the group with `n_sites` sites on random positions, coordinates on the grid of the text."""
    group = space_group(number)
    while True:
        lengths = rng.uniform(7.0, 12.0, 3)
        for i, j in group.ties.equal_lengths:
            lengths[i] = lengths[j]
        angles = [rng.uniform(75, 105) if angle is None else angle for angle in group.ties.angles]
        lattice = lattice_from_parameters(*lengths, *angles)
        points, numbers = [], []
        for z in range(n_sites):
            position = group.wyckoff[rng.integers(len(group.wyckoff))]
            orbit = position.orbit(rng.random(3))
            points += orbit.tolist()
            numbers += [11 + z] * len(orbit)
        # one atom on the general position leaves no symmetry beyond the group's
        orbit = group.wyckoff[-1].orbit(rng.random(3))
        crystal = Crystal(lattice, np.array(points + orbit.tolist()), np.array(numbers + [8] * len(orbit)))
        distances = to_structure(crystal).distance_matrix + 9 * np.eye(crystal.n_atoms)
        if distances.min() > 0.4 and find_space_group(crystal).number == number:
            return crystal


def test_perovskite_by_hand():
    structure = Structure.from_spacegroup(
        "Pm-3m", Lattice.cubic(3.89), ["Ti", "Ca", "O"], [[0, 0, 0], [0.5] * 3, [0.5, 0, 0]]
    )
    unit = canonicalize(from_structure(structure))
    assert unit.to_text() == PEROVSKITE
    assert unit.multiplicities == (1, 1, 3)
    assert canonicalize(from_structure(structure * (2, 1, 3))).to_text() == PEROVSKITE


@pytest.mark.parametrize("number", [*range(1, 231, 7), 2, 5, 9, 14, 62, 146, 148, 178, 194, 198, 205, 225, 227, 230])
def test_descriptions_of_one_crystal_give_one_text(number):
    rng = np.random.default_rng(number)
    crystal = random_crystal(number, rng, n_sites=2)
    text = canonicalize(crystal).to_text()
    for _ in range(3):
        assert canonicalize(describe_anew(crystal, rng)).to_text() == text


@pytest.mark.parametrize("number", range(1, 231, 5))
def test_text_gives_the_crystal_back(number):
    crystal = random_crystal(number, np.random.default_rng(number), n_sites=2)
    unit = canonicalize(crystal)
    assert unit.space_group_number == number
    assert AsymmetricUnit.from_text(unit.to_text()) == unit
    back = unit.to_crystal()
    assert find_space_group(back).number == number
    # both are conventional cells; the matcher's own reduction to a primitive cell fails on a few of these random
    # crystals
    rms = StructureMatcher(primitive_cell=False).get_rms_dist(to_structure(back), to_structure(crystal))
    assert rms is not None and rms[0] < 0.01
    assert to_primitive(back, unit.group).n_atoms * unit.group.n_centring == back.n_atoms
    assert canonicalize(back).to_text() == unit.to_text()


def test_a_crystal_keeps_its_handedness():
    """Left and right quartz are different crystals; so are mirror images within one Sohncke group."""
    quartz = Structure.from_spacegroup(
        "P3_221", Lattice.hexagonal(4.913, 5.405), ["Si", "O"], [[0.4697, 0, 2 / 3], [0.4135, 0.2669, 0.7858]]
    )
    mirrored = Structure(quartz.lattice, quartz.species, -quartz.frac_coords)
    left, right = canonicalize(from_structure(quartz)), canonicalize(from_structure(mirrored))
    assert {left.group.symbol, right.group.symbol} == {"P3_221", "P3_121"}
    crystal = random_crystal(19, np.random.default_rng(3))
    image = Crystal(crystal.lattice, -crystal.frac_coords % 1.0, crystal.atomic_numbers)
    assert canonicalize(image).to_text() != canonicalize(crystal).to_text()
    # a left-handed basis is a way of writing, not another crystal
    same = Crystal(-crystal.lattice, -crystal.frac_coords % 1.0, crystal.atomic_numbers)
    assert canonicalize(same).to_text() == canonicalize(crystal).to_text()


def test_thirds_are_restored_exactly():
    zinc = Structure.from_spacegroup("P6_3/mmc", Lattice.hexagonal(2.66, 4.95), ["Zn"], [[1 / 3, 2 / 3, 0.25]])
    unit = canonicalize(from_structure(zinc))
    assert "Zn c 0.333 0.667 0.250" in unit.to_text()
    assert np.allclose(
        sorted(unit.to_crystal().frac_coords.tolist()), [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]], atol=1e-12
    )


def test_condition_lines_survive():
    unit = AsymmetricUnit.from_text("# band_gap_ev +1.10\n# density_g_per_cm3 +4.05\n" + PEROVSKITE)
    assert unit.properties == {"band_gap_ev": 1.10, "density_g_per_cm3": 4.05}
    assert unit.to_text().startswith("# band_gap_ev +1.10\n# density_g_per_cm3 +4.05\ndata_CaTiO3\n")


@pytest.mark.parametrize(
    "old, new, reason, message",
    [
        ("Pm-3m", "Pm3m", "syntax", "'Pm3m' is not the short symbol"),
        ("Ti b", "Ti w", "syntax", "site 2: Pm-3m has no Wyckoff position 'w'"),
        ("O c", "Xx c", "unknown_element", "site 3: 'Xx' is no element"),
        ("0.000 0.500 0.500\n", "0.000 0.500\n", "syntax", "site 3: want"),
        ("_cell_length_a 3.89\n", "", "syntax", "not the head"),
        ("data_CaTiO3", "data_CaXxO3", "unknown_element", "'Xx' is no element"),
    ],
)
def test_bad_texts(old, new, reason, message):
    with pytest.raises(CanonicalError, match=message) as caught:
        AsymmetricUnit.from_text(PEROVSKITE.replace(old, new))
    assert caught.value.reason == reason


def test_a_finer_grid_has_a_limit():
    crystal = from_structure(Structure(Lattice.cubic(3.0), ["Po"], [[0, 0, 0]]))
    with pytest.raises(ValueError, match="coordinate_steps must be from 1 to 1,000,000, got 10000000"):
        canonicalize(crystal, 10**7)


def test_a_cell_outside_the_vocabulary_is_named():
    crystal = Crystal(np.diag([3.0, 3.5, 120.0]), np.array([[0, 0, 0], [0.1, 0.2, 0.3]]), np.array([11, 17]))
    with pytest.raises(CanonicalError, match=r"120\.0") as caught:
        canonicalize(crystal)
    assert caught.value.reason == "not_representable"
