"""Batches of samples for training: of about equal numbers of atoms, in an order fixed by a seed, texts drawn anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from crystallm.epochs import EpochLoader
from crystallm.properties.augmentation import CrystalDistortion, TextAugmentation, augment, distort
from crystallm.properties.description import Description
from crystallm.properties.encoding import Encoder
from crystallm.properties.predictor import PropertyBatch
from crystallm.properties.samples import SampleSet


@dataclass(frozen=True)
class LoaderConfig:
    batch_atoms: int = 640  # atoms in a batch, about
    batch_samples: int = 32  # samples in a batch, at most
    max_atoms: int = 80  # larger crystals are left out of training
    pool: int = 4096  # samples that are sorted by their number of atoms: less padding
    text_share: float = 1.0  # of the training batches; in the others samples that have a structure go without text
    augmentation: TextAugmentation = field(default_factory=TextAugmentation)
    distortion: CrystalDistortion = field(default_factory=CrystalDistortion)

    def __post_init__(self) -> None:
        for name in ("batch_atoms", "batch_samples", "max_atoms", "pool"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.text_share <= 1:
            raise ValueError(f"text_share must be in (0, 1], got {self.text_share}")


class BatchMaker:
    """Chosen samples -> a batch: what each encoder reads of them, collated."""

    def __init__(self, samples: SampleSet, encoders: Mapping[str, Encoder], targets: Sequence[str] = ()):
        """`targets`: names of the labels that a batch has; none where nothing is to be learnt"""
        self.samples, self.encoders, self.targets = samples, encoders, tuple(targets)
        self.labels = samples.labels(targets) if targets else np.zeros((len(samples), 0))  # (n, n_targets)

    def batch(
        self, chosen: np.ndarray, config: LoaderConfig | None = None, rng: np.random.Generator | None = None
    ) -> PropertyBatch:
        """As the config has it, where both are given, for training: texts augmented or left out, crystals distorted."""
        parts, present = {}, {}
        texts = config is None or rng is None or config.text_share == 1 or rng.random() < config.text_share
        for name, encoder in self.encoders.items():
            items = [
                self._item(encoder, int(index), config, rng) if texts or self._is_read(name, index) else None
                for index in chosen
            ]
            there = [item is not None for item in items]
            present[name] = torch.tensor(there)
            if any(there):
                parts[name] = encoder.collate([item for item in items if item is not None])
        return PropertyBatch(parts, present, torch.from_numpy(self.labels[chosen]).float())

    def _is_read(self, modality: str, index: int) -> bool:
        """In a batch without texts: a structure, and the text of what has no structure"""
        return modality != "text" or "structure" not in self.encoders or not self.samples.n_atoms[index]

    def _item(self, encoder: Encoder, index: int, config: LoaderConfig | None, rng: np.random.Generator | None) -> Any:
        """What an encoder reads of a sample, None where it has none of it"""
        if encoder.reads == "crystal":
            if not self.samples.n_atoms[index]:
                return None
            crystal = self.samples.crystal(index)
            return crystal if config is None or rng is None else distort(crystal, config.distortion, rng)
        if encoder.reads == "canonical":
            return self.samples.canonical_texts[index] or None
        text = self.samples.descriptions[index]
        if not text:
            return None
        description = Description.from_json(text)
        return str(description if config is None or rng is None else augment(description, config.augmentation, rng))


class Chosen(NamedTuple):
    """The samples of a batch."""

    indices: np.ndarray  # (n,)
    seed: tuple[int, ...]  # of what is drawn for their texts


class PropertyLoader(EpochLoader):
    """Batches of labelled samples. `encoders` by modality: the model's, which know how to collate their items."""

    def __init__(
        self,
        samples: SampleSet,
        indices: np.ndarray,
        encoders: Mapping[str, Encoder],
        targets: Sequence[str],
        config: LoaderConfig,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        self.samples, self.config = samples, config
        self.maker = BatchMaker(samples, encoders, targets)
        known = np.isfinite(self.maker.labels[indices]).any(axis=1)
        small = samples.n_atoms[indices] <= config.max_atoms
        self.too_large, self.unlabelled = int((known & ~small).sum()), int((~known).sum())
        usable = np.asarray(indices)[known & small]
        if not len(indices):
            raise ValueError("a part of the data has no samples: training wants some in train and some in val")
        if not len(usable):
            raise ValueError(
                f"none of {len(indices)} samples can be used: {self.unlabelled} have no label of "
                f"{', '.join(targets)}, {self.too_large} more than {config.max_atoms} atoms"
            )
        super().__init__(usable, config.pool, seed, rank, world)

    def cut(self, indices: np.ndarray) -> list[np.ndarray]:
        return cut_by_atoms(indices, self.samples.n_atoms, self.config.batch_atoms, self.config.batch_samples)

    def choice(self, indices: np.ndarray, number: int) -> Chosen:
        return Chosen(indices, (self.seed, self.epoch, number, 7))

    def make(self, chosen: Chosen) -> PropertyBatch:
        return self.maker.batch(chosen.indices, self.config, np.random.default_rng(chosen.seed))

    def once(self) -> Iterator[PropertyBatch]:
        """Every sample once, its text as it is: this process's share."""
        for chosen in self.share(self.cut(self.indices)):
            yield self.maker.batch(chosen)


def cut_by_atoms(indices: np.ndarray, n_atoms: np.ndarray, most_atoms: int, most_samples: int) -> list[np.ndarray]:
    """Groups of like size, smallest first: of at most so many samples and, padding counted, about so many atoms."""
    ordered = indices[np.argsort(n_atoms[indices], kind="stable")]
    groups, start = [], 0
    sizes = n_atoms[ordered].tolist()
    for place, size in enumerate(sizes):
        if place > start and ((place - start + 1) * size > most_atoms or place - start == most_samples):
            groups.append(ordered[start:place])
            start = place
    return [*groups, ordered[start:]] if len(ordered) else []
