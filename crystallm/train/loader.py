"""Token shards to batches: whole structures of like length, in an order that (seed, epoch) fixes.

Nothing here knows what a token means, but for the condition lines, which are put before a structure at random.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crystallm.epochs import EpochLoader

if TYPE_CHECKING:
    from tokenizer import CIFTokenizer


@dataclass(frozen=True)
class DataConfig:
    path: str = "data/materials_project"  # folder of token shards, as bin/prepare_data.py writes it
    ids: str | None = None  # file with one record id a line: train on these alone
    batch_tokens: int = 8192  # places in one batch, padding included
    pool: int = 8192  # structures that are sorted by length together: less padding, less mixed batches
    max_tokens: int | None = None  # train on structures up to this length; None: up to the model's block_size
    max_structures: int | None = None  # train on a random choice of so many
    max_val_structures: int | None = None
    properties: tuple[str, ...] = ()  # condition lines that may stand before a structure
    property_keep: float = 0.5  # share of structures in which each of them is kept
    workers: int | None = None  # processes that make batches ahead; None: 2 beside a GPU, else none

    def __post_init__(self) -> None:
        if self.batch_tokens < 1 or self.pool < 1:
            raise ValueError(f"batch_tokens and pool must be at least 1, got {self.batch_tokens} and {self.pool}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be 0 or more, got {self.workers}")
        if not 0 <= self.property_keep <= 1:
            raise ValueError(f"property_keep must be in [0, 1], got {self.property_keep}")


class TokenShards:
    """One split of a shard folder, memory-mapped."""

    def __init__(self, path: str | Path, split: str):
        folder = Path(path)
        if not (folder / f"tokens_{split}.npy").is_file():
            if (folder / "meta.json").is_file():
                name = {"train": "training", "val": "validation"}.get(split, split)
                cure = "more structures" if split == "train" else f"a larger --{split}-share"
                raise FileNotFoundError(
                    f"{folder}: no {name} structures in this preparation: prepare again with {cure}"
                )
            found = sorted(p.name for p in folder.glob("tokens_*.npy")) if folder.is_dir() else "no such folder"
            raise FileNotFoundError(f"{folder}: no tokens_{split}.npy here ({found}); bin/prepare_data.py writes it")
        self.folder, self.split = folder, split
        # (n_tokens,) uint16; as a plain array: slices of a memmap took a quarter of a batch's time
        self.tokens = np.load(folder / f"tokens_{split}.npy", mmap_mode="r").view(np.ndarray)
        self.offsets = np.load(folder / f"offsets_{split}.npy")  # (n + 1,) int64
        self.lengths = np.diff(self.offsets)  # (n,)
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if int(self.offsets[-1]) != len(self.tokens):
            end = int(self.offsets[-1])
            raise ValueError(f"{folder}, {split}: offsets end at {end}, there are {len(self.tokens)} tokens")

    def __len__(self) -> int:
        return len(self.lengths)

    def __reduce__(self) -> tuple[type[TokenShards], tuple[Path, str]]:
        return TokenShards, (self.folder, self.split)  # another process maps the file anew

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def find(self, path: str | Path) -> np.ndarray:
        """Places, ascending, of the records whose ids a file lists, one a line. ValueError where none is here."""
        wanted = set(Path(path).read_text(encoding="utf-8").split())
        here = (self.folder / f"ids_{self.split}.txt").read_text(encoding="utf-8").split("\n")[:-1]
        found = np.array([place for place, record_id in enumerate(here) if record_id in wanted], dtype=np.int64)
        if not len(found):
            raise ValueError(f"{path}: none of its {len(wanted)} ids is in {self.folder}, {self.split}")
        return found

    def property(self, name: str) -> np.ndarray:
        """(n,) float32, nan where unknown"""
        path = self.folder / f"properties_{self.split}.npz"
        with np.load(path) as arrays:
            if name not in arrays:
                raise ValueError(f"{path}: no property {name!r}; it holds {', '.join(arrays) or 'none'}")
            return arrays[name]

    def check_vocabulary(self, tokenizer: CIFTokenizer) -> None:
        name, hash_ = self.meta["vocabulary"], self.meta["vocabulary_hash"]
        if hash_ != tokenizer.hash:
            raise ValueError(
                f"{self.folder}: written with vocabulary {name!r} ({hash_[:12]}), the model's is "
                f"{tokenizer.name!r} ({tokenizer.hash[:12]}); prepare the data again"
            )


class Conditions:
    """The tokens of condition lines (`# band_gap_ev +1.10`), drawn anew for each structure in each epoch."""

    def __init__(self, shards: TokenShards, tokenizer: CIFTokenizer, names: Sequence[str], keep: float):
        ids = tokenizer.vocabulary.classes["property_value"]
        values = tokenizer.vocabulary.values[ids].astype(np.float64)
        step = (values[-1] - values[0]) / (len(values) - 1)  # two neighbours in float32 would not give it exactly
        self.keep = keep
        order = list(map(tokenizer.token, tokenizer.vocabulary.classes["property_keyword"].tolist()))
        unknown = [name for name in names if f"# {name} " not in order]
        if unknown:
            raise ValueError(f"no property line {unknown[0]!r}; there are {', '.join(k.strip('# ') for k in order)}")
        names = sorted(names, key=lambda name: order.index(f"# {name} "))
        self.keywords = np.array([tokenizer.id(f"# {name} ") for name in names], dtype=np.uint16)  # (k,)
        self.values = np.zeros((len(shards), len(names)), dtype=np.uint16)  # ids (n, k); 0: unknown or off the grid
        for column, name in enumerate(names):
            known = shards.property(name)
            on_grid = (known >= values[0] - 0.005) & (known <= values[-1] + 0.005)  # False for nan
            place = np.round((known[on_grid] - values[0]) / step).astype(np.int64)
            self.values[on_grid, column] = ids[place.clip(0, len(ids) - 1)]

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """(n, k) bool: which lines stand before which structure"""
        return (self.values > 0) & (rng.random(self.values.shape) < self.keep)

    def lines(self, index: int, kept: np.ndarray) -> np.ndarray:
        """Tokens of the kept lines of one structure (2 * number kept,)"""
        return np.stack([self.keywords[kept], self.values[index, kept]], axis=1).ravel()


class Chosen(NamedTuple):
    """The structures of a batch."""

    indices: np.ndarray  # (n,)
    kept: np.ndarray | None  # (n, k) bool: which condition lines stand before them; None: there are none


class ShardLoader(EpochLoader):
    """Batches of one split."""

    def __init__(
        self,
        shards: TokenShards,
        collate: Callable[[list[np.ndarray]], Any],
        config: DataConfig,
        block_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        conditions: Conditions | None = None,
        max_structures: int | None = None,
        ids: str | None = None,
    ):
        self.shards, self.collate, self.config, self.conditions = shards, collate, config, conditions
        n_condition = 2 * len(conditions.keywords) if conditions else 0
        chosen = np.arange(len(shards)) if ids is None else shards.find(ids)
        longest = min(block_size, config.max_tokens or block_size)
        fits = chosen[shards.lengths[chosen] + n_condition <= longest]
        self.too_long = len(chosen) - len(fits)
        if max_structures is not None and max_structures < len(fits):
            fits = np.sort(np.random.default_rng([seed, 0xDA7A]).permutation(fits)[:max_structures])
        if not len(fits):
            where = f"{shards.folder}, {shards.split}"
            raise ValueError(f"{where}: none of {len(chosen)} structures fits {longest} tokens")
        self._lengths = shards.lengths  # (n_shards,) tokens, in training with the condition lines of this epoch
        super().__init__(fits, config.pool, seed, rank, world)

    def draw(self, rng: np.random.Generator) -> None:
        if self.conditions is not None:
            self._kept = self.conditions.draw(rng)
            self._lengths = self.shards.lengths + 2 * self._kept.sum(axis=1)

    def cut(self, indices: np.ndarray) -> list[np.ndarray]:
        return self._cut(indices, self._lengths)

    def _cut(self, indices: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        indices = indices[np.argsort(lengths[indices], kind="stable")]
        return pack(indices, lengths[indices], self.config.batch_tokens)

    def choice(self, indices: np.ndarray, number: int) -> Chosen:
        return Chosen(indices, None if self.conditions is None else self._kept[indices])

    def make(self, chosen: Chosen) -> Any:
        sequences = [self.shards[index] for index in chosen.indices]
        if chosen.kept is not None and self.conditions is not None:
            lines = map(self.conditions.lines, chosen.indices, chosen.kept)
            sequences = [np.concatenate(parts) for parts in zip(lines, sequences, strict=True)]
        return self.collate(sequences)

    def once(self) -> Iterator[Any]:
        """Every structure once, without conditions, in order of length: this process's share."""
        for chosen in self.share(self._cut(self.indices, self.shards.lengths)):
            yield self.make(Chosen(chosen, None))


def pack(indices: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut a list sorted by length into batches of at most `budget` places, and of one structure at least."""
    batches, start = [], 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or (end + 1 - start) * int(lengths[end]) > budget:
            batches.append(indices[start:end])
            start = end
    return batches
