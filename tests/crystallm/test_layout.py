"""Another layout of a text says the same: there and back for real crystals of every crystal system."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError
from crystallm.canonical import canonicalize
from crystallm.cif import parse_cif
from crystallm.crystal import Crystal, lattice_from_parameters
from crystallm.interop import to_structure
from crystallm.layout import Layout
from crystallm.space_groups import crystal_system

SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
LAYOUTS = [Layout(), Layout("cell_last"), Layout(coordinate_decimals=4), Layout("cell_last", 4)]


@pytest.fixture(scope="module")
def crystals(root) -> dict[str, list[Crystal]]:
    """Of the demo corpus, of the first prototypes of each crystal system; it has none that is triclinic."""
    corpus = pd.read_parquet(root / "resources/demo/demo.parquet").drop_duplicates("prototype")
    systems = corpus["space_group_number"].map(crystal_system)
    found = {system: [parse_cif(cif)[0] for cif in corpus["cif"][systems == system][:5]] for system in SYSTEMS}
    lattice = lattice_from_parameters(4.1, 5.2, 6.3, 81.0, 86.0, 97.0)
    frac = np.array([[0.0, 0.0, 0.0], [0.12345, 0.43219, 0.7117], [0.87655, 0.56781, 0.2883]])
    found["triclinic"] = [Crystal(lattice, frac, np.array(z)) for z in ([22, 8, 8], [22, 8, 16])]  # P-1, P1
    return found


@pytest.mark.parametrize("system", SYSTEMS)
def test_there_and_back(crystals, system):
    assert crystals[system]
    for crystal in crystals[system]:
        unit = canonicalize(crystal)
        text = replace(unit, properties={"band_gap_ev": 1.1}).to_text()
        for layout in LAYOUTS:
            written = layout.write(text)
            assert layout.read(written) == text
            assert sorted(written.split()) == sorted(text.split()) or layout.coordinate_decimals == 4
            lines = written.splitlines()
            cell, header = lines.index(f"_cell_length_a {unit.cell[0]:.2f}"), lines.index("loop_")
            assert (cell > header) == (layout.order == "cell_last")
            coordinates = [line.split()[2:] for line in lines if len(line.split()) == 5]
            assert len(coordinates) == len(unit.sites)
            assert {len(x) for row in coordinates for x in row} == {2 + layout.coordinate_decimals}


def test_a_finer_grid_is_closer_to_the_crystal(crystals):
    """The text of four decimals is nearer than that of three; rounded to three, it is as near as the usual one."""
    matcher = StructureMatcher(primitive_cell=False, scale=False)
    distances = []
    for crystal in (one for of_system in crystals.values() for one in of_system):
        fine = canonicalize(crystal, coordinate_steps=10_000)
        if not any(fine.group.position(site.letter).n_free for site in fine.sites):
            continue
        text = fine.to_text(4)
        exact = to_structure(canonicalize(crystal, coordinate_steps=1_000_000).to_crystal())  # the symmetrised crystal
        units = [fine, AsymmetricUnit.from_text(Layout(coordinate_decimals=4).read(text)), canonicalize(crystal)]
        found = [matcher.get_rms_dist(exact, to_structure(unit.to_crystal())) for unit in units]
        assert all(one is not None for one in found), text
        distances.append([one[0] for one in found if one is not None])
        assert AsymmetricUnit.from_text(text) == fine
    near, rounded, usual = np.mean(distances, axis=0)
    assert len(distances) >= 8 and near < 0.2 * usual and rounded == pytest.approx(usual, rel=0.2)


def test_rounding_turns_over_at_the_cell_edge_and_keeps_what_is_determined():
    text = """data_Si
_crystallm_primitive_formula_units 3
_symmetry_space_group_name_H-M P3_221
_cell_length_a 4.92
_cell_length_b 4.92
_cell_length_c 5.41
_cell_angle_alpha 90.0
_cell_angle_beta 90.0
_cell_angle_gamma 120.0
loop_
_atom_site_type_symbol
_atom_site_Wyckoff_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Si a 0.9996 0.0000 0.6667
"""
    layout = Layout(coordinate_decimals=4)
    assert layout.read(text).endswith("\nSi a 0.000 0.000 0.667\n")
    assert layout.read(text.replace("0.9996", "0.0625")).endswith("\nSi a 0.063 0.000 0.667\n")
    assert layout.write(layout.read(text)).endswith("\nSi a 0.0000 0.0000 0.6667\n")
    assert layout.read(text.replace("0.9996 0.0000 0.6667", "0.125 0.000 0.667")).endswith("\nSi a 0.125 0.000 0.667\n")


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_what_is_not_in_a_layout_is_named(layout):
    for text in ("", "data_NaCl\n", "data_NaCl\nloop_\nNa a 0.000 0.000 0.000\n"):
        with pytest.raises(CanonicalError, match=r"canonical|order") as caught:
            layout.read(text)
        assert caught.value.reason == "syntax"
