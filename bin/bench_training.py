"""Training speed, per CPU-second and one thread:  python bin/bench_training.py [data.path=runs/mp] [model.n_embd=384]

Without data.path it trains on random structures of about 55 tokens. Prints structures/s and tokens/s in bfloat16 and
float32, and the share of the machine's own matrix-product speed that the products of the blocks reach.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from crystallm.config import load_config
from crystallm.model.batch import make_batch
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.train.distribution import Dtype, start_processes
from crystallm.train.loader import DataConfig, ShardLoader, TokenShards
from crystallm.train.synthetic import write_shards
from crystallm.train.trainer import TrainConfig, Trainer
from tokenizer import CIFTokenizer


@dataclass(frozen=True)
class BenchConfig:
    data: DataConfig = field(default_factory=lambda: DataConfig(path=""))
    model: GPTConfig = field(default_factory=GPTConfig)
    steps: int = 10


def measure(config: BenchConfig, dtype: Dtype) -> str:
    tokenizer, processes = CIFTokenizer(), start_processes("cpu", threads=1)
    model = GPT(config.model, token_spec(tokenizer, config.model.loss))
    collate = partial(make_batch, spec=model.spec)
    batches = ShardLoader(TokenShards(config.data.path, "train"), collate, config.data, config.model.block_size)
    trainer = Trainer(model, batches, lambda: iter(()), TrainConfig(dtype=dtype), "", processes)
    for _ in range(2):
        trainer.train_step(1e-3)
    started, counts = time.process_time(), torch.zeros(2)
    for _ in range(config.steps):
        counts += trainer.train_step(1e-3)[1][:2]
    structures, tokens = (counts / (time.process_time() - started)).tolist()
    share = 6 * model.n_block_parameters * tokens / product_speed(trainer.dtype, config.model.n_embd)
    return (
        f"{dtype}: {structures:.0f} structures/s of {tokens / structures:.0f} tokens, {tokens:.0f} tokens/s, "
        f"{100 * share:.0f} % of the speed of plain matrix products ({model.n_block_parameters / 1e6:.1f} M in blocks)"
    )


def product_speed(dtype: torch.dtype, width: int) -> float:
    """Operations per CPU-second of (8192, width) @ (width, 4 width), the best of ten."""
    a, b = torch.randn(8192, width).to(dtype), torch.randn(width, 4 * width).to(dtype)
    seconds = []
    for _ in range(10):
        started = time.process_time()
        a @ b
        seconds.append(time.process_time() - started)
    return 2 * 8192 * width * 4 * width / min(seconds)


if __name__ == "__main__":
    bench = load_config(BenchConfig)
    with tempfile.TemporaryDirectory() as folder:
        if not bench.data.path:
            path = write_shards(Path(folder), CIFTokenizer(), n_train=5000, mean_sites=6)
            bench = replace(bench, data=replace(bench.data, path=str(path)))
        print(measure(bench, "bfloat16"))
        print(measure(bench, "float32"))
