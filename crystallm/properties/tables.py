"""Tables with labels -> samples and their splits, as a config asks for them; what was read is kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from crystallm.config import to_dict
from crystallm.data.readers import read_sources
from crystallm.parallel import available_cores
from crystallm.properties.loader import LoaderConfig
from crystallm.properties.samples import (
    SPLITS,
    Rejected,
    SampleSet,
    Texts,
    make_samples,
    read_samples,
    read_split_file,
    split_at_random,
    write_samples,
)
from crystallm.records import CIFRecord
from crystallm.rejections import rejection
from crystallm.resources import resource_path


@dataclass(frozen=True)
class PropertyDataConfig:
    path: tuple[str, ...] = ("data/properties.parquet",)  # tables with a CIF column, folders of CIFs
    targets: dict[str, str] = field(default_factory=dict)  # column → property with its unit
    split: str = "random"  # random, formula (no formula in two splits), column (split_column), or a file of id,split
    split_column: str | None = None  # of the tables; values train, val, test
    train_on_unlisted: bool = False  # rows that a file of id,split does not name: train on them, or leave them out
    split_seed: int = 0
    val_share: float = 0.1
    test_share: float = 0.1
    exclude: tuple[str, ...] = ()  # tables: no formula of their rows that are not `train` is trained on
    max_train: int | None = None  # train on a random choice of so many
    max_val: int | None = 2000
    cache: str = "data/properties_cache"  # folder that keeps what was read
    workers: int | None = None
    loader: LoaderConfig = field(default_factory=LoaderConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.val_share + self.test_share < 1:
            raise ValueError(f"val_share + test_share must be in [0, 1), got {self.val_share + self.test_share}")
        if self.split == "column" and self.split_column is None:
            raise ValueError("split=column wants split_column, the name of the column")


def property_samples(data: PropertyDataConfig, texts: Texts) -> tuple[SampleSet, list[Rejected]]:
    """All rows that have a label, from the cache where it holds them, and those that cannot be used."""
    key = {
        "path": [[path, *_stamp(Path(path))] for path in data.path],
        "targets": dict(data.targets),
        "split_column": data.split_column,
        "texts": to_dict(texts),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    cache, reasons = Path(data.cache) / f"{digest}.parquet", Path(data.cache) / f"{digest}.rejected.json"
    if cache.is_file() and reasons.is_file():
        return read_samples(cache), [Rejected(*row) for row in json.loads(reasons.read_text(encoding="utf-8"))]
    names = tuple(dict.fromkeys(data.targets.values()))

    def labelled() -> list[CIFRecord]:
        records = read_sources(data.path, split_column=data.split_column, properties=data.targets)
        return [record for record in records if record.rejected_by or any(name in record.scores for name in names)]

    workers = available_cores() if data.workers is None else data.workers
    samples, rejected = make_samples(labelled(), names, texts, workers)
    if not len(samples):
        first = [
            f"; the first was rejected: {one.id}, {rejection(one.rejected_by, one.reason)}" for one in rejected[:1]
        ]
        raise ValueError(f"{', '.join(data.path)}: no row has a label in {', '.join(data.targets)}{''.join(first)}")
    write_samples(samples, cache)
    reasons.write_text(json.dumps(rejected), encoding="utf-8")
    return samples, rejected


def _stamp(path: Path) -> list[int]:
    """What changes with a table, or with any file of a folder: number, size and time of the last change"""
    files = [file.stat() for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return [len(files), sum(one.st_size for one in files), max((one.st_mtime_ns for one in files), default=0)]


def sample_splits(samples: SampleSet, data: PropertyDataConfig) -> np.ndarray:
    """(n,) "train", "val" or "test"; "" for what takes no part"""
    if data.split == "column":
        splits = list(samples.splits)
        if odd := Counter(split for split in splits if split not in (*SPLITS, "")):
            name, number = odd.most_common(1)[0]
            raise ValueError(
                f"column {data.split_column!r} says {name!r} in {number} rows; wanted {', '.join(SPLITS)}, or nothing"
            )
    elif data.split in ("random", "formula"):
        keys = samples.ids if data.split == "random" else samples.formulas
        shares = (1 - data.val_share - data.test_share, data.val_share, data.test_share)
        splits = split_at_random(keys, shares, data.split_seed)
    else:
        by_id = read_split_file(data.split if Path(data.split).exists() else resource_path(data.split))
        splits = [by_id.get(name, "train" if data.train_on_unlisted else "") for name in samples.ids]
    found = np.array(splits, dtype="U5")
    if data.exclude:
        kept_out = _held_out_formulas(data.exclude)
        hit = np.array([formula in kept_out for formula in samples.formulas])
        found[hit & (found == "train")] = ""
    return found


def _held_out_formulas(paths: Sequence[str]) -> set[str]:
    """Reduced formulas of all rows of the tables but those of their train split"""
    found: set[str] = set()
    for path in paths:
        table = pq.read_table(path, columns=["reduced_formula", "split"]).to_pydict()
        rows = zip(table["reduced_formula"], table["split"], strict=True)
        found |= {formula for formula, split in rows if split != "train"}
    return found
