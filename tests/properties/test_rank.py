"""Predictions for files, and samples in the order of a predicted property."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from crystallm.cif_write import write_cif
from crystallm.config import to_dict
from crystallm.crystal import Crystal
from crystallm.properties.checkpoint import PredictorConfig, TextConfig, build_predictor, predictor_info
from crystallm.properties.prediction import Predictor
from crystallm.properties.predictor import HeadConfig, Target
from crystallm.properties.structure import StructureConfig
from crystallm.rank import predict_paths
from crystallm.records import CIFRecord, write_records
from crystallm.sample.ranking import Ranking
from crystallm.sample.report import table
from crystallm.sample.scorers import find_scorer
from crystallm.train.checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A predictor with random weights"""
    torch.manual_seed(0)
    config = PredictorConfig(StructureConfig(width=16, n_layer=1, n_head=2, cutoff_ang=4.0), None, HeadConfig(width=16))
    targets = [Target("formation_energy_ev_per_atom", -1.0, 0.7), Target("band_gap_ev", 1.0, 1.5)]
    model = build_predictor(config, targets)
    folder = tmp_path_factory.mktemp("predictor") / "run"
    write_checkpoint(folder, {"model": dict(model.named_parameters())}, predictor_info(config, targets))
    assert to_dict(targets[0])["error_factors"] == {}
    return str(folder)


def records() -> list[CIFRecord]:
    found = []
    for k, (symbol, a) in enumerate([("Na", 5.6), ("K", 6.3), ("Li", 5.1), ("Rb", 6.6)]):
        cell = (a / 2**0.5,) * 3 + (60.0,) * 3
        crystal = Crystal.from_parameters(cell, [[0, 0, 0], [0.5, 0.5, 0.5]], [symbol, "Cl"])
        found.append(
            CIFRecord(f"gen-{k}", write_cif(crystal), prompt="ab"[k % 2], scores={"log_likelihood_nats": -1.0})
        )
    return found


def test_samples_come_in_the_order_of_the_property(checkpoint: str) -> None:
    ranking = Ranking.find("formation_energy", checkpoint)
    given = [*records(), replace(records()[0], id="gone", rejected_by="bonds", prompt="a")]
    ordered = ranking.order(given)
    assert sorted(r.id for r in ordered) == sorted(r.id for r in given) and ordered[-1].id == "gone"
    by_prompt = {p: [r.scores[ranking.score] for r in ordered[:-1] if r.prompt == p] for p in "ab"}
    assert [r.prompt for r in ordered[:-1]] == ["a", "a", "b", "b"]
    assert all(values == sorted(values) for values in by_prompt.values())
    highest = Ranking.find("max:formation_energy", checkpoint).order(given)
    assert [r.id for r in highest[:2]] == [r.id for r in ordered[:2]][::-1]
    assert ordered[0].provenance["ranked_by"]["property"] == "formation_energy_ev_per_atom"
    assert not Ranking.find("band_gap", checkpoint).lowest_first
    text = table(ordered, ranking=ranking).splitlines()
    assert "formation energy" in text[0] and "eV/atom" in text[1] and " ± " in text[2]


def test_a_property_leads_a_search(checkpoint: str) -> None:
    scorer = find_scorer("formation_energy", checkpoint)
    scored, values = scorer.apply(records())
    assert not scorer.higher_is_better and scorer.selection == "min:predicted_formation_energy_ev_per_atom"
    assert values[0] == pytest.approx(-scored[0].scores["predicted_formation_energy_ev_per_atom"])
    with pytest.raises(
        ValueError, match="no scorer 'hardness'; there are likelihood, density, volume_per_atom, denoising_error"
    ):
        find_scorer("hardness", checkpoint)


def test_files_are_predicted_row_by_row(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cifs"
    folder.mkdir()
    for record in records():
        (folder / f"{record.id}.cif").write_text(record.cif)
    (folder / "broken.cif").write_text("data_x\n_cell_length_a 3\n")
    assert predict_paths([folder], checkpoint, tmp_path / "p.parquet", workers=0) == (4, 5)
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert [(row["id"], row["rejected_by"]) for row in rows if row["rejected_by"]] == [("broken", "no_cell")]
    good = [row for row in rows if not row["rejected_by"]]
    assert all(np.isfinite(row["formation_energy_ev_per_atom"]) and row["band_gap_ev"] >= 0 for row in good)
    assert all(row["formation_energy_ev_per_atom_error"] > 0 for row in good)
    printed = capsys.readouterr().out
    assert "4 of 5 predicted" in printed and "  1 no_cell: block 'x': no value for _cell_length_b" in printed
    assert "cif.py" not in printed and "CIFError" not in printed
    table = printed.splitlines()[:7]
    assert {line.rindex("±") for line in table[3:]} == {table[3].rindex("±")} and table[2].endswith("no_cell")
    predict_paths([folder], checkpoint, tmp_path / "p.csv", workers=0)
    header = (tmp_path / "p.csv").read_text().splitlines()[0]
    assert header.replace('"', "").startswith(
        "id,formation_energy_ev_per_atom,formation_energy_ev_per_atom_error,band_gap_ev"
    )
    with pytest.raises(ValueError, match=r"written as \.csv or \.parquet"):
        predict_paths([folder], checkpoint, tmp_path / "p.xlsx", workers=0)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        predict_paths([tmp_path / "nowhere"], checkpoint, workers=0)


def test_predictions_replace_no_table_unasked(checkpoint: str, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.csv", tmp_path / "new/p.csv"
    mine.write_text('cif\n"data_x"\n')
    predict_paths([mine], checkpoint, out, workers=0)
    with pytest.raises(FileExistsError, match=r"p\.csv exists; --overwrite replaces it"):
        predict_paths([mine], "no model is loaded", out)
    predict_paths([mine, mine], checkpoint, out, workers=0, overwrite=True)
    assert len(out.read_text().splitlines()) == 3
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"mine\.csv is an input"):
            predict_paths([mine], checkpoint, mine, overwrite=overwrite)
    assert mine.read_text() == 'cif\n"data_x"\n'


def test_one_odd_crystal_costs_no_other_its_prediction(checkpoint: str) -> None:
    flat = Crystal.from_parameters((0.02, 0.02, 0.02, 90, 90, 90), [[0, 0, 0]], ["Na"])
    given = [*records(), CIFRecord("flat", write_cif(flat), prompt="a")]
    scored = Predictor.load(checkpoint).score([given[0], given[-1], *given[1:-1]])
    assert [record.rejected_by for record in scored] == [None, "too_large", None, None, None]
    assert scored[1].reason.startswith("1 atoms in a cell whose opposite faces are 0.02, 0.02, 0.02 Å")
    alone = Predictor.load(checkpoint).score(given[:-1])
    key = "predicted_formation_energy_ev_per_atom"
    found = [record.scores[key] for record in scored if key in record.scores]
    np.testing.assert_allclose(found, [record.scores[key] for record in alone], rtol=1e-5)
    with pytest.raises(ValueError, match="no device 'cuda' here") if not torch.cuda.is_available() else nullcontext():
        Predictor.load(checkpoint, "cuda")


def test_what_checks_rejected_before_counts_as_predicted(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(tmp_path / "kept.parquet", [replace(records()[0], rejected_by="bonds", reason="short")])
    assert predict_paths([tmp_path / "kept.parquet"], checkpoint, workers=0) == (1, 1)
    assert "1 of 1 predicted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "floor"),
    [
        ("density_g_per_cm3", 0.0),
        ("jarvis_band_gap_ev", 0.0),
        ("delta_volume_ang3", None),
        ("log10_thermal_conductivity_w_per_mk", None),
        ("energy_ev_per_volume_ang3", None),
    ],
)
def test_only_what_cannot_be_negative_is_cut_off_at_zero(tmp_path: Path, target: str, floor: float | None) -> None:
    torch.manual_seed(0)
    config = PredictorConfig(StructureConfig(width=16, n_layer=1, n_head=2, cutoff_ang=4.0), None, HeadConfig(width=16))
    predictor = Predictor(build_predictor(config, [Target(target, mean=-5.0, scale=0.1)]))
    [scored] = predictor.score(records()[:1])
    value = scored.scores[f"predicted_{target}"]
    assert value == floor if floor is not None else -6 < value < -4


def test_weights_of_another_vocabulary_of_words_are_refused(tmp_path: Path) -> None:
    config = PredictorConfig(None, TextConfig(width=16, n_layer=1, n_head=2), HeadConfig(width=16))
    targets = [Target("band_gap_ev")]
    tensors = {"model": dict(build_predictor(config, targets).named_parameters())}
    write_checkpoint(tmp_path / "words", tensors, predictor_info(config, targets) | {"words": 7})
    with pytest.raises(ValueError, match="another vocabulary of words"):
        Predictor.load(tmp_path / "words")
