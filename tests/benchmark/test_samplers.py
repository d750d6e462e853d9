"""A diffusion model in the benchmark: the same rows, the same scores, told no more than the composition."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from crystallm.benchmark.csp import CSPConfig, benchmark_csp, make_sampler
from crystallm.benchmark.samplers import DiffusionSampler
from crystallm.config import to_dict
from crystallm.crystal import Crystal
from crystallm.records import read_records
from crystallm.refine.diffusion import CrystalDiffusionModel

NUM = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = CrystalDiffusionModel(hidden_dim=8, num_layers=1, timesteps=6)
    folder = tmp_path_factory.mktemp("model")
    save_file(dict(model.named_parameters()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"refiner": to_dict(model.config)}))
    return folder


def config_of(table: Path, out: Path, model: Path, **settings: Any) -> CSPConfig:
    values = {"num": NUM, "targets_at_once": 3, "workers": 0, "device": "cpu", "split": "val"} | settings
    return CSPConfig(str(table), str(out), model=str(model), **values)


def test_atoms_and_cells_from_noise_are_scored_as_texts_are(table: Path, checkpoint: Path, tmp_path: Path):
    results = benchmark_csp(config_of(table, tmp_path / "one", checkpoint, steps=2))
    assert set(results["scores"]["unfiltered"]) == {"n=1", f"n={NUM}"} and results["n_targets"] == 8
    assert list(results["lost"]) == ["4: broken"] and "nats_per_structure" not in results
    assert (results["settings"]["steps"], results["settings"]["select"]) == (2, [])
    records = [r for k in range(3) for r in read_records(tmp_path / "one" / f"samples/{k:04d}.parquet")]
    assert len(records) == 7 * NUM and len({record.cif for record in records}) == 7 * NUM
    wanted = {"nacl": "NaCl", "cscl": "CsCl", "zns": "ZnS", "mgo": "MgO", "inp": "InP", "tlbr": "TlBr"}
    for record in records:
        assert (
            record.structure.composition.formula.replace("1", "").replace(" ", "")
            == wanted[record.id[:-4].split("-")[0]]
        )
    for name, seed in (("two", 0), ("three", 1)):
        benchmark_csp(config_of(table, tmp_path / name, checkpoint, steps=2, seed=seed))
        drawn = [r for k in range(3) for r in read_records(tmp_path / name / f"samples/{k:04d}.parquet")]
        same = [one.cif == other.cif for one, other in zip(drawn, records, strict=True)]
        assert all(same) if seed == 0 else not any(same)


def test_what_is_right_matches(table: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def caesium_chlorides(self, batch_size, lattice, species, **settings):  # type: ignore[no-untyped-def]
        assert lattice is None
        return [Crystal(np.eye(3) * 4, np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), np.array(one)) for one in species]

    monkeypatch.setattr(CrystalDiffusionModel, "sample", caesium_chlorides)
    benchmark_csp(config_of(table, tmp_path / "run", checkpoint))
    found = pd.read_parquet(tmp_path / "run" / "targets.parquet").set_index("id")["n=1, unfiltered: matched"]
    assert found["cscl-1"] and found["tlbr"] and not found["zns"] and not found["broken"]


def test_the_model_is_told_sorted_species_alone(checkpoint: Path, table: Path, tmp_path: Path, monkeypatch):
    sampler = make_sampler(config_of(table, tmp_path, checkpoint))
    assert isinstance(sampler, DiffusionSampler) and sampler.default_select == ()
    rutile = Crystal(np.eye(3) * 4, np.random.default_rng(0).random((6, 3)), np.array([22, 8, 8, 8, 22, 8]))
    asked = []
    monkeypatch.setattr(
        CrystalDiffusionModel,
        "sample",
        lambda self, n, lattice, species, **_: asked.append((n, lattice, species)) or [rutile] * n,
    )
    sampler.draw({3: rutile}, seed=0)
    assert asked == [(NUM, None, [[8, 8, 8, 8, 22, 22]] * NUM)]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": 0.5}, r"temperature=0.5 is of language models; .* is none"),
        ({"constraints": "full"}, "constraints='full' is of language models"),
        ({"formula_only": True}, "formula_only=True is of language models"),
        ({"select": ("first", "likelihood")}, "select='likelihood' needs likelihoods"),
    ],
)
def test_settings_of_the_other_kind_are_refused(table: Path, checkpoint: Path, tmp_path: Path, settings, message):
    with pytest.raises(ValueError, match=message):
        benchmark_csp(config_of(table, tmp_path / "run", checkpoint, **settings))
    assert not (tmp_path / "run").exists()


def test_training_crystals_are_the_control(table: Path, tmp_path: Path):
    """Of the formula, as large as the row's cell may be; a run with them is scored as any other."""
    rock_salt, caesium_chloride = (
        "Na a 0.000 0.000 0.000\nCl b 0.500 0.500 0.500\n",
        "Cs a 0.000 0.000 0.000\nCl b 0.500 0.500 0.500\n",
    )
    texts = [
        text_of("NaCl", 1, "Fm-3m", 5.60, rock_salt),
        text_of("NaCl", 1, "Fm-3m", 5.70, rock_salt),
        text_of("CsCl", 1, "Pm-3m", 4.12, caesium_chloride),
        text_of("MgO", 1, "Fm-3m", 4.20, rock_salt.replace("Na", "Mg").replace("Cl", "O")),
    ]
    columns = {"id": ["a", "b", "c", "d"], "text": texts, "split": ["train", "train", "train", "val"]}
    columns |= {"reduced_formula": ["NaCl", "NaCl", "CsCl", "MgO"], "n_atoms": [2, 2, 2, 2]}
    pd.DataFrame(columns).to_parquet(tmp_path / "records.parquet")
    results = benchmark_csp(config_of(table, tmp_path / "run", tmp_path, num=8))
    found = pd.read_parquet(tmp_path / "run" / "targets.parquet").set_index("id")["n=1, unfiltered: matched"]
    assert found["nacl"] and found["cscl-1"] and not found["mgo"] and not found["zns"]
    assert "no training crystal of MgO with 2 atoms" in str(results["lost"]), "a row of another split is not one"
    drawn = [r for path in sorted((tmp_path / "run/samples").glob("*.parquet")) for r in read_records(path)]
    assert {r.provenance["id"] for r in drawn if r.id.startswith("nacl")} == {"a", "b"}
    sampler = make_sampler(config_of(table, tmp_path, tmp_path))
    eight = Crystal(np.eye(3) * 5.6, np.random.default_rng(0).random((8, 3)), np.array([11, 17] * 4))
    three = Crystal(np.eye(3) * 5.6, np.random.default_rng(0).random((3, 3)), np.array([55, 17, 17]))
    asked = sampler.draw({2: eight, 5: three}, seed=0)
    assert asked.asked == [2] and list(asked.refused) == [5] and len(asked.records) == NUM
    assert [r.text for r in sampler.draw({2: eight}, seed=0).records] == [r.text for r in asked.records]
    with pytest.raises(ValueError, match=r"temperature=0\.5 is of language models"):
        make_sampler(config_of(table, tmp_path, tmp_path, temperature=0.5))


def text_of(formula: str, units: int, group: str, length: float, sites: str) -> str:
    edges = "".join(f"_cell_length_{axis} {length:.2f}\n" for axis in "abc")
    angles = "".join(f"_cell_angle_{angle} 90.0\n" for angle in ("alpha", "beta", "gamma"))
    tags = "".join(f"_atom_site_{tag}\n" for tag in ("type_symbol", "Wyckoff_symbol", "fract_x", "fract_y", "fract_z"))
    head = f"data_{formula}\n_crystallm_primitive_formula_units {units}\n_symmetry_space_group_name_H-M {group}\n"
    return f"{head}{edges}{angles}loop_\n{tags}{sites}"


def test_a_language_model_has_no_steps(table: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="sampler and steps are of diffusion models; the bundled model is none"):
        benchmark_csp(CSPConfig(str(table), str(tmp_path), split="val", steps=5))


def test_the_command(root: Path, table: Path, checkpoint: Path, tmp_path: Path, capsys, monkeypatch):
    arguments = ["--dataset", str(table), "--split", "val", "--num", "1", "--steps", "1", "--workers", "0"]
    arguments += ["--out", f"{tmp_path}/run", "--model", str(checkpoint), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["benchmark_csp.py", *arguments])
    runpy.run_path(str(root / "bin/benchmark_csp.py"), run_name="__main__")
    assert "| n=1 | **" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["benchmark_csp.py", *arguments, "--top-k", "3"])
    with pytest.raises(SystemExit, match="top_k=3 is of language models"):
        runpy.run_path(str(root / "bin/benchmark_csp.py"), run_name="__main__")
