"""Explanations of files: which pictures and rows there are, and what bad input gets."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crystallm.properties.checkpoint import PredictorConfig, TextConfig, build_predictor, predictor_info
from crystallm.properties.predictor import HeadConfig, Target
from crystallm.properties.structure import StructureConfig
from crystallm.report.explanation_pictures import target_label
from crystallm.report.explanations import explain_paths, folder_name


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained predictor of cross-attention"""
    torch.manual_seed(0)
    structure = StructureConfig(width=16, n_layer=1, n_head=2, cutoff_ang=4.0, max_atoms=6)
    config = PredictorConfig(structure, TextConfig(width=16, n_layer=1, n_head=2), HeadConfig("cross_attention", 16))
    targets = [Target("formation_energy_ev_per_atom", -1.0, 1.0), Target("band_gap_ev")]
    folder = tmp_path_factory.mktemp("model")
    predictor = build_predictor(config, targets)
    save_file({name: p.detach().contiguous() for name, p in predictor.named_parameters()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(predictor_info(config, targets)))
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_pictures_tables_and_a_summary(
    model: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cifs = tmp_path / "cifs"
    cifs.mkdir()
    for name, source in (("a", "rutile"), ("c", "quartz")):
        (cifs / f"{name}.cif").write_text((root / f"tests/cifs/{source}.cif").read_text())
    (cifs / "b.cif").write_text("data_nothing\n")
    assert explain_paths([cifs], tmp_path / "why", str(model), "formation_energy") == (1, 3)
    pictures = {path.name for path in (tmp_path / "why/a").iterdir()}
    assert pictures == {f"{n}.png" for n in ("modalities", "sentences", "sites", "crystal", "attention", "words")}
    rows = rows_of(tmp_path / "why/explanations.csv")
    value, change = "value_formation_energy_ev_per_atom", "change_formation_energy_ev_per_atom"
    assert list(rows[0]) == ["id", "part", "name", "text", value, change]
    rejected = {row["id"]: row["text"] for row in rows if row["part"] == "rejected"}
    assert [row["name"] for row in rows if row["part"] == "rejected"] == ["no_cell", "too_large"]
    assert set(rejected) == {"b", "c"} and "_cell_length_a" in rejected["b"]
    assert "9 atoms in the cell, wanted 1 to 6" in rejected["c"]
    [prediction] = [row for row in rows if row["part"] == "prediction"]
    changed = [row for row in rows if row["part"] in ("sentence", "scope", "site_removed", "atom_silenced")]
    assert len(changed) == 10 + 2 + 2 + 6
    for row in changed:
        assert float(row[value]) - float(row[change]) == pytest.approx(float(prediction[value]), abs=1e-4)
    attention = rows_of(tmp_path / "why/attention.csv")
    of_titanium = [float(row["site_to_word_share"]) for row in attention if row["site"] == "Ti"]
    assert sum(of_titanium) == pytest.approx(1, abs=1e-4)
    printed = capsys.readouterr().out
    assert (
        "a TiO2: formation energy (eV/atom)" in printed and "b: not explained: no_cell: block 'nothing': no" in printed
    )
    assert "1 of 3 explained" in printed


def test_bad_arguments_are_named(model: Path, root: Path, tmp_path: Path) -> None:
    cif = root / "tests/cifs/rutile.cif"
    with pytest.raises(ValueError, match=r"no property 'hardness'; this predictor knows formation_energy_ev_per_atom"):
        explain_paths([cif], tmp_path / "why", str(model), "hardness")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.cif does not exist"):
        explain_paths([tmp_path / "nowhere.cif"], tmp_path / "why", str(model))
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        explain_paths([cif], tmp_path / "why", str(model), limit=0)
    assert not (tmp_path / "why").exists()


def test_no_picture_of_an_earlier_run_stays(model: Path, root: Path, tmp_path: Path) -> None:
    rutile, titanate, why = root / "tests/cifs/rutile.cif", root / "tests/cifs/SrTiO3.cif", tmp_path / "why"
    explain_paths([rutile], why, str(model))
    with pytest.raises(FileExistsError, match=r"why holds files of an earlier run \(8\); --overwrite replaces them"):
        explain_paths([titanate], why, "no model is loaded")
    explain_paths([titanate], why, str(model), overwrite=True)
    assert {path.name for path in why.iterdir()} == {"SrTiO3", "attention.csv", "explanations.csv"}
    with pytest.raises(ValueError, match="why is an input"):
        explain_paths([why], why, str(model), overwrite=True)
    (why / "SrTiO3/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"why holds more than files of an earlier run \(SrTiO3/notes\.txt"):
        explain_paths([titanate], why, str(model), overwrite=True)


def test_folders_are_distinct_and_stay_inside() -> None:
    taken: set[str] = set()
    names = [folder_name(name, taken) for name in ("mp-1", "MP-1", "mp-1", "../x/y", "..", "a" * 500)]
    assert names[:3] == ["mp-1", "MP-1-2", "mp-1-3"]
    assert not any("/" in name or name.startswith(".") for name in names) and max(map(len, names)) < 130


def test_units_stand_in_brackets() -> None:
    assert target_label("formation_energy_ev_per_atom") == "formation energy (eV/atom)"
    assert target_label("share_seen") == "share seen"
