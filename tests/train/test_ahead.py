"""Batches made by other processes are those of the loader, and a run goes on from those that were used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crystallm.train.ahead import BatchesAhead
from crystallm.train.loader import Chosen, Conditions, DataConfig, ShardLoader, TokenShards
from crystallm.train.synthetic import write_shards
from tokenizer import CIFTokenizer


class Broken(ShardLoader):
    def make(self, chosen: Chosen) -> Any:
        raise ValueError(f"no batch of {len(chosen.indices)} structures")


def loader(folder: Path, kind: type[ShardLoader] = ShardLoader, conditions: bool = True, **share: int) -> ShardLoader:
    shards, tokenizer = TokenShards(folder, "train"), CIFTokenizer()
    lines = Conditions(shards, tokenizer, ("density_g_per_cm3",), 0.5) if conditions else None
    return kind(shards, list, DataConfig(batch_tokens=400, pool=64), 512, conditions=lines, **share)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_shards(tmp_path_factory.mktemp("shards"), CIFTokenizer())
    n = len(TokenShards(made, "train"))
    densities = np.random.default_rng(0).uniform(1, 9, n).astype(np.float32)
    np.savez(made / "properties_train.npz", density_g_per_cm3=densities)
    return made


def keys(batches: list[list[np.ndarray]]) -> list[list[bytes]]:
    return [[ids.tobytes() for ids in batch] for batch in batches]


@pytest.mark.parametrize("workers, share", [(1, {}), (2, {}), (2, {"rank": 1, "world": 2})])
def test_the_loaders_batches_in_the_loaders_order(folder: Path, workers: int, share: dict[str, int]):
    plain, ahead = loader(folder, **share), BatchesAhead(loader(folder, **share), workers)
    for n in (1, 3, plain.n_batches):  # into the next epoch
        assert keys(list(ahead.take(n))) == keys(list(plain.take(n)))
        assert ahead.state == plain.state


def test_a_run_goes_on_after_the_batches_it_has_used(folder: Path):
    plain, stopped, resumed = loader(folder), BatchesAhead(loader(folder), 2), BatchesAhead(loader(folder), 2)
    list(stopped.take(3))
    resumed.state = stopped.state
    assert resumed.state == {"epoch": 0, "batch": 3}
    list(plain.take(3))
    assert keys(list(resumed.take(4))) == keys(list(plain.take(4)))
    stopped.state = {"epoch": 1, "batch": 0}  # what was made ahead of the jump is not used
    plain.state = {"epoch": 1, "batch": 0}
    assert keys(list(stopped.take(2))) == keys(list(plain.take(2)))


def test_dropout_draws_the_same_with_and_without(folder: Path):
    """The generator that a step seeds is the model's alone."""
    ahead = BatchesAhead(loader(folder), 1)
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    list(ahead.take(1))
    assert torch.equal(torch.rand(3), wanted)


def test_an_error_comes_back(folder: Path):
    with pytest.raises(ValueError, match=r"no batch of \d+ structures"):
        list(BatchesAhead(loader(folder, Broken, conditions=False), 1).take(1))
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        BatchesAhead(loader(folder), 0)
