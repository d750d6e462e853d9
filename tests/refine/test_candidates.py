"""Candidates repeat within a given cell, and the best known is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystallm.crystal import lattice_from_parameters
from crystallm.refine.candidates import sample_best
from crystallm.refine.diffusion import CrystalDiffusionModel

CUBE = np.eye(3) * 8.0
SKEWED = lattice_from_parameters(6.6, 8.5, 9.9, 82, 97, 70)


@pytest.fixture(scope="module")
def model() -> CrystalDiffusionModel:
    torch.manual_seed(0)
    return CrystalDiffusionModel(hidden_dim=16, num_layers=2, timesteps=10)


def test_candidates_repeat_within_the_cell(model: CrystalDiffusionModel):
    """Of Na8Cl8 the candidates have 1 to 8 smaller cells; all have the cell and the atoms that were asked for."""
    species = ["Na", "Cl"] * 8
    drawn = sample_best(model, 12, SKEWED, species, 1, seed=3, num_steps=2)
    repeats = set()
    for crystal in drawn:
        assert np.array_equal(crystal.lattice, SKEWED) and sorted(crystal.symbols) == ["Cl"] * 8 + ["Na"] * 8
        sodium = crystal.frac_coords[crystal.atomic_numbers == 11]
        shifts = sodium - sodium[0]
        moved = crystal.frac_coords[None] + shifts[:, None]
        far = np.abs((d := moved[:, :, None] - crystal.frac_coords[None, None]) - np.rint(d)).max(axis=-1)
        far[:, crystal.atomic_numbers[:, None] != crystal.atomic_numbers[None]] = 1
        repeats.add(int((far.min(axis=-1) < 1e-4).all(axis=-1).sum()))
    assert repeats <= {1, 2, 4, 8} and len(repeats) > 1
    again = sample_best(model, 12, SKEWED, species, 1, seed=3, num_steps=2)
    assert all(np.array_equal(a.frac_coords, b.frac_coords) for a, b in zip(drawn, again, strict=True))


def test_the_candidate_that_is_known_best_is_kept(model: CrystalDiffusionModel, monkeypatch: pytest.MonkeyPatch):
    one = sample_best(model, 6, CUBE, ["Al"] * 4, 1, seed=5, num_steps=2)
    monkeypatch.setattr(model, "denoising_errors", lambda crystals: np.array([0.5, 0.2, 0.9, 0.4, 0.3, 0.1]))
    three = sample_best(model, 2, CUBE, ["Al"] * 4, 3, seed=5, num_steps=2)
    assert [c.frac_coords.tolist() for c in three] == [one[1].frac_coords.tolist(), one[5].frac_coords.tolist()]


def test_a_composition_that_does_not_divide_is_drawn_as_it_is(model: CrystalDiffusionModel):
    drawn = sample_best(model, 2, CUBE, ["Ti", "O", "O"], 2, seed=0, num_steps=2)
    assert [c.n_atoms for c in drawn] == [3, 3]


@pytest.mark.parametrize(
    "lattice, species, candidates, message",
    [
        (CUBE, ["Al"], 0, "candidates must be at least 1, got 0"),
        (np.zeros((3, 3)), ["Al"], 1, "vectors lie in a plane"),
        (CUBE, ["Xx"], 1, "symbols or atomic numbers from 1 to 118, got 'Xx'"),
        (CUBE, [], 1, "species says which atoms there are"),
    ],
)
def test_bad_input_says_what_is_wanted(model, lattice, species, candidates, message):
    with pytest.raises(ValueError, match=message):
        sample_best(model, 1, lattice, species, candidates, seed=0)


def test_without_a_cell_candidates_are_those_of_the_model(model: CrystalDiffusionModel):
    drawn = sample_best(model, 3, None, ["Cs", "Cl"], 1, seed=4, num_steps=2)
    plain = model.sample(3, None, ["Cs", "Cl"], seed=4, num_steps=2)
    assert all(np.array_equal(a.frac_coords, b.frac_coords) for a, b in zip(drawn, plain, strict=True))
    best = sample_best(model, 1, None, ["Cs", "Cl"], 3, seed=4, num_steps=2)[0]
    errors = model.denoising_errors(plain)
    assert np.array_equal(best.lattice, plain[int(errors.argmin())].lattice) and errors.min() < errors.max()
