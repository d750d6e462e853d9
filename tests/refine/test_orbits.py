"""Free parameters of Wyckoff positions, against spglib: what moves along them keeps its space group."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import spglib
import torch

import crystallm
from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.canonical import canonicalize
from crystallm.crystal import Crystal
from crystallm.refine.batch import make_batch
from crystallm.refine.diffusion import add_noise, draw_noise
from crystallm.refine.orbits import find_orbits, free_orbits
from crystallm.refine.units import UnitCrystal
from crystallm.resources import resource_path


@pytest.fixture(scope="module")
def units() -> list[UnitCrystal]:
    demo = pd.read_parquet(resource_path("resources/demo/demo.parquet"))
    texts = [crystallm.canonicalize(cif) for cif in demo.cif[::35]]
    return [UnitCrystal.of(AsymmetricUnit.from_text(text)) for text in texts]


def group_found(crystal: Crystal) -> int:
    cell = (crystal.lattice, crystal.frac_coords, crystal.atomic_numbers)
    return int(spglib.get_symmetry_dataset(cell, symprec=1e-3).number)


def test_noise_along_free_parameters_keeps_the_group(units: list[UnitCrystal]):
    batch = make_batch([one.crystal for one in units], [one.orbits for one in units])
    noise = draw_noise(batch, torch.Generator().manual_seed(0))
    sigma = torch.full((len(units),), 0.15)
    noisy = add_noise(batch, noise, sigma, torch.ones(len(units), dtype=torch.bool))
    numbers = {one.unit.space_group_number for one in units}
    assert len(numbers) >= 8 and any(one.orbits.n_free.any() for one in units)
    for one, crystal in zip(units, noisy.crystals(), strict=True):
        assert group_found(crystal) == one.unit.space_group_number
        assert abs(np.log(crystal.volume_ang3 / one.crystal.volume_ang3)) > 1e-6  # the cell did change


def test_free_noise_breaks_it(units: list[UnitCrystal]):
    cubic = [one for one in units if one.unit.space_group_number > 194 and one.crystal.n_atoms > 1][:3]
    batch = make_batch([one.crystal for one in cubic])
    noise = draw_noise(batch, torch.Generator().manual_seed(0))
    noisy = add_noise(batch, noise, torch.full((len(cubic),), 0.15), torch.zeros(len(cubic), dtype=torch.bool))
    assert [group_found(crystal) for crystal in noisy.crystals()] == [1] * len(cubic)


def test_what_comes_back_is_the_unit(units: list[UnitCrystal]):
    for one in units:
        back = one.with_result(one.crystal.lattice, one.crystal.frac_coords)
        np.testing.assert_allclose(back.cell, one.unit.cell, atol=1e-6)
        assert back.to_text() == one.unit.to_text()


def test_a_moved_atom_comes_back_moved():
    """Rutile: u is the only free parameter, and a, c the free lengths."""
    u, v = 0.305, 0.195
    oxygens = [[u, u, 0], [-u, -u, 0], [0.5 + u, v, 0.5], [v, 0.5 + u, 0.5]]
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], *oxygens]
    rutile = Crystal.from_parameters((4.59, 4.59, 2.96, 90, 90, 90), sites, ["Ti", "Ti", "O", "O", "O", "O"])
    text = canonicalize(rutile).to_text()
    one = UnitCrystal.of(AsymmetricUnit.from_text(text))
    assert one.orbits.n_free.tolist() == [0, 0, 1, 1, 1, 1] and sorted(set(one.orbits.leader)) == [0, 2]
    batch = make_batch([one.crystal], [one.orbits])
    assert batch.n_strain.tolist() == [2]
    push = torch.zeros(6, 3)
    push[2] = torch.tensor([0.1, 0.2, 0.3])  # Å; only what lies along the free direction counts, 0.15 along a and b
    moved = batch.moved(batch.following(push)).crystals()[0]
    unit = one.with_result(moved.lattice, moved.frac_coords)
    site = next(site for site in unit.sites if site.symbol == "O")
    old = next(site for site in one.unit.sites if site.symbol == "O")
    assert abs(site.frac[0] - old.frac[0]) == pytest.approx(0.15 / 4.59, abs=1e-6)
    assert site.frac[0] == pytest.approx(site.frac[1]) and site.frac[2] == 0


def test_free_orbits_and_what_is_not_symmetric():
    orbits = free_orbits(2)
    assert orbits.leader.tolist() == [0, 1] and orbits.n_free.tolist() == [3, 3] and len(orbits.rotations) == 1
    crystal = Crystal.from_parameters((4, 4, 4, 90, 90, 90), [[0, 0, 0], [0.4, 0.5, 0.5]], ["Cs", "Cl"])
    group = AsymmetricUnit.from_text(
        crystallm.canonicalize(
            "data_x\n_cell_length_a 4\n_cell_length_b 4\n_cell_length_c 4\n_cell_angle_alpha 90\n_cell_angle_beta 90\n"
            "_cell_angle_gamma 90\nloop_\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n"
            "_atom_site_fract_z\nCs 0 0 0\nCl 0.5 0.5 0.5\n"
        )
    ).group
    with pytest.raises(ValueError, match=r"CsCl: not symmetric under Pm-3m, off by 0\.200 of an edge"):
        find_orbits(crystal, group)
