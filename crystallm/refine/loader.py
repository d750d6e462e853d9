"""Crystals for training: canonical texts packed once, then batches of about equal work, in an order fixed by a seed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.crystal import Crystal
from crystallm.epochs import EpochLoader
from crystallm.parallel import Failure, map_processes
from crystallm.refine.batch import CrystalBatch, PackedCrystals, pack
from crystallm.refine.orbits import Orbits, free_orbits, primitive_with_orbits
from crystallm.refine.tutorial import TutorialConfig


@dataclass(frozen=True)
class CrystalDataConfig:
    path: str = "data/materials_project"  # folder of token shards, as bin/prepare_data.py writes it
    tutorial: TutorialConfig | None = None  # its crystals in place of those at `path`
    ids: str | None = None  # file with one record id a line: train on these alone
    max_atoms: int = 20  # in the primitive cell
    batch_edges: int = 16_000  # pairs of neighbours in a batch, about
    batch_structures: int | None = None  # or crystals in a batch, whatever their size
    symmetric: float = 0.7  # share of crystals in which only the free parameters of their symmetry are noisy
    pool: int = 2048  # crystals that are sorted by their number of neighbours: less padding
    max_structures: int | None = None  # train on a random choice of so many
    max_val_structures: int | None = None
    workers: int | None = None  # processes that read the texts, once; None: one a core

    def __post_init__(self) -> None:
        for name in ("max_atoms", "batch_edges", "batch_structures", "pool"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.symmetric <= 1:
            raise ValueError(f"symmetric must be in [0, 1], got {self.symmetric}")


def packed_crystals(
    texts: Sequence[str], cache: Path | None = None, workers: int | None = None
) -> tuple[PackedCrystals, dict[str, str]]:
    """The primitive cells of canonical texts, and the texts' places that have none with the reason.

    `cache`: a file that keeps them; it is written again for other texts.
    """
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    if cache is not None and cache.is_file():
        with np.load(cache) as arrays:
            if str(arrays["digest"]) == digest:
                kept = PackedCrystals(**{field.name: arrays[field.name] for field in fields(PackedCrystals)})
                return kept, dict(zip(arrays["left_out"].tolist(), arrays["reasons"].tolist(), strict=True))
    crystals: list[Crystal] = []
    orbits: list[Orbits] = []
    left_out: dict[str, str] = {}
    for place, result in enumerate(map_processes(_read, texts, workers=workers)):
        if isinstance(result, Failure):
            left_out[str(place)] = str(result)
        else:
            crystals.append(result[0])
            orbits.append(result[1])
    kept = pack(crystals, orbits)
    if cache is not None:
        arrays = {field.name: getattr(kept, field.name) for field in fields(PackedCrystals)}
        partial = cache.with_name(f".{cache.name}.{os.getpid()}.npz")
        np.savez(partial, digest=digest, left_out=list(left_out), reasons=list(left_out.values()), **arrays)
        partial.replace(cache)
    return kept, left_out


def packed_freely(crystals: Sequence[Crystal]) -> PackedCrystals:
    """Crystals as they are, each atom free to move."""
    return pack(crystals, [free_orbits(crystal.n_atoms) for crystal in crystals])


def _read(text: str) -> tuple[Crystal, Orbits]:
    return primitive_with_orbits(AsymmetricUnit.from_text(text))


class Chosen(NamedTuple):
    """The crystals of a batch."""

    indices: np.ndarray  # (n,)
    symmetric: np.ndarray  # (n,) bool: whose noise keeps the symmetry


class CrystalLoader(EpochLoader):
    """Batches of packed crystals."""

    def __init__(
        self,
        crystals: PackedCrystals,
        config: CrystalDataConfig,
        cutoff_ang: float,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        max_structures: int | None = None,
    ):
        self.crystals, self.config = crystals, config
        self.work = crystals.n_edges * (4 / 3 * np.pi * cutoff_ang**3) + crystals.n_atoms  # (n,) edges, about
        fits = np.flatnonzero(crystals.n_atoms <= config.max_atoms)
        self.too_large = len(crystals) - len(fits)
        if max_structures is not None and max_structures < len(fits):
            fits = np.sort(np.random.default_rng([seed, 0xDA7A]).permutation(fits)[:max_structures])
        if not len(fits):
            raise ValueError(f"none of {len(crystals)} crystals has {config.max_atoms} atoms or fewer")
        super().__init__(fits, config.pool, seed, rank, world)

    def draw(self, rng: np.random.Generator) -> None:
        self._symmetric = rng.random(len(self.crystals)) < self.config.symmetric

    def cut(self, indices: np.ndarray) -> list[np.ndarray]:
        """Batches of about batch_edges each, of crystals with like numbers of neighbours; or of batch_structures."""
        if size := self.config.batch_structures:
            return np.split(indices, range(size, len(indices), size))
        indices = indices[np.argsort((self.work / self.crystals.n_atoms)[indices], kind="stable")]
        number = np.floor(np.cumsum(self.work[indices]) / self.config.batch_edges)
        return np.split(indices, np.flatnonzero(np.diff(number)) + 1)

    def choice(self, indices: np.ndarray, number: int) -> Chosen:
        return Chosen(indices, self._symmetric[indices])

    def make(self, chosen: Chosen) -> CrystalBatch:
        return self.crystals.batch(*chosen)

    def once(self) -> Iterator[CrystalBatch]:
        """Every crystal once: this process's share. With its symmetry, unless training never has it (symmetric: 0)."""
        for chosen in self.share(self.cut(self.indices)):
            yield self.make(Chosen(chosen, np.full(len(chosen), self.config.symmetric > 0)))

    def first(self, n: int) -> list[Crystal]:
        """The first n crystals, as they are in the data."""
        return self.crystals.batch(self.indices[:n], np.ones(min(n, len(self.indices)), dtype=bool)).crystals()
