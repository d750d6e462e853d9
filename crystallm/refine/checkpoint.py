"""Reading diffusion models back from checkpoint folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from crystallm.config import from_dict
from crystallm.periodic.weights import export_weights, has_key, load_weights, read_info
from crystallm.refine.compositions import TrainingCells
from crystallm.refine.diffusion import CrystalDiffusionModel, DiffusionConfig


def load_refiner(path: str | Path, device: torch.device | str = "cpu") -> tuple[CrystalDiffusionModel, dict[str, Any]]:
    """(model in evaluation mode, info) from a checkpoint folder, or from a run's folder: its best.

    The moving average where there is one. ValueError for a checkpoint of another kind.
    """
    folder, info = read_info(path, "refiner", "diffusion model")
    model = CrystalDiffusionModel(from_dict(DiffusionConfig, info["refiner"], where=f"{folder / 'config.json'}: "))
    info |= load_weights(model, folder)
    if "training_cells" in info:
        model.training_cells = TrainingCells.from_text(info["training_cells"])
    return model.to(device).eval(), info


def is_refiner(path: str | Path) -> bool:
    """Whether a checkpoint is a diffusion model's. FileNotFoundError where there is none."""
    return has_key(path, "refiner")


def export_refiner(source: str | Path, target: str | Path) -> Path:
    """Write the weights alone, in 16 bits, and their config.json, replacing an earlier export (see `check_export`)."""
    model, info = load_refiner(source)
    return export_weights(model, info, target)
