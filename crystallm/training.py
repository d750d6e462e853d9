"""Training runs: what bin/train.py does with a config, for the language model and for the diffusion model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crystallm.config import load_config, names_key, to_dict, to_yaml
from crystallm.crystal import Crystal
from crystallm.geometry import distance_violations, shortest_distance
from crystallm.model.batch import make_batch
from crystallm.model.checkpoint import load_checkpoint, model_info
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.predictor_training import PredictorRunConfig, train_predictor
from crystallm.refine.batch import PackedCrystals
from crystallm.refine.checkpoint import load_refiner
from crystallm.refine.compositions import TrainingCells
from crystallm.refine.diffusion import CrystalDiffusionModel, DiffusionConfig
from crystallm.refine.loader import CrystalDataConfig, CrystalLoader, packed_crystals, packed_freely
from crystallm.refine.tutorial import training_crystals, validation_crystals
from crystallm.sample.along import constrained_choices
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.train.distribution import start_processes
from crystallm.train.loader import Conditions, DataConfig, ShardLoader, TokenShards
from crystallm.train.trainer import TrainConfig, Trainer
from crystallm.version import __version__
from tokenizer import CIFTokenizer

CHECKS_NEED = ("pymatgen", "spglib", "moyopy")  # which training itself does not


def train(argv: Sequence[str] | None = None) -> str:
    """The run that the arguments describe: with `refiner` among its keys the diffusion model's, with `predictor` the
    property predictor's, else the decoder's."""
    if names_key(argv, "refiner"):
        return train_refiner(load_config(RefinerRunConfig, argv))
    if names_key(argv, "predictor"):
        return train_predictor(load_config(PredictorRunConfig, argv))
    return train_decoder(load_config(RunConfig, argv))


@dataclass(frozen=True)
class RunConfig:
    out: str = "runs/train"
    init_from: str | None = None  # checkpoint to start from, with a new optimizer and warm-up
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


@dataclass(frozen=True)
class RefinerRunConfig:
    out: str = "runs/refiner"
    init_from: str | None = None  # checkpoint to start from, with a new optimizer and warm-up
    test_structures: int | None = None  # drawn from noise and checked at each evaluation
    data: CrystalDataConfig = field(default_factory=CrystalDataConfig)
    refiner: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def train_refiner(config: RefinerRunConfig) -> str:
    """Train the diffusion model on the crystals of token shards, or on the tutorial's; why it ended."""
    processes = start_processes(config.train.device, config.train.threads)
    torch.manual_seed(config.train.seed)
    provenance = {"crystallm": __version__, "torch": torch.__version__}
    if config.init_from:
        model, base = load_refiner(config.init_from)
        provenance["init_from"] = base["model_hash"]
    else:
        model = CrystalDiffusionModel(config.refiner)
    loaders = {}
    for split, limit in (("train", config.data.max_structures), ("val", config.data.max_val_structures)):
        crystals, left_out, meta = _read_split(config.data, split)
        share = (config.train.seed, processes.rank, processes.world)
        loader = loaders[split] = CrystalLoader(crystals, config.data, model.config.cutoff_ang, *share, limit)
        if processes.is_first:
            print(
                f"{split}: {len(loader.indices):,} crystals, {loader.n_batches} batches, "
                f"with too many atoms: {loader.too_large:,}"
            )
            for place, reason in list(left_out.items())[:5]:
                print(f"  {split} {place}: left out, {reason}")
    info: dict[str, Any] = {
        "refiner": to_dict(model.config),
        "run": to_dict(config),
        "data": meta,
        "training_cells": TrainingCells.of(loaders["train"].crystals, loaders["train"].indices).to_text(),
        "provenance": provenance,
    }
    callbacks = [generation_callback(loaders["val"].first(config.test_structures))] if config.test_structures else []
    if processes.is_first:
        print(to_yaml(config))
        print(f"parameters: {sum(p.numel() for p in model.parameters()):,}")
    val_batches = loaders["val"].once
    trainer = Trainer(model, loaders["train"], val_batches, config.train, config.out, processes, info, callbacks)
    reason = trainer.fit()
    processes.close()
    return reason


def _read_split(data: CrystalDataConfig, split: str) -> tuple[PackedCrystals, dict[str, str], dict[str, Any]]:
    """(crystals, places of those left out with the reason, what the data are)"""
    if data.tutorial is not None:
        make = training_crystals if split == "train" else validation_crystals
        return packed_freely(make(data.tutorial)), {}, {"tutorial": to_dict(data.tutorial)}
    ids = data.ids if split == "train" else None
    shards = TokenShards(data.path, split)
    tokenizer = CIFTokenizer(shards.meta["vocabulary"])
    shards.check_vocabulary(tokenizer)
    places = range(len(shards)) if ids is None else shards.find(ids)
    texts = [tokenizer.decode(shards[int(place)]) for place in places]
    cache = Path(data.path) / f"crystals_{split}{'' if ids is None else '_some'}.npz"
    return *packed_crystals(texts, cache, data.workers), shards.meta


def generation_callback(
    like: Sequence[Crystal], num_steps: int = 100, seed: int = 0
) -> Callable[[nn.Module, int], Mapping[str, float]]:
    """For train.trainer.Trainer: crystals from noise in the cells of others, and whether atoms overlap in them."""
    lattices = np.stack([crystal.lattice for crystal in like])
    species = [crystal.atomic_numbers.tolist() for crystal in like]

    def draw_and_check(model: nn.Module, step: int) -> Mapping[str, float]:
        drawn = model.sample(len(like), lattices, species, num_steps=num_steps, seed=seed)  # type: ignore[operator]
        fails = [distance_violations(c.lattice, c.frac_coords, c.atomic_numbers) for c in drawn]
        shortest = min(shortest_distance(c.lattice, c.frac_coords) for c in drawn)
        n_valid = sum(not fail for fail in fails)
        print(
            f"step {step}  {'FAILED' if any(fails) else 'PASSED'}: minimum distance {shortest:.2f} Å "
            f"in {len(drawn)} test structures, {n_valid} of them without overlap"
        )
        return {
            "samples_valid": n_valid / len(drawn),
            "samples_failed": 1 - n_valid / len(drawn),  # for train.patience_on, where smaller is better
            "samples_min_distance_ang": shortest,
        }

    return draw_and_check
