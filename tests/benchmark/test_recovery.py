from __future__ import annotations

import numpy as np
import pytest

from crystallm.benchmark.datasets import Reference
from crystallm.benchmark.recovery import conventional_cells, find_known, found_table, recover, recovery_table
from crystallm.crystal import Crystal
from crystallm.refine.diffusion import CrystalDiffusionModel
from crystallm.refine.supercells import supercell
from crystallm.refine.tutorial import PROTOTYPES


class Half(CrystalDiffusionModel):
    """Finds the prototype every second time; else its first atom lies elsewhere."""

    def __init__(self, wanted: Crystal):
        super().__init__(hidden_dim=8, num_layers=1, timesteps=4)
        self.wanted = wanted

    def sample(self, batch_size, lattice, species, **settings):  # type: ignore[no-untyped-def,override]
        np.testing.assert_allclose(lattice, self.wanted.lattice)
        drawn = []
        for k in range(batch_size):
            frac = self.wanted.frac_coords.copy()
            frac[0] += 0.06 * (k % 2)
            drawn.append(Crystal(lattice, frac, self.wanted.atomic_numbers))
        return drawn


@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("prototype", PROTOTYPES, ids=lambda one: one.name)
def test_what_is_recovered_is_counted(prototype, cells: int):
    a = {"fcc": 4.18, "bcc": 2.95, "diamond": 3.66}[prototype.name]
    wanted = supercell(prototype.crystal(lattice_ang=a), (cells, cells, cells))
    row = recover(Half(wanted), prototype, cells, num=5, candidates=0)
    assert (row.n_drawn, row.n_recovered) == (5, 3) and 0.6 <= row.share_of_atoms < 1
    assert f"{row.n_recovered} of 5" in recovery_table([row])


def test_known_crystals_are_drawn_in_their_conventional_cells():
    """Of rock salt's primitive cell, BCC and one that cannot be read, two are cells; one structure is right."""
    fcc = np.array([[0, 2.82, 2.82], [2.82, 0, 2.82], [2.82, 2.82, 0]])
    primitive = Crystal(fcc, np.array([[0.0] * 3, [0.5] * 3]), np.array([11, 17]))
    references = [Reference("a", "", primitive), Reference("b", "", PROTOTYPES[1].crystal()), Reference("c", "", None)]
    salt, iron = cells = conventional_cells(references, max_atoms=8)
    assert (salt.n_atoms, iron.n_atoms) == (8, 2) and len(conventional_cells(references, max_atoms=7)) == 1

    class Salt(CrystalDiffusionModel):
        def sample(self, batch_size, lattice, species, **settings):  # type: ignore[no-untyped-def,override]
            cell = salt if len(species) == 8 else iron
            np.testing.assert_allclose(np.linalg.det(lattice), cell.volume_ang3)
            frac = salt.frac_coords if cell is salt else np.array([[0, 0, 0], [0.1, 0.5, 0.2]])
            return [Crystal(lattice, frac, cell.atomic_numbers)]

    row = find_known(Salt(hidden_dim=8, num_layers=1, timesteps=4), cells, candidates=0, num_steps=2, seed=0)
    assert (row.n_cells, row.n_matched) == (2, 1) and row.mean_distance < 1e-6
    assert "1 of 2" in found_table([row]) and "50.0" in found_table([row])
