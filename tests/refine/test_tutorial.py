"""The tutorial's crystals, against spglib, known densities and pymatgen; and a run on them."""

from __future__ import annotations

import collections
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import spglib
import torch
from pymatgen.analysis.local_env import MinimumDistanceNN

from crystallm.config import ConfigError
from crystallm.crystal import Crystal
from crystallm.geometry import coordination_numbers
from crystallm.interop import to_structure
from crystallm.refine.checkpoint import load_refiner
from crystallm.refine.loader import CrystalDataConfig, CrystalLoader, packed_freely
from crystallm.refine.supercells import supercell
from crystallm.refine.tutorial import (
    PROTOTYPES,
    TutorialConfig,
    training_crystals,
    tutorial_structures,
    validation_crystals,
)
from crystallm.train.ahead import BatchesAhead
from crystallm.train.metrics import read_metrics
from crystallm.training.run import train

# Space group, g/cm³, neighbours
KNOWN = {"fcc": ("Al", 225, 2.70, 12), "bcc": ("Fe", 229, 7.87, 8), "diamond": ("C", 227, 3.51, 4)}


def group_found(crystal: Crystal) -> int:
    return int(spglib.get_symmetry_dataset((crystal.lattice, crystal.frac_coords, crystal.atomic_numbers)).number)


def test_prototypes_are_the_crystals_they_are_named_for():
    for prototype in PROTOTYPES:
        element, group, density, neighbours = KNOWN[prototype.name]
        crystal = prototype.crystal()
        assert crystal.reduced_formula == element and group_found(crystal) == group
        assert crystal.density_g_per_cm3 == pytest.approx(density, rel=0.01)
        assert prototype.coordination == neighbours
        for other in prototype.lattice_ang:
            assert group_found(prototype.crystal(other)) == group


def test_there_are_21_structures_of_2_to_8_atoms():
    structures = tutorial_structures()
    assert len(structures) == 21 and {one.n_atoms for one in structures} == {2, 4, 8}
    for prototype, family in zip(PROTOTYPES, np.array(structures, dtype=object).reshape(3, 7), strict=True):
        neighbours = np.concatenate([coordination_numbers(c.lattice, c.frac_coords) for c in family])
        assert (neighbours == prototype.coordination).mean() > 0.95  # a bond of a displaced one may be too long
        kinds = collections.Counter(
            (
                c.reduced_formula == family[0].reduced_formula,
                np.allclose(c.lattice, family[0].lattice),
                np.allclose(c.frac_coords, family[0].frac_coords),
            )
            for c in family[1:]
        )  # same element, same cell, same fractions
        assert kinds == {(True, False, True): 2, (True, True, False): 2, (False, False, True): 2}
        assert group_found(family[2]) <= 2  # two atoms always have a centre between them
    assert [len(tutorial_structures(variants)) for variants in (0, 1, 9)] == [3, 6, 30]
    again, other = tutorial_structures(), tutorial_structures(seed=1)
    assert all(np.array_equal(a.lattice, b.lattice) for a, b in zip(structures, again, strict=True))
    assert not np.allclose(structures[1].lattice, other[1].lattice)


def test_a_supercell_is_the_same_crystal():
    for prototype in PROTOTYPES:
        large = supercell(prototype.crystal(), (2, 1, 3))
        assert large.n_atoms == 6 * prototype.crystal().n_atoms and group_found(large) == group_found(
            prototype.crystal()
        )
        assert large.density_g_per_cm3 == pytest.approx(prototype.crystal().density_g_per_cm3)


def test_coordination_is_pymatgens():
    large = supercell(tutorial_structures()[2], (2, 1, 1))
    rng = np.random.default_rng(0)
    skewed = Crystal.from_parameters((4.1, 5.3, 6.2, 82, 97, 70), rng.random((7, 3)), ["Ca"] * 7)
    for crystal in (large, skewed, *tutorial_structures()[::3]):
        structure = to_structure(crystal)
        finder = MinimumDistanceNN(tol=0.1)
        theirs = [finder.get_cn(structure, n) for n in range(crystal.n_atoms)]
        assert coordination_numbers(crystal.lattice, crystal.frac_coords).tolist() == theirs


def test_epochs_go_over_the_supercells_and_validation_differs():
    config = TutorialConfig(variants=3, cells=(1, 1, 2), repeats=2)
    crystals = training_crystals(config)
    sizes = collections.Counter(one.n_atoms for one in crystals)
    assert sizes == {2: 16, 4: 16, 8: 16, 16: 8, 32: 8, 64: 8}
    held_out = validation_crystals(config)
    assert len(held_out) == 24 and [one.reduced_formula for one in held_out[:3]] == ["Al", "Fe", "C"]
    cells = [one.lattice for one in crystals]
    strained = held_out[3:6]
    assert not any(np.allclose(one.lattice, cell) for one in strained for cell in cells)
    data = CrystalDataConfig(batch_structures=5, max_atoms=64, symmetric=0)
    loader = CrystalLoader(packed_freely(crystals), data, cutoff_ang=5.0)
    batches = list(loader.take(loader.n_batches))
    assert loader.epoch == 1 and sorted(batch.n_crystals for batch in batches) == [2] + [5] * 14
    assert sum(len(batch.crystal) for batch in batches) == sum(one.n_atoms for one in crystals)
    assert not any(batch.is_symmetric.any() for batch in batches)


@pytest.mark.parametrize("symmetric", [0.0, 0.7])
def test_validation_has_symmetry_only_where_training_has_it(symmetric: float):
    crystals = [supercell(one, (1, 1, 1)) for one in tutorial_structures()[:3]]
    loader = CrystalLoader(packed_freely(crystals), CrystalDataConfig(symmetric=symmetric), cutoff_ang=5.0)
    assert {bool(flag) for batch in loader.once() for flag in batch.is_symmetric} == {symmetric > 0}


def test_crystals_made_ahead_are_the_loaders():
    crystals = packed_freely(training_crystals(TutorialConfig(variants=3)))
    plain, second = (CrystalLoader(crystals, CrystalDataConfig(batch_structures=4), 5.0, seed=1) for _ in range(2))
    ahead = BatchesAhead(second, 2)
    for one, other in zip(plain.take(8), ahead.take(8), strict=True):
        for name, tensor in vars(one).items():
            assert torch.equal(tensor, getattr(other, name))
    assert ahead.state == plain.state


@pytest.mark.parametrize("settings", [{"variants": -1}, {"repeats": 0}, {"cells": ()}, {"cells": (0,)}])
def test_bad_settings(settings: dict):
    with pytest.raises(ValueError, match="variants ≥ 0, repeats ≥ 1 and cells"):
        TutorialConfig(**settings)


def small_run(root: Path, out: Path, *more: str) -> list[str]:
    shape = ["refiner.hidden_dim=8", "refiner.num_layers=1", "refiner.timesteps=10"]
    data = ["data.tutorial.cells=[1]", "data.tutorial.repeats=1", "data.tutorial.variants=1"]
    steps = ["train.max_steps=4", "train.eval_every=2", "train.warmup_steps=0"]
    return [str(root / "config/refiner_tutorial.yaml"), f"out={out}", *shape, *data, *steps, *more]


def test_a_run_draws_test_structures_and_its_checkpoint_draws_too(root: Path, tmp_path: Path, capsys):
    assert train(small_run(root, tmp_path / "run")) == "finished"
    lines = [line for line in capsys.readouterr().out.splitlines() if "minimum distance" in line]
    assert len(lines) == 2 and all("in 3 test structures" in line for line in lines)
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "samples_valid" in row]
    assert len(rows) == 2 and all(0 <= row["samples_valid"] <= 1 for row in rows)
    model, info = load_refiner(tmp_path / "run")
    assert info["data"]["tutorial"]["variants"] == 1
    assert model.sample(1, np.eye(3) * 4.05, ["Al"] * 4, seed=0)[0].n_atoms == 4
    assert model.training_cells is not None and len(model.training_cells.n_atoms) == 6  # 3 prototypes, a variant each
    drawn = model.sample(20, seed=0)
    assert {(one.reduced_formula, one.n_atoms) for one in drawn} == {("Al", 4), ("Fe", 2), ("C", 8)}


def test_fine_tuning_keeps_the_shape_and_draws_the_noise_it_is_told(root: Path, tmp_path: Path):
    train(small_run(root, tmp_path / "base"))
    base = load_refiner(tmp_path / "base")
    noise = ["refiner.free_cell=1", "refiner.trained_sigmas_ang=[0.1,0.4]", "refiner.hidden_dim=16"]
    tuned = small_run(root, tmp_path / "tuned", f"init_from={tmp_path / 'base'}", *noise)
    with pytest.raises(ValueError, match=r"test_structures=3 are drawn from noise, .* greatest width, 1 Å"):
        train(tuned)
    assert train([*tuned, "test_structures=null"]) == "finished"
    model, info = load_refiner(tmp_path / "tuned")
    assert model.config == replace(base[0].config, free_cell=1.0, trained_sigmas_ang=(0.1, 0.4))
    assert info["provenance"]["init_from"] == base[1]["model_hash"]


def test_an_unknown_key_of_the_tutorial_is_told(root: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="variant"):
        train(small_run(root, tmp_path / "run", "data.tutorial.variant=3"))
