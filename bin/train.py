"""Train a model:  python bin/train.py config/mp_small.yaml out=runs/mine train.max_minutes=30

Arguments are YAML files and key=value (--help lists the keys). The same command again goes on where it stopped.
Several processes: torchrun --nproc_per_node=4 bin/train.py config/gpu_100m.yaml
Fine-tuning: init_from=<checkpoint> data.path=<shards>; the model's shape and vocabulary are then the checkpoint's.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial

import torch

import crystallm
from crystallm.config import ConfigError, load_config, to_dict, to_yaml
from crystallm.model.batch import make_batch
from crystallm.model.checkpoint import load_checkpoint, model_info
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.sample.along import constrained_choices
from crystallm.train.distribution import start_processes
from crystallm.train.loader import Conditions, DataConfig, ShardLoader, TokenShards
from crystallm.train.trainer import TrainConfig, Trainer
from tokenizer import CIFTokenizer


@dataclass(frozen=True)
class RunConfig:
    out: str = "runs/train"
    init_from: str | None = None  # checkpoint to start from, with a new optimizer and warm-up
    vocabulary: str = "cif"
    validity_samples: int = 0  # samples drawn and checked at each evaluation, where pymatgen is installed
    data: DataConfig = field(default_factory=DataConfig)
    model: GPTConfig = field(default_factory=GPTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def main(config: RunConfig) -> str:
    processes = start_processes(config.train.device, config.train.threads)
    torch.manual_seed(config.train.seed)
    provenance = {"crystallm": crystallm.__version__, "torch": torch.__version__}
    if config.init_from:
        model, tokenizer, base = load_checkpoint(config.init_from)
        provenance["init_from"] = base["model_hash"]
    else:
        tokenizer = CIFTokenizer(config.vocabulary)
        model = GPT(config.model, token_spec(tokenizer, config.model.loss))
    train, val = (TokenShards(config.data.path, split) for split in ("train", "val"))
    train.check_vocabulary(tokenizer)
    choices = constrained_choices(tokenizer) if model.config.loss == "constrained" else None
    pad_multiple = 16 if processes.device.type == "cuda" else 1
    collate = partial(make_batch, spec=model.spec, pad_multiple=pad_multiple, choices=choices)
    data, share = config.data, (model.config.block_size, config.train.seed, processes.rank, processes.world)
    conditions = Conditions(train, tokenizer, data.properties, data.property_keep) if data.properties else None
    batches = ShardLoader(train, collate, data, *share, conditions, data.max_structures, data.ids)
    val_batches = ShardLoader(val, collate, data, *share, max_structures=data.max_val_structures)
    info = {**model_info(model.config, tokenizer), "run": to_dict(config), "data": train.meta, "provenance": provenance}
    callbacks = []
    if config.validity_samples:
        from crystallm.pipeline import validity_callback  # needs the crystal libraries, as training does not

        callback = validity_callback(tokenizer, config.validity_samples)
        callbacks = [] if callback is None else [callback]
        if callback is None and processes.is_first:
            print("validity_samples: left out, since pymatgen, spglib and moyopy are not all installed")
    if processes.is_first:
        print(to_yaml(config))
        n_all = sum(p.numel() for p in model.parameters())
        print(f"parameters: {model.n_block_parameters:,} in blocks, {n_all:,} in all")
        for name, loader in (("train", batches), ("val", val_batches)):
            print(
                f"{name}: {len(loader.indices):,} structures, {loader.n_batches} batches, too_long: {loader.too_long}"
            )
    trainer = Trainer(model, batches, val_batches.once, config.train, config.out, processes, info, callbacks)
    reason = trainer.fit()
    processes.close()
    return reason


if __name__ == "__main__":
    try:
        main(load_config(RunConfig))
    except (ConfigError, FileNotFoundError) as err:
        sys.exit(f"train: {err}")
