from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crystallm.config import to_dict
from crystallm.refine.checkpoint import export_refiner, is_refiner, load_refiner
from crystallm.refine.diffusion import CrystalDiffusionModel


@pytest.fixture
def model() -> CrystalDiffusionModel:
    torch.manual_seed(0)
    return CrystalDiffusionModel(hidden_dim=8, num_layers=1, timesteps=4, cutoff_ang=4.0)


def write(folder: Path, model: CrystalDiffusionModel) -> Path:
    folder.mkdir(parents=True)
    save_file(dict(model.named_parameters()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"refiner": to_dict(model.config), "data": {}}))
    return folder


def test_a_model_comes_back_and_is_exported_in_half_the_bytes(model: CrystalDiffusionModel, tmp_path: Path):
    write(tmp_path / "run" / "best", model)
    loaded, info = load_refiner(tmp_path / "run")
    assert loaded.config == model.config and len(info["model_hash"]) == 64 and not loaded.training
    for name, parameter in model.named_parameters():
        assert torch.equal(dict(loaded.named_parameters())[name], parameter)
    small = export_refiner(tmp_path / "run", tmp_path / "small")
    again, _ = load_refiner(small)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(dict(again.named_parameters())[name], parameter, rtol=1e-3, atol=1e-6)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (small, tmp_path / "run/best")]
    assert sizes[0] < 0.65 * sizes[1] and is_refiner(small)


def test_an_export_writes_over_no_other_file(model: CrystalDiffusionModel, tmp_path: Path):
    run, mine = write(tmp_path / "run/best", model), tmp_path / "mine"
    mine.mkdir()
    for name in ("model.safetensors", "config.json"):
        (mine / name).write_text("{}")
        with pytest.raises(FileExistsError, match="mine holds more than files of an exported model"):
            export_refiner(run, mine)
        assert (mine / name).read_text() == "{}"
    with pytest.raises(ValueError, match="best is an input"):
        export_refiner(tmp_path / "run", run)
    small = export_refiner(run, tmp_path / "small")
    (small / "README.md").write_text("mine")
    export_refiner(run, small)
    assert (small / "README.md").read_text() == "mine"


def test_what_is_no_refiner_is_refused(model: CrystalDiffusionModel, tmp_path: Path):
    folder = write(tmp_path / "one", model)
    (folder / "config.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(ValueError, match="not a diffusion model"):
        load_refiner(folder)
    assert not is_refiner(folder)
    other = write(tmp_path / "two", CrystalDiffusionModel(hidden_dim=8, num_layers=2))
    (other / "config.json").write_text(json.dumps({"refiner": to_dict(model.config)}))
    with pytest.raises(ValueError, match=r"layers\.1\..* is unknown"):
        load_refiner(other)
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        load_refiner(tmp_path / "nothing")
