"""Every config of the repository is one that its command reads: keys, values and types, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from crystallm.benchmark.ablation import AblationConfig
from crystallm.config import ConfigError, load_config, names_key
from crystallm.training.decoder import RunConfig
from crystallm.training.predictor import PredictorRunConfig
from crystallm.training.refiner import RefinerRunConfig

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "config").glob("*.yaml"))


def read(arguments: Sequence[str]) -> RunConfig | RefinerRunConfig | PredictorRunConfig:
    """As crystallm.training.run.train chooses."""
    if names_key(arguments, "refiner"):
        return load_config(RefinerRunConfig, arguments)
    if names_key(arguments, "predictor"):
        return load_config(PredictorRunConfig, arguments)
    return load_config(RunConfig, arguments)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_read(path: Path) -> None:
    if not names_key([str(path)], "rows"):
        assert read([str(path)]).out.startswith("runs/")
        return
    ablation = load_config(AblationConfig, [str(path)])
    for row in ablation.rows.values():
        read([*ablation.train, *row.train, f"out={ablation.out}"])


def test_another_key_would_be_noticed(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("out: runs/x\ndata: {where: data/x}\n")
    with pytest.raises(ConfigError, match="where"):
        read([str(path)])
