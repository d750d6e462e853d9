"""Checkpoint folders of networks over atoms: config.json beside weights, the moving average before the last ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from crystallm.hub import check_export, resolve_checkpoint


def read_info(path: str | Path, key: str, what: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a checkpoint and its config.json. ValueError unless that has `key`, so is of the kind `what`."""
    folder = resolve_checkpoint(path)
    info = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder.is_dir() else {}
    if key not in info:
        raise ValueError(f"{folder}: not a {what} (its config.json has no {key}); wanted a checkpoint of one")
    return folder, info


def has_key(path: str | Path, key: str) -> bool:
    """Whether a checkpoint's config.json has it. FileNotFoundError where there is no checkpoint."""
    config = resolve_checkpoint(path) / "config.json"
    return config.is_file() and key in json.loads(config.read_text(encoding="utf-8"))


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> dict[str, str]:
    """Fill the model's parameters; where they lay and their hash. ValueError for weights of another model."""
    file = next(f for f in (folder / "ema.safetensors", folder / "model.safetensors") if f.is_file())
    tensors, parameters = load_file(file), dict(model.named_parameters())
    if odd := sorted(set(parameters) ^ set(tensors)):
        raise ValueError(f"{file}: {odd[0]} is {'missing' if odd[0] in parameters else 'unknown'} ({len(odd)} such)")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(f"{file}: {name} is {tuple(tensors[name].shape)}, wanted {tuple(parameter.shape)}")
        parameter.copy_(tensors[name])
    return {"path": str(folder), "model_hash": hashlib.sha256(file.read_bytes()).hexdigest()}


def export_weights(model: nn.Module, info: Mapping[str, Any], target: str | Path) -> Path:
    """Write the weights alone, in 16 bits, and their config.json, replacing an earlier export (see `check_export`)."""
    check_export(info["path"], target)
    tensors = {name: p.detach().half().contiguous() for name, p in model.named_parameters()}
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError(f"{info['path']}: its weights do not fit 16 bits")
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    kept = {key: value for key, value in info.items() if key not in ("path", "model_hash")}
    (folder / "config.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return folder
