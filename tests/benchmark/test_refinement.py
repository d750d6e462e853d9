"""The comparison of samples as drawn and refined, with refiners whose effect is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.benchmark.csp import CSPConfig, benchmark_csp
from crystallm.benchmark.refinement import (
    RefinementConfig,
    bootstrap_ratio,
    compare_distances,
    compare_refined,
    refinement_table,
)
from crystallm.canonical import canonicalize
from crystallm.config import to_dict
from crystallm.records import read_records
from crystallm.refine.checkpoint import load_refiner
from crystallm.refine.diffusion import CrystalDiffusionModel
from crystallm.refine.records import RefineConfig, refine_records

NUM = 3


@pytest.fixture(scope="module")
def drawn(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("drawn") / "run"
    return out, benchmark_csp(CSPConfig(str(table), str(out), num=NUM, select=(), workers=0, device="cpu", split="val"))


def saved(folder: Path, answer: float) -> str:
    """A refiner that always sees the same displacement along its vectors, none for 0."""
    torch.manual_seed(0)
    model = CrystalDiffusionModel(hidden_dim=8, num_layers=1, timesteps=4)
    torch.nn.init.zeros_(model.denoiser.displace.weight)
    torch.nn.init.constant_(model.denoiser.displace.bias, answer)
    folder.mkdir()
    save_file(dict(model.named_parameters()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"refiner": to_dict(model.config)}))
    return str(folder)


def test_a_refiner_that_moves_nothing_changes_nothing(drawn: tuple[Path, dict[str, Any]], tmp_path: Path):
    run, of_run = drawn
    still = RefineConfig(free_cell=False)  # the part that strains cells is not idle
    config = RefinementConfig(str(run), model=saved(tmp_path / "idle", 0.0), refine=still, device="cpu")
    results = compare_refined(config)
    for name in ("n=1", f"n={NUM}"):
        old, new = results["scores"][name]["match_rate"]
        assert old == new == pytest.approx(of_run["scores"]["unfiltered"][name]["match_rate"])
        old, new = results["scores"][name]["rmse_both"]
        assert old == pytest.approx(of_run["scores"]["unfiltered"][name]["rmse"])
        assert new == pytest.approx(old)
    assert results["valid"][0] == results["valid"][1] == pytest.approx(of_run["samples"]["valid_by_default_rules"])
    assert results["kept_group"] == 1 and results["n_refined"] == 7 * NUM  # of eight rows one is no CIF


def test_what_a_refiner_leaves_alone_is_the_same_crystal_described_anew(drawn: tuple[Path, Any], tmp_path: Path):
    model, _ = load_refiner(saved(tmp_path / "idle", 0.0))
    before = [record for record in read_records(*(drawn[0] / "samples").glob("*.parquet")) if record.text]
    after = list(refine_records(before, model, RefineConfig(free_cell=False)))
    anew = [canonicalize(AsymmetricUnit.from_text(record.text).to_crystal()).to_text() for record in before]
    assert len(before) == 7 * NUM and [record.text for record in after] == anew


def test_valid_records_stay_valid_whatever_a_refiner_does(drawn: tuple[Path, dict[str, Any]], tmp_path: Path):
    wild = RefineConfig(0.6, 2, free_cell=True)
    config = RefinementConfig(str(drawn[0]), model=saved(tmp_path / "wild", 3.0), num=1, refine=wild, device="cpu")
    results = compare_refined(config)
    assert results["valid"][1] >= results["valid"][0] and results["n_targets"] == 8
    text = refinement_table(results)
    assert "| match rate %, n=1 |" in text and "of these kept as drawn" in text


def test_figures_by_hand():
    nan = np.nan
    before = np.array([[0.2, 0.1], [nan, 0.3], [nan, nan], [0.4, nan]])
    after = np.array([[0.1, 0.2], [nan, nan], [0.5, nan], [0.2, nan]])
    first, best = compare_distances(before[:, :1], after[:, :1]), compare_distances(before, after)
    assert first["match_rate"] == [0.5, 0.75] and first["n_matched_both"] == 2
    assert first["rmse"] == pytest.approx([0.3, 0.8 / 3]) and first["rmse_both"] == pytest.approx([0.3, 0.15])
    assert first["rmse_ratio"] == pytest.approx(0.5)
    assert best["match_rate"] == [0.75, 0.75] and best["rmse_both"] == pytest.approx([0.25, 0.15])


def test_interval_of_a_ratio():
    rng = np.random.default_rng(0)
    below = rng.uniform(1, 2, 400)
    low, high = bootstrap_ratio(0.7 * below, below)
    assert low == pytest.approx(0.7) and high == pytest.approx(0.7)
    low, high = bootstrap_ratio(rng.uniform(1, 2, 400), below)
    assert low < 1 < high and high - low < 0.15
