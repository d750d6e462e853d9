"""Training runs of the property predictor: from tables with labels to a calibrated checkpoint."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from crystallm.config import settings_from, to_dict, to_yaml
from crystallm.properties.calibration import calibrated_targets
from crystallm.properties.checkpoint import (
    PredictorConfig,
    build_predictor,
    load_predictor,
    predictor_info,
    texts_of,
)
from crystallm.properties.ensemble import single
from crystallm.properties.loader import PropertyLoader
from crystallm.properties.predictor import PropertyBatch, PropertyPredictor, Target
from crystallm.properties.samples import SPLITS, Rejected, SampleSet, write_split_file
from crystallm.properties.tables import PropertyDataConfig, property_samples, sample_splits
from crystallm.rejections import rejection
from crystallm.train.distribution import start_processes
from crystallm.train.trainer import TrainConfig, Trainer
from crystallm.version import __version__


@dataclass(frozen=True)
class PredictorRunConfig:
    out: str = "runs/predictor"
    init_from: str | None = None  # checkpoint to start from, with a new optimizer and warm-up
    data: PropertyDataConfig = field(default_factory=PropertyDataConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def train_predictor(config: PredictorRunConfig) -> str:
    """Train a predictor, calibrate its errors on validation rows; why training ended.

    Raises ValueError for data that do not fit, FileNotFoundError.
    """
    processes = start_processes(config.train.device, config.train.threads)
    torch.manual_seed(config.train.seed)
    names = tuple(config.data.targets.values())
    if not names:
        raise ValueError("data.targets names no column; wanted e.g. data.targets.gap=band_gap_ev")
    samples, rejected = property_samples(config.data, texts_of(config.predictor))
    splits = sample_splits(samples, config.data)
    places = {split: np.flatnonzero(splits == split) for split in SPLITS}
    chosen = {**places, "train": some_places(places["train"], config.data.max_train, config.train.seed)}
    provenance = {"crystallm": __version__, "torch": torch.__version__}
    notes: list[str] = []
    if config.init_from:
        loaded, saved, base = load_predictor(config.init_from)
        model = single(loaded, "training")
        settings, notes = _settings(saved, config.predictor)
        if settings != saved:
            weights = model.state_dict()
            model = build_predictor(settings, model.targets)
            model.load_state_dict(weights)
        config = replace(config, predictor=settings)
        provenance["init_from"] = base["model_hash"]
        if [target.name for target in model.targets] != list(names):
            raise ValueError(f"{config.init_from} predicts {[t.name for t in model.targets]}, data.targets are {names}")
    else:
        model = build_predictor(config.predictor, fitted_targets(samples, chosen["train"], names))
    encoders = model.encoders_by_modality()
    share = (config.train.seed, processes.rank, processes.world)
    train = PropertyLoader(samples, chosen["train"], encoders, names, config.data.loader, *share)
    val_places = some_places(places["val"], config.data.max_val, config.train.seed)
    val = PropertyLoader(samples, val_places, encoders, names, config.data.loader, *share)
    info = {
        **predictor_info(config.predictor, model.targets),
        "run": to_dict(config),
        "data": {"rejected": len(rejected), **{split: len(own) for split, own in places.items()}},
        "provenance": provenance,
    }
    if processes.is_first:
        Path(config.out).mkdir(parents=True, exist_ok=True)
        write_split_file(
            Path(config.out) / "split.csv.gz", {samples.ids[i]: str(splits[i]) for s in SPLITS for i in places[s]}
        )
        _say(config, notes, model, samples, rejected, {"train": train, "val": val}, places)
    both = processes.is_first and len(model.encoders) > 1  # callbacks run on the first process
    callbacks = [balance_callback(next(val.once()))] if both else []
    # Not made ahead: a frozen text encoder reads texts on its own device when batches are made.
    trainer = Trainer(model, train, val.once, config.train, config.out, processes, info, callbacks)
    reason = trainer.fit()
    if processes.is_first and reason != "interrupted":
        calibrate(Path(config.out), samples, val.indices)
    processes.close()
    return reason


# What of a predictor's config is no shape
TRAINED_BY = {
    "structure": ("dropout",),
    "text": ("cache",),
    "head": ("dropout", "structure_weight", "text_weight", "modality_dropout"),
}


def _settings(saved: PredictorConfig, asked: PredictorConfig) -> tuple[PredictorConfig, list[str]]:
    """As config.settings_from, of its sections"""
    sections, notes = {}, []
    for name, free in TRAINED_BY.items():
        base, wanted = getattr(saved, name), getattr(asked, name)
        if base is not None and wanted is not None:
            sections[name], own = settings_from(base, wanted, free)
            notes += [f"{name}.{note}" for note in own]
    return replace(saved, **sections), notes


def some_places(places: np.ndarray, number: int | None, seed: int) -> np.ndarray:
    """`number` of them, chosen at random, in their order; all where there are no more."""
    if number is None or number >= len(places):
        return places
    return np.sort(np.random.default_rng([seed, 0xDA7A]).permutation(places)[:number])


def fitted_targets(samples: SampleSet, places: np.ndarray, names: Sequence[str]) -> list[Target]:
    """Mean and spread of the training labels. ValueError for a property that no training row has."""
    labels = samples.labels(names)[places]
    found = []
    for name, column in zip(names, labels.T, strict=True):
        known = column[np.isfinite(column)]
        if not len(known):
            raise ValueError(
                f"none of {len(places)} training rows has a label for {name}; is its column named in data.targets?"
            )
        found.append(Target(name, float(known.mean()), float(known.std()) or 1.0))
    return found


def calibrate(out: Path, samples: SampleSet, val_places: np.ndarray) -> None:
    """Fit the factors of predicted errors on validation rows; they are written into the run's checkpoints."""
    for name in ("best", "last"):
        if not (out / name / "config.json").is_file():
            continue
        model, _, info = load_predictor(out / name)
        targets = calibrated_targets(model, samples.some(val_places))
        file = out / name / "config.json"
        kept = {key: value for key, value in info.items() if key not in ("path", "model_hash")}
        kept["targets"] = [to_dict(target) for target in targets]
        file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def balance_callback(batch: PropertyBatch) -> Callable[[nn.Module, int], Mapping[str, float]]:
    """For train.trainer.Trainer: whether the fused branch listens to both modalities, on one batch.

    `gradient_NAME`: norm of the fused loss's gradient at the pooled encoding of a modality, a sample; near 0, it is not
    heard. `alignment`: linear CKA of the two pooled encodings (Kornblith et al. 2019, eq. 3's special case), 1 where
    they say the same.
    """

    def measure(model: nn.Module, step: int) -> Mapping[str, float]:
        assert isinstance(model, PropertyPredictor)
        device = next(model.parameters()).device
        with torch.enable_grad():
            return modality_balance(model, batch.to(device))

    return measure


def modality_balance(model: PropertyPredictor, batch: PropertyBatch) -> dict[str, float]:
    encodings = model.encode(batch)
    tokens = {name: encoding.tokens for name, encoding in encodings.items()}
    fused = model.predict_from(encodings)["fused"].mean
    means, scales = model.scaling()
    known = batch.targets.isfinite()
    errors = (fused - torch.where(known, (batch.targets - means) / scales, fused.detach())).abs()
    gradients = torch.autograd.grad(errors.sum() / len(fused), list(tokens.values()))
    found = {}
    for name, gradient in zip(tokens, gradients, strict=True):
        found[f"gradient_{name}"] = float(gradient.sum(dim=1).norm(dim=1).mean() * len(fused))
    first, second = (encoding.mean().detach() for encoding in encodings.values())
    found["alignment"] = linear_cka(first, second)
    return found


def linear_cka(first: Tensor, second: Tensor) -> float:
    """(n, a), (n, b) -> similarity in [0, 1] of two representations of the same n samples"""
    first, second = (values.double() - values.double().mean(dim=0) for values in (first, second))
    cross = (first.T @ second).square().sum()
    own = (first.T @ first).norm() * (second.T @ second).norm()
    return float(cross / own.clamp(min=1e-12))


def _say(
    config: PredictorRunConfig,
    notes: Sequence[str],
    model: PropertyPredictor,
    samples: SampleSet,
    rejected: Sequence[Rejected],
    loaders: Mapping[str, PropertyLoader],
    places: Mapping[str, np.ndarray],
) -> None:
    print(to_yaml(config))
    print("".join(f"init_from: predictor.{note}\n" for note in notes), end="")
    print(f"parameters: {sum(p.numel() for p in model.parameters() if p.requires_grad):,}")
    print(f"{len(samples):,} labelled samples, {len(rejected):,} rejected; {_counted(places)}")
    for one in rejected[:5]:
        print(f"  {one.id}: {rejection(one.rejected_by, one.reason)}")
    for name, loader in loaders.items():
        used = f"{len(loader.indices):,} used in {loader.n_batches} batches"
        print(f"{name}: {used}, {loader.too_large:,} with too many atoms")


def _counted(places: Mapping[str, np.ndarray]) -> str:
    counts: Counter[str] = Counter({name: len(own) for name, own in places.items()})
    return ", ".join(f"{name} {number:,}" for name, number in counts.items())
