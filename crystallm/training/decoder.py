"""Training runs of the language model: from token shards to a checkpoint, samples checked on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import nn

from crystallm.config import settings_from, to_dict, to_yaml
from crystallm.model.batch import make_batch
from crystallm.model.checkpoint import load_checkpoint, load_weights, model_info
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.sample.along import constrained_choices
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.train.ahead import made_ahead
from crystallm.train.distribution import start_processes
from crystallm.train.loader import Conditions, DataConfig, ShardLoader, TokenShards
from crystallm.train.trainer import TrainConfig, Trainer
from crystallm.version import __version__
from tokenizer import CIFTokenizer

TRAINED_BY = ("dropout", "loss", "soft_coordinate", "soft_length", "soft_angle", "slot_weights")  # no shapes
CHECKS_NEED = ("pymatgen", "spglib", "moyopy")  # which training itself does not


@dataclass(frozen=True)
class RunConfig:
    out: str = "runs/train"
    # Checkpoint to start from (bundled: ours), with a new optimizer and warm-up; its vocabulary and shape are taken
    init_from: str | None = None
    vocabulary: str = "cif"
    validity_samples: int = 0  # samples drawn and checked at each evaluation, where pymatgen is installed
    data: DataConfig = field(default_factory=DataConfig)
    model: GPTConfig = field(default_factory=GPTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def train_decoder(config: RunConfig) -> str:
    """Train the language model; why it ended. Raises FileNotFoundError, ValueError for data that do not fit."""
    processes = start_processes(config.train.device, config.train.threads)
    torch.manual_seed(config.train.seed)
    provenance = {"crystallm": __version__, "torch": torch.__version__}
    notes: list[str] = []
    if config.init_from:
        model, tokenizer, base = load_checkpoint(config.init_from)
        provenance["init_from"] = base["model_hash"]
        settings, notes = settings_from(model.config, config.model, TRAINED_BY)
        if settings != model.config:
            weights = dict(model.named_parameters())
            model = GPT(settings, token_spec(tokenizer, settings.loss))
            load_weights(model, weights, config.init_from)
        config = replace(config, model=settings)
    else:
        tokenizer = CIFTokenizer(config.vocabulary)
        model = GPT(config.model, token_spec(tokenizer, config.model.loss))
    train, val = (TokenShards(config.data.path, split) for split in ("train", "val"))
    train.check_vocabulary(tokenizer)
    choices = constrained_choices(tokenizer) if model.config.loss == "constrained" else None
    collate = partial(make_batch, spec=model.spec, choices=choices)
    data, share = config.data, (model.config.block_size, config.train.seed, processes.rank, processes.world)
    conditions = Conditions(train, tokenizer, data.properties, data.property_keep) if data.properties else None
    batches = ShardLoader(train, collate, data, *share, conditions, data.max_structures, data.ids)
    val_batches = ShardLoader(val, collate, data, *share, max_structures=data.max_val_structures)
    info = {**model_info(model.config, tokenizer), "run": to_dict(config), "data": train.meta, "provenance": provenance}
    callbacks = []
    if config.validity_samples:
        callback = validity_callback(tokenizer, config.validity_samples)
        callbacks = [] if callback is None else [callback]
        if callback is None and processes.is_first:
            print("validity_samples: left out, since pymatgen, spglib and moyopy are not all installed")
    if processes.is_first:
        print(to_yaml(config))
        print("".join(f"init_from: model.{note}\n" for note in notes), end="")
        n_all = sum(p.numel() for p in model.parameters())
        print(f"parameters: {model.n_block_parameters:,} in blocks, {n_all:,} in all")
        for name, loader in (("train", batches), ("val", val_batches)):
            print(
                f"{name}: {len(loader.indices):,} structures, {loader.n_batches} batches, too_long: {loader.too_long}"
            )
    source = made_ahead(batches, processes.device, data.workers)
    trainer = Trainer(model, source, val_batches.once, config.train, config.out, processes, info, callbacks)
    reason = trainer.fit()
    processes.close()
    return reason


def validity_callback(
    tokenizer: CIFTokenizer, num: int, seed: int = 0
) -> Callable[[nn.Module, int], Mapping[str, float]] | None:
    """For train.trainer.Trainer: shares of `num` unprompted samples that end and that pass the default checks.

    None where the libraries that the checks need are not installed: training itself needs none of them.
    """
    if any(find_spec(name) is None for name in CHECKS_NEED):
        return None
    config = GenerateConfig(num=num, seed=seed)

    def sample_and_check(model: nn.Module, step: int) -> Mapping[str, float]:
        records = Generator(model, tokenizer).generate(config)  # type: ignore[arg-type]
        rejected_by = Counter(record.rejected_by for record in records)
        return {"samples_ended": _share_ended(rejected_by), "samples_valid": rejected_by[None] / num}

    return sample_and_check


def _share_ended(rejected_by: Counter[str | None]) -> float:
    return 1 - (rejected_by["dead_end"] + rejected_by["unfinished"]) / rejected_by.total()
