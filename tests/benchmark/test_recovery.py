from __future__ import annotations

import numpy as np
import pytest

from crystallm.benchmark.recovery import recover, recovery_table
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
