"""Checkpoint folders that appear whole or not at all.

    last/  model.safetensors  ema.safetensors  optimizer.safetensors  config.json
    best/  the same without the optimizer

`config.json` holds plain data: what the caller gave as `info` (the model's config, the vocabulary), and under
"training" where the run stands. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


def write_checkpoint(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]) -> None:
    """Write `<name>.safetensors` for each entry and config.json, then put the folder in place by renaming.

    Killed between the two renames, the folder is found as `<name>.old`: `find_checkpoint` looks there too.
    """
    temporary, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f"{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, group in tensors.items():
        save_file({k: v.detach().contiguous().cpu() for k, v in group.items()}, temporary / f"{name}.safetensors")
    (temporary / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for path in temporary.iterdir():
        _flush(path)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_checkpoint(folder: Path) -> Path | None:
    """The folder itself, or the copy that a kill between two renames left; None: there is no checkpoint."""
    for candidate in (folder, folder.with_name(f"{folder.name}.old")):
        if (candidate / "config.json").is_file():
            return candidate
    return None


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / f"{name}.safetensors")
