"""The same training on a CUDA device; `pytest -m gpu`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from crystallm.model.batch import make_batch
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.train.distribution import Processes
from crystallm.train.loader import DataConfig, ShardLoader, TokenShards
from crystallm.train.metrics import read_metrics
from crystallm.train.synthetic import write_shards
from crystallm.train.trainer import TrainConfig, Trainer
from tokenizer import CIFTokenizer


def curve(out: Path, shards: Path, device: str, config: TrainConfig) -> list[float]:
    tokenizer = CIFTokenizer()
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=64, qk_norm=True), token_spec(tokenizer))
    collate = partial(make_batch, spec=model.spec)
    data = DataConfig(batch_tokens=2048)
    train, val = (ShardLoader(TokenShards(shards, split), collate, data, 512) for split in ("train", "val"))
    Trainer(model, train, val.once, config, out, Processes(0, 1, torch.device(device))).fit()
    return [row["nats_per_structure"] for row in read_metrics(out / "metrics.jsonl") if row["kind"] == "train"]


@pytest.mark.gpu
@pytest.mark.parametrize("compile_blocks", [False, True])
def test_cuda_learns_as_the_cpu_does(tmp_path: Path, compile_blocks: bool):
    shards = write_shards(tmp_path / "shards", CIFTokenizer())
    config = TrainConfig(max_steps=20, learning_rate=5e-3, warmup_steps=2, eval_every=10, log_every=1, dtype="float32")
    on_cpu = curve(tmp_path / "cpu", shards, "cpu", config)
    cuda = TrainConfig(**{**vars(config), "compile": compile_blocks})
    assert curve(tmp_path / "cuda", shards, "cuda", cuda) == pytest.approx(on_cpu, rel=0.02)
    half = TrainConfig(**{**vars(cuda), "dtype": "bfloat16"})
    assert curve(tmp_path / "half", shards, "cuda", half)[-1] == pytest.approx(on_cpu[-1], rel=0.1)
