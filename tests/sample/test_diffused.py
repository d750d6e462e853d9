from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch

from crystallm.crystal import Crystal
from crystallm.metrics.evaluate import EvaluateConfig, evaluate
from crystallm.records import read_records
from crystallm.refine.diffusion import CrystalDiffusionModel
from crystallm.sample.diffused import (
    DiffuseConfig,
    Diffused,
    batch_table,
    diffuse,
    read_species,
    read_training_cells,
    run,
    write_batch,
)
from crystallm.sample.refined import load
from crystallm.train.synthetic import write_shards
from tokenizer import CIFTokenizer

ALUMINIUM = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
DAY = date(2026, 1, 2)


class Knowing(CrystalDiffusionModel):
    """Draws FCC aluminium, and every third time with two atoms 0.42 Å apart."""

    def __init__(self) -> None:
        super().__init__(hidden_dim=8, num_layers=1, timesteps=4)
        self.n_drawn = 0

    def sample(self, batch_size, lattice, species, **settings):  # type: ignore[no-untyped-def,override]
        drawn = []
        for _ in range(batch_size):
            self.n_drawn += 1
            frac = ALUMINIUM.copy()
            if self.n_drawn % 3 == 0:
                frac[1] = [0.42 / 4.05, 0, 0]
            drawn.append(Crystal(lattice, frac, np.array([13] * 4)))
        return drawn


@pytest.fixture(scope="module")
def ignorant() -> CrystalDiffusionModel:
    torch.manual_seed(0)
    return CrystalDiffusionModel(hidden_dim=8, num_layers=1, timesteps=4)


def aluminium(num: int = 3, **settings) -> list[Diffused]:
    config = DiffuseConfig(("Al",) * 4, (4.05,), num, seed=7, candidates=0, **settings)
    return list(diffuse(Knowing(), config, {"model_hash": "abc"}))


def test_verdicts_say_what_they_mean():
    good, _, bad = aluminium()
    assert good.valid and good.verdict == "PASSED: minimum distance 2.86 Å"  # 4.05 / √2
    assert not bad.valid and bad.verdict == "FAILED: minimum distance 0.42 Å, atoms overlap"
    assert good.coordination.tolist() == [12] * 4 and bad.coordination[0] == 1


def test_statistics_worked_by_hand():
    lines = dict(line.split(None, 1) for line in batch_table(aluminium()).splitlines())
    assert lines["density"].startswith("2.70 ± 0.00") and lines["volume"].startswith("66.43 ± 0.00")
    shortest = np.array([2.8638, 2.8638, 0.42])
    assert f"{shortest.mean():.2f} ± {shortest.std(ddof=1):.2f}" in lines["minimum"]
    assert lines["valid"] == "66.7 %  (2 of 3)"


def test_files_hold_what_was_drawn(tmp_path: Path):
    batch = aluminium()
    path = write_batch(batch, tmp_path / "made", DAY)
    names = [f"generated_structure_20260102_000{k}" for k in (1, 2, 3)]
    assert sorted(f.name for f in (tmp_path / "made").iterdir()) == sorted(
        f"{name}.{kind}" for name in names for kind in ("cif", "npz")
    )
    with np.load(tmp_path / "made" / f"{names[2]}.npz", allow_pickle=False) as arrays:
        np.testing.assert_allclose(arrays["positions"] @ arrays["lattice"], batch[2].crystal.cart_coords)
        assert arrays["species"].tolist() == ["Al"] * 4 and arrays["n_atoms"] == 4 and not arrays["valid"]
        assert float(arrays["min_distance"]) == pytest.approx(0.42) and arrays["seed"] == 7
        assert float(arrays["density"]) == pytest.approx(2.698, abs=0.002)
        assert float(arrays["volume"]) == pytest.approx(4.05**3)
        assert arrays["coordination"].shape == (4,)
        assert json.loads(str(arrays["settings"]))["cell"] == [4.05]
    records = list(read_records(path))
    assert [one.id for one in records] == names
    assert [one.rejected_by for one in records] == [None, None, "distance"]
    about = records[1].provenance
    assert (about["model_hash"], about["seed"], about["index"]) == ("abc", 7, 1)
    assert about["settings"]["num_steps"] == 4
    assert records[1].structure.get_space_group_info()[1] == 225
    (single,) = read_records(tmp_path / "made" / f"{names[1]}.cif")
    assert single.id == names[1] and single.provenance == about
    assert [one.id for one in read_records(tmp_path / "made")] == names
    again = write_batch(aluminium(1), tmp_path / "made", DAY)
    assert again.name == "made_20260102_0004-0004.parquet" and path.is_file()
    (tmp_path / "made").rename(tmp_path / "elsewhere")
    assert write_batch(aluminium(1), tmp_path / "made", DAY).name == "made_20260102_0005-0005.parquet"


def test_evaluation_takes_them(tmp_path: Path):
    path = write_batch(aluminium(), tmp_path / "made", DAY)
    for source in (path, tmp_path / "made"):
        found = evaluate(EvaluateConfig((str(source),), compare=False, workers=0)).to_dict()
        assert (found["n_read"], found["n_valid"]) == (3, 2)


def test_the_same_seed_draws_the_same_and_none_draws_anew(ignorant: CrystalDiffusionModel):
    def draw(**settings: object) -> list[Diffused]:
        return list(diffuse(ignorant, DiffuseConfig(("Na", "Cl"), num=2, **settings)))  # type: ignore[arg-type]

    first, second, other, fresh = draw(seed=3), draw(seed=3), draw(), draw()
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.crystal.frac_coords, b.crystal.frac_coords)
        assert np.array_equal(a.crystal.lattice, b.crystal.lattice)
    assert other[0].seed != fresh[0].seed
    assert not np.allclose(other[0].crystal.frac_coords, fresh[0].crystal.frac_coords)
    repeated = draw(seed=other[0].seed)  # as it was stored
    assert np.array_equal(repeated[1].crystal.frac_coords, other[1].crystal.frac_coords)


def test_without_species_they_are_those_of_shards(ignorant: CrystalDiffusionModel, tmp_path: Path):
    cells = read_training_cells(write_shards(tmp_path / "shards", CIFTokenizer(), n_train=40, n_val=5))
    assert 0 < len(cells.n_atoms) <= 40
    model = CrystalDiffusionModel(ignorant.config)
    with pytest.raises(ValueError, match="keeps no training compositions"):
        list(diffuse(model, DiffuseConfig(seed=0)))
    model.training_cells = cells
    one, two = (list(diffuse(model, DiffuseConfig(num=4, num_steps=2, seed=9))) for _ in range(2))
    known = {tuple(numbers) for numbers in cells.atomic_numbers}
    assert all(tuple(np.sort(r.crystal.atomic_numbers)) in known for r in one)
    assert [r.record.cif for r in one] == [r.record.cif for r in two]
    assert one[0].settings["species"] is None
    with pytest.raises(FileNotFoundError, match=r"no tokens_train\.npy here"):
        read_training_cells(tmp_path / "nothing")


def test_large_batches_are_cut_and_still_repeat(ignorant: CrystalDiffusionModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("crystallm.sample.diffused.ATOMS_AT_ONCE", 4)
    config = DiffuseConfig(("Na", "Cl"), (4.0, 4.0, 4.0, 90, 90, 120), num=5, seed=0)
    one, two = (list(diffuse(ignorant, config)) for _ in range(2))
    assert [r.record.provenance["index"] for r in one] == [0, 1, 2, 3, 4]
    assert len({r.crystal.frac_coords.tobytes() for r in one}) == 5
    assert all(np.array_equal(a.crystal.frac_coords, b.crystal.frac_coords) for a, b in zip(one, two, strict=True))
    assert one[0].crystal.cell[5] == pytest.approx(120)


def test_candidates_of_a_supercell_are_drawn_and_told(ignorant: CrystalDiffusionModel):
    config = DiffuseConfig(("Na", "Cl") * 4, (8.0,), num=3, num_steps=2, seed=0, candidates=2)
    one, two = (list(diffuse(ignorant, config)) for _ in range(2))
    assert all(r.settings["candidates"] == 2 and r.crystal.n_atoms == 8 for r in one)
    assert [r.record.cif for r in one] == [r.record.cif for r in two]
    left_out = replace(config, num=1, candidates=None)
    assert next(diffuse(ignorant, left_out)).settings["candidates"] == 8
    assert next(diffuse(ignorant, replace(left_out, cell=None))).settings["candidates"] == 0
    plain = list(diffuse(ignorant, replace(config, candidates=0)))
    assert all((a.crystal.frac_coords != b.crystal.frac_coords).any() for a, b in zip(one, plain, strict=True))


def test_corrector_steps_left_out_are_the_sampler_s_own(ignorant: CrystalDiffusionModel):
    config = DiffuseConfig(("Na", "Cl"), (4.0,), num_steps=2, sampler="predictor_corrector", seed=0, candidates=0)
    left_out, one, more = (next(diffuse(ignorant, replace(config, corrector_steps=n))) for n in (None, 1, 3))
    assert left_out.crystal.frac_coords.tobytes() == one.crystal.frac_coords.tobytes()
    assert left_out.crystal.frac_coords.tobytes() != more.crystal.frac_coords.tobytes()


@pytest.mark.parametrize("cell", [None, (8.0,)])
def test_no_two_batches_of_candidates_share_a_seed(ignorant: CrystalDiffusionModel, monkeypatch, cell):
    monkeypatch.setattr("crystallm.sample.diffused.ATOMS_AT_ONCE", 4)
    monkeypatch.setattr("crystallm.refine.batch.ATOMS_AT_ONCE", 4)
    seeds, sample = [], ignorant.sample

    def noted(*args, seed: int, **rest):
        seeds.append(seed)
        return sample(*args, seed=seed, **rest)

    monkeypatch.setattr(ignorant, "sample", noted)
    drawn = list(diffuse(ignorant, DiffuseConfig(("Na", "Cl"), cell, num=6, num_steps=2, seed=0, candidates=3)))
    assert len(set(seeds)) == len(seeds) > 3 and len({one.crystal.frac_coords.tobytes() for one in drawn}) == 6


def test_nothing_is_written_when_nothing_is_asked_for(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = run(Knowing(), {}, DiffuseConfig(("Al",) * 4, (4.05,), 3, seed=1, candidates=0))
    assert not list(tmp_path.iterdir())
    assert text.endswith("valid                   66.7 %  (2 of 3)\nseed 1; nothing written")
    assert capsys.readouterr().out.splitlines()[2] == "   3  Al  FAILED: minimum distance 0.42 Å, atoms overlap"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"species": ()}, "species names each atom"),
        ({"species": ("Xx",)}, "got 'Xx'"),
        ({"cell": (4.0, 4.0)}, "got 2 numbers"),
        ({"cell": (4.0, 4.0, 4.0, 90, 90, 200)}, "angles must lie between 0 and 180"),
        ({"cell": (0.0,)}, "lengths must be positive"),
        ({"cell": (float("nan"),)}, "lengths must be positive"),
        ({"cell": (4, 4, 4, 150, 150, 150)}, "no cell has the angles|its volume is 0"),
        ({"num": 0}, "num must be at least 1"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"corrector_steps": 0}, "corrector_steps must be at least 1"),
        (
            {"corrector_steps": 5},
            "goes with sampler=predictor_corrector, got corrector_steps=5 and sampler=ancestral",
        ),
        ({"sampler": "euler"}, "no sampler 'euler'"),
        ({"seed": -1}, "seed must be"),
        ({"candidates": -1, "cell": (4.0,)}, "candidates must be at least 0, got -1"),
        ({"candidates": 2, "species": None}, "candidates=2 are compared at the same atoms: species must be given"),
    ],
)
def test_bad_requests(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DiffuseConfig(**({"species": ("Al",)} | arguments))


def test_species_are_read():
    assert read_species("Na Cl", None) == ("Na", "Cl") and read_species("Na,Cl", None) == ("Na", "Cl")
    assert read_species(None, "TiO2", 2) == ("Ti", "Ti", "O", "O", "O", "O")
    for given, message in (
        ((None, None), "both or none"),
        (("Na", "Na"), "both or none"),
        ((None, "NaQ"), "position 3"),
        ((None, "Na", 0), "formula_units"),
        (("Na Cl", None, 4), "formula_units goes with a formula, got formula_units=4 and none"),
        ((None, None, 4), "formula_units goes with a formula"),
    ):
        with pytest.raises(ValueError, match=message):
            read_species(*given)


def test_two_runs_into_one_folder_keep_all_they_draw(tmp_path: Path):
    def while_another_writes():
        for one in aluminium(2):
            write_batch(aluminium(1), tmp_path / "made", DAY)
            yield one

    path = write_batch(while_another_writes(), tmp_path / "made", DAY)
    assert path.name == "made_20260102_0002-0004.parquet" and len(list(tmp_path.glob("*.parquet"))) == 3
    written = {record.id for file in tmp_path.glob("*.parquet") for record in read_records(file)}
    assert written == {f"generated_structure_20260102_000{k}" for k in (1, 2, 3, 4)}
    for ending in ("npz", "cif"):
        assert {file.stem for file in (tmp_path / "made").glob(f"*.{ending}")} == written


def test_a_file_in_the_folders_place(tmp_path: Path):
    (tmp_path / "made").write_text("")
    with pytest.raises(ValueError, match="is a file; wanted a folder"):
        write_batch(aluminium(1), tmp_path / "made")


def test_the_script_trains_generates_and_tells_errors(root: Path, tmp_path: Path, capsys, monkeypatch):
    def script(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["diffuse.py", *arguments])
        runpy.run_path(str(root / "bin/diffuse.py"), run_name="__main__")
        return capsys.readouterr().out

    small = ["refiner.hidden_dim=8", "refiner.num_layers=1", "refiner.timesteps=5", "train.max_steps=2"]
    training = [str(root / "config/refiner_tutorial.yaml"), f"out={tmp_path}/run", *small, "data.tutorial.cells=[1]"]
    ask = ["--species", "Al Al", "--cell", "4", "4", "4", "90", "90", "60", "--num", "2", "--out", f"{tmp_path}/made"]
    with pytest.raises(SystemExit):
        script("--help")
    assert "(default: generated)" in " ".join(capsys.readouterr().out.split())
    assert "2 written to" in script("--train", *training, *ask, "--seed", "5")
    assert "seed 5; 2 written to" in script("--model", f"{tmp_path}/run", *ask, "--seed", "5")
    first, _, third, _ = read_records(tmp_path / "made")
    assert first.cif.partition("\ndata_")[2] == third.cif.partition("\ndata_")[2]
    assert first.provenance["model_hash"] == load(f"{tmp_path}/run", "cpu")[1]["model_hash"]
    free = ["--model", f"{tmp_path}/run", "--num", "3", "--seed", "2", "--no-save"]
    assert script(*free) == script(*free)
    for wrong, message in (
        (["--species", "Qq"], "got 'Qq'"),
        ([*free, "--species", "Na Cl", "--formula-units", "4"], "formula_units goes with a formula"),
        ([*free, "--formula-units", "4"], "formula_units goes with a formula"),
        ([*free, "--out", f"{tmp_path}/made"], "not allowed with argument --no-save"),
        ([*free, "--corrector-steps", "5"], "corrector_steps goes with sampler=predictor_corrector"),
        ([*free, "--species", "Na Cl", "--cell", "0.2"], "too small for 2 atoms: 0.004 Å³ an atom, wanted at least 2"),
        ([*free, "--cell", "1"], "a volume within a factor of 1.25 of 1.0"),
        (["--formula", "Al", "--cell", "-4"], "lengths must be positive"),
        (["--formula", "Al", "--model", str(tmp_path / "none")], "none"),
    ):
        with pytest.raises(SystemExit):
            script(*wrong)
        assert message in capsys.readouterr().err
