"""Reading diffusion models back from checkpoint folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from crystallm.config import from_dict
from crystallm.hub import resolve_checkpoint
from crystallm.refine.compositions import TrainingCells
from crystallm.refine.diffusion import CrystalDiffusionModel, DiffusionConfig


@torch.no_grad()
def load_refiner(path: str | Path, device: torch.device | str = "cpu") -> tuple[CrystalDiffusionModel, dict[str, Any]]:
    """(model in evaluation mode, info) from a checkpoint folder, or from a run's folder: its best.

    The moving average where there is one. ValueError for a checkpoint of another kind.
    """
    folder = resolve_checkpoint(path)
    config_file = folder / "config.json" if folder.is_dir() else folder
    info = json.loads(config_file.read_text(encoding="utf-8")) if folder.is_dir() else {}
    if "refiner" not in info:
        raise ValueError(
            f"{folder}: not a diffusion model (its config.json has no refiner); wanted a refiner's checkpoint"
        )
    model = CrystalDiffusionModel(from_dict(DiffusionConfig, info["refiner"], where=f"{config_file}: "))
    file = next(f for f in (folder / "ema.safetensors", folder / "model.safetensors") if f.is_file())
    tensors, parameters = load_file(file), dict(model.named_parameters())
    if odd := sorted(set(parameters) ^ set(tensors)):
        raise ValueError(f"{file}: {odd[0]} is {'missing' if odd[0] in parameters else 'unknown'} ({len(odd)} such)")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
    if "training_cells" in info:
        model.training_cells = TrainingCells.from_text(info["training_cells"])
    info |= {"path": str(folder), "model_hash": hashlib.sha256(file.read_bytes()).hexdigest()}
    return model.to(device).eval(), info


def is_refiner(path: str | Path) -> bool:
    """Whether a checkpoint is a diffusion model's. FileNotFoundError where there is none."""
    config = resolve_checkpoint(path) / "config.json"
    return config.is_file() and "refiner" in json.loads(config.read_text(encoding="utf-8"))


def export_refiner(source: str | Path, target: str | Path) -> Path:
    """Write the weights alone, in 16 bits, with their config.json; files of other names in `target` stay."""
    model, info = load_refiner(source)
    tensors = {name: p.detach().half().contiguous() for name, p in model.named_parameters()}
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError(f"{source}: its weights do not fit 16 bits")
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    kept = {key: value for key, value in info.items() if key not in ("path", "model_hash")}
    (folder / "config.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return folder
