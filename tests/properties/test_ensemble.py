"""Predictors averaged: what an ensemble answers, how sure it is, and which predictors it takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from crystallm.cif_write import write_cif
from crystallm.config import load_config
from crystallm.crystal import Crystal
from crystallm.properties.checkpoint import export_predictor
from crystallm.properties.ensemble import Ensemble, mixture
from crystallm.properties.prediction import Predictor
from crystallm.properties.predictor import Prediction
from crystallm.records import CIFRecord
from crystallm.report.explanations import explain_paths
from crystallm.training.ensemble import combine_predictors
from crystallm.training.predictor import PredictorRunConfig, train_predictor

HEAT = "predicted_heat_ev_per_atom"


def salts(n: int) -> list[CIFRecord]:
    """Rock salts; their heat is their edge."""
    edges = np.random.default_rng(0).uniform(4.5, 7.0, n)
    cells = [
        Crystal.from_parameters((a / 2**0.5,) * 3 + (60.0,) * 3, [[0] * 3, [0.5] * 3], ["Na", "Cl"]) for a in edges
    ]
    rows = zip(cells, edges.tolist(), strict=True)
    return [CIFRecord(f"salt-{k}", write_cif(c), scores={"heat_ev_per_atom": a}) for k, (c, a) in enumerate(rows)]


def train(folder: Path, name: str, *arguments: str) -> Path:
    table = folder / "salts.parquet"
    if not table.is_file():
        made = salts(40)
        columns = {"material_id": [one.id for one in made], "cif": [one.cif for one in made]}
        pq.write_table(pa.table(columns | {"heat": [one.scores["heat_ev_per_atom"] for one in made]}), table)
    given = [f"data.path=[{table}]", f"data.cache={folder / 'cache'}", "data.targets.heat=heat_ev_per_atom"]
    given += ["data.workers=0", "data.loader.batch_samples=16", "predictor.structure.width=16", "predictor.text=none"]
    given += ["predictor.structure.n_layer=1", "predictor.structure.n_head=2", "predictor.head.width=16"]
    given += ["train.max_steps=60", "train.warmup_steps=10", "train.learning_rate=5e-3", "train.threads=1"]
    given += ["train.dtype=float32", "train.device=cpu", f"out={folder / name}", *arguments]
    assert train_predictor(load_config(PredictorRunConfig, given)) == "finished"
    return folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("ensemble")
    return [train(folder, f"run{seed}", f"train.seed={seed}") for seed in range(2)]


@pytest.fixture(scope="module")
def both(runs: list[Path]) -> Path:
    return combine_predictors(runs, runs[0].parent / "both")


def test_a_mixture_has_the_variance_of_its_parts() -> None:
    """Against a hundred thousand numbers drawn from the two Laplace densities"""
    means, widths = torch.tensor([[0.0], [3.0]]), torch.tensor([[0.5], [1.0]])
    found = mixture([Prediction(m[None], b.log()[None]) for m, b in zip(means, widths, strict=True)])
    drawn = torch.from_numpy(np.random.default_rng(0).laplace(means, widths, (2, 100_000)))
    assert found.mean.item() == pytest.approx(1.5)
    assert 2 * found.log_width.exp().item() ** 2 == pytest.approx(drawn.var().item(), rel=0.02)


def test_a_mixture_of_one_is_that_one() -> None:
    one = Prediction(torch.randn(3, 2), torch.randn(3, 2))
    for prediction in (mixture([one]), mixture([one, one, one])):
        torch.testing.assert_close(prediction, one)
    with pytest.raises(ValueError, match="at least one predictor"):
        Ensemble([])


def test_an_ensemble_answers_with_the_mean_and_is_calibrated(runs: list[Path], both: Path) -> None:
    made = salts(40)
    first, second, mean = ([r.scores[HEAT] for r in Predictor.load(p).score(made)] for p in (*runs, both))
    assert np.abs(np.subtract(first, second)).max() > 1e-3  # or there were nothing to average
    np.testing.assert_allclose(mean, np.mean([first, second], axis=0), atol=5e-3)  # weights have 16 bits
    predictor = Predictor.load(both)
    assert predictor.model.targets[0].error_factors.keys() == {"structure"}
    assert predictor.info["training"]["step"] == 120 and [m["seed"] for m in predictor.info["members"]] == [0, 1]


def test_an_ensemble_is_exported_as_any_predictor(both: Path, tmp_path: Path) -> None:
    made = salts(5)
    copied = export_predictor(both, tmp_path / "copy")
    assert [r.scores for r in Predictor.load(copied).score(made)] == [
        r.scores for r in Predictor.load(both).score(made)
    ]


def test_what_cannot_be_averaged_is_named(runs: list[Path], both: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two predictors or more, got 1"):
        combine_predictors(runs[:1], tmp_path / "out")
    with pytest.raises(ValueError, match="the same predictor twice"):
        combine_predictors([runs[0], runs[0]], tmp_path / "out")
    with pytest.raises(ValueError, match="an ensemble of 2 predictors; an ensemble wants one of them"):
        combine_predictors([runs[0], both], tmp_path / "out")
    wider = train(runs[0].parent, "wider", "predictor.structure.width=32", "train.max_steps=2")
    with pytest.raises(
        ValueError, match=r"wider is of another kind than .*run0: predictor\.structure\.width is 32, there 16"
    ):
        combine_predictors([runs[0], wider], tmp_path / "out")
    fewer = train(runs[0].parent, "fewer", "data.max_train=10", "train.max_steps=2", "train.seed=2")
    with pytest.raises(ValueError, match=r"targets\.0\.mean is"):
        combine_predictors([runs[0], fewer], tmp_path / "out")
    shutil.copy(both / "config.json", tmp_path / "notes.txt")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        combine_predictors(runs, tmp_path)
    assert not (tmp_path / "out").exists()


def test_tables_that_moved_are_named_anew(runs: list[Path], both: Path, tmp_path: Path) -> None:
    table = shutil.move(runs[0].parent / "salts.parquet", tmp_path / "moved.parquet")
    shutil.rmtree(runs[0].parent / "cache")
    try:
        again = combine_predictors(runs, tmp_path / "again", path=[str(table)])
        with pytest.raises(FileNotFoundError, match=r"salts\.parquet"):
            combine_predictors(runs, tmp_path / "third")
    finally:
        shutil.move(table, runs[0].parent / "salts.parquet")
    assert Predictor.load(again).info["model_hash"] == Predictor.load(both).info["model_hash"]


def test_what_looks_into_one_network_refuses_an_ensemble(both: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an ensemble of 2 predictors; an explanation wants one of them"):
        explain_paths([tmp_path], tmp_path / "why", model=str(both))
    with pytest.raises(ValueError, match="an ensemble of 2 predictors; training wants one of them"):
        train(both.parent, "on", f"init_from={both}")
