"""Training runs of the diffusion model: on the crystals of token shards, or on the tutorial's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crystallm.config import settings_from, to_dict, to_yaml
from crystallm.crystal import Crystal
from crystallm.geometry import distance_violations, shortest_distance
from crystallm.refine.batch import PackedCrystals
from crystallm.refine.checkpoint import load_refiner
from crystallm.refine.compositions import TrainingCells
from crystallm.refine.diffusion import CrystalDiffusionModel, DiffusionConfig
from crystallm.refine.loader import CrystalDataConfig, CrystalLoader, packed_crystals, packed_freely
from crystallm.refine.tutorial import training_crystals, validation_crystals
from crystallm.train.ahead import made_ahead
from crystallm.train.distribution import start_processes
from crystallm.train.loader import TokenShards
from crystallm.train.trainer import TrainConfig, Trainer
from crystallm.version import __version__
from tokenizer import CIFTokenizer

DRAWN = ("free_cell", "trained_sigmas_ang")  # of a model's config: what training draws, not the shape


@dataclass(frozen=True)
class RefinerRunConfig:
    out: str = "runs/refiner"
    init_from: str | None = None  # checkpoint to start from, with a new optimizer and warm-up
    test_structures: int | None = None  # drawn from noise and checked at each evaluation
    data: CrystalDataConfig = field(default_factory=CrystalDataConfig)
    refiner: DiffusionConfig = field(default_factory=DiffusionConfig)  # with init_from: only what training draws
    train: TrainConfig = field(default_factory=TrainConfig)


def train_refiner(config: RefinerRunConfig) -> str:
    """Train the diffusion model on the crystals of token shards, or on the tutorial's; why it ended."""
    processes = start_processes(config.train.device, config.train.threads)
    torch.manual_seed(config.train.seed)
    provenance = {"crystallm": __version__, "torch": torch.__version__}
    notes: list[str] = []
    if config.init_from:
        model, base = load_refiner(config.init_from)
        noise = {name: getattr(config.refiner, name) for name in DRAWN}
        notes = settings_from(model.config, config.refiner, DRAWN)[1]
        model.config = replace(model.config, **noise)  # the shape and the schedule are those of the weights
        config = replace(config, refiner=model.config)
        provenance["init_from"] = base["model_hash"]
    else:
        model = CrystalDiffusionModel(config.refiner)
    if config.test_structures and not model.generates:
        raise ValueError(
            f"test_structures={config.test_structures} are drawn from noise, for which trained_sigmas_ang has to reach "
            f"the schedule's greatest width, {model.config.sigma_max_ang:g} Å"
        )
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
        print("".join(f"init_from: refiner.{note}\n" for note in notes), end="")
        print(f"parameters: {sum(p.numel() for p in model.parameters()):,}")
    batches = made_ahead(loaders["train"], processes.device)
    trainer = Trainer(model, batches, loaders["val"].once, config.train, config.out, processes, info, callbacks)
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
