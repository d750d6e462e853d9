"""What the predictor learns from and answers for: crystals, their descriptions, and labels, in flat arrays.

Reading and describing a corpus takes milliseconds a crystal, so it is done once and kept in a parquet file.
"""

from __future__ import annotations

import functools
import gzip
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crystallm.asymmetric_unit import CanonicalError
from crystallm.canonical import canonicalize
from crystallm.cif import CIFError, parse_cif
from crystallm.crystal import Crystal
from crystallm.parallel import Failure, map_processes
from crystallm.properties.description import describe
from crystallm.records import CIFRecord


@dataclass(frozen=True, eq=False)
class SampleSet:
    """n samples. A text that was not asked for is "", a label that is not known is nan."""

    ids: list[str]
    lattices: np.ndarray  # (n, 3, 3) float64, rows, Å
    n_atoms: np.ndarray  # (n,) int64
    frac_coords: np.ndarray  # (N, 3) float64
    atomic_numbers: np.ndarray  # (N,) int64
    formulas: list[str]  # reduced
    splits: list[str]  # as the source has it, or ""
    descriptions: list[str]  # Description.to_json()
    canonical_texts: list[str]
    targets: Mapping[str, np.ndarray]  # (n,) float64 by property name

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """(n + 1,): where the atoms of each sample begin"""
        return np.concatenate([[0], np.cumsum(self.n_atoms)])

    def crystal(self, index: int) -> Crystal:
        atoms = slice(self.starts[index], self.starts[index + 1])
        return Crystal(self.lattices[index], self.frac_coords[atoms], self.atomic_numbers[atoms])

    def some(self, places: np.ndarray) -> SampleSet:
        """Those at `places`, in this order."""
        counts = self.n_atoms[places]
        first = self.starts[:-1][places] - (np.cumsum(counts) - counts)
        atoms = np.repeat(first, counts) + np.arange(counts.sum())

        def chosen(values: list[str]) -> list[str]:
            return [values[place] for place in places]

        return SampleSet(
            ids=chosen(self.ids),
            lattices=self.lattices[places],
            n_atoms=counts,
            frac_coords=self.frac_coords[atoms],
            atomic_numbers=self.atomic_numbers[atoms],
            formulas=chosen(self.formulas),
            splits=chosen(self.splits),
            descriptions=chosen(self.descriptions),
            canonical_texts=chosen(self.canonical_texts),
            targets={name: values[places] for name, values in self.targets.items()},
        )

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """(n, n_targets); nan where unknown"""
        if unknown := [name for name in names if name not in self.targets]:
            raise ValueError(f"no property {unknown[0]!r}; the samples have {', '.join(self.targets) or 'none'}")
        return np.stack([self.targets[name] for name in names], axis=1)


@dataclass(frozen=True)
class Texts:
    """Which texts the samples get."""

    description: bool = False
    canonical: bool = False


class Rejected(NamedTuple):
    place: int  # among the records
    id: str
    reason: str
    rejected_by: str = "error"


def make_samples(
    records: Iterable[CIFRecord], names: Sequence[str], texts: Texts | None = None, workers: int | None = None
) -> tuple[SampleSet, list[Rejected]]:
    """The samples of records whose `scores` hold labels, in their order, and the records that are none.

    A record without any label stays, for prediction; one that is no crystal or has an infinite label does not.
    """
    read = functools.partial(_read, texts=texts or Texts())
    rows: list[_Row] = []
    kept: list[CIFRecord] = []
    rejected: list[Rejected] = []
    given = list(records)
    for place, (record, result) in enumerate(zip(given, map_processes(read, given, workers=workers), strict=True)):
        if isinstance(result, Failure):
            rejected.append(Rejected(place, record.id, str(result)))
        elif isinstance(result, tuple):
            rejected_by, reason = result
            rejected.append(Rejected(place, record.id, reason, rejected_by))
        else:
            rows.append(result)
            kept.append(record)
    labels = {name: np.array([record.scores.get(name, np.nan) for record in kept]) for name in names}
    crystals = [row.crystal for row in rows]
    samples = SampleSet(
        ids=[record.id for record in kept],
        lattices=np.stack([c.lattice for c in crystals]) if crystals else np.zeros((0, 3, 3)),
        n_atoms=np.array([c.n_atoms for c in crystals], dtype=np.int64),
        frac_coords=np.concatenate([np.zeros((0, 3)), *(c.frac_coords for c in crystals)]),
        atomic_numbers=np.concatenate([np.zeros(0, dtype=np.int64), *(c.atomic_numbers for c in crystals)]),
        formulas=[c.reduced_formula for c in crystals],
        splits=[str(record.provenance.get("split", "")) for record in kept],
        descriptions=[row.description for row in rows],
        canonical_texts=[row.canonical for row in rows],
        targets=labels,
    )
    return samples, rejected


@dataclass(frozen=True)
class _Row:
    crystal: Crystal
    description: str
    canonical: str


def _read(record: CIFRecord, texts: Texts) -> _Row | tuple[str, str]:
    """A sample's row, or what rejects the record and why"""
    if record.rejected_by is not None:
        return record.rejected_by, record.reason
    for name, value in record.scores.items():
        if np.isinf(value):
            return "bad_label", f"{name} is {value}, wanted a finite number, or none where it is unknown"
    try:
        crystal = record.crystal or parse_cif(record.cif or record.text)[0]
        canonical = canonicalize(crystal).to_text() if texts.canonical else ""
    except (CIFError, CanonicalError) as err:
        return err.reason, err.message
    return _Row(crystal, describe(crystal).to_json() if texts.description else "", canonical)


# ---------------------------------------------------------------- on disk


def write_samples(samples: SampleSet, path: Path) -> None:
    """One parquet file, written whole or not at all."""

    def lists(values: np.ndarray, size: int) -> pa.Array:
        offsets = pa.array(samples.starts * size, pa.int64())
        return pa.LargeListArray.from_arrays(offsets, pa.array(values.ravel()))

    columns = {
        "id": samples.ids,
        "lattice_ang": pa.FixedSizeListArray.from_arrays(pa.array(samples.lattices.ravel()), 9),
        "frac_coords": lists(samples.frac_coords, 3),
        "atomic_numbers": lists(samples.atomic_numbers, 1),
        "reduced_formula": samples.formulas,
        "split": samples.splits,
        "description": samples.descriptions,
        "canonical": samples.canonical_texts,
        **{f"label.{name}": values for name, values in samples.targets.items()},
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), partial, compression="zstd")
    partial.replace(path)


def read_samples(path: Path) -> SampleSet:
    table = pq.read_table(path).combine_chunks()

    def flat(name: str) -> np.ndarray:
        column = table[name].chunk(0) if table.num_rows else table[name].combine_chunks()
        return np.array(column.flatten())

    def words(name: str) -> list[str]:
        return table[name].to_pylist()

    frac = flat("frac_coords").reshape(-1, 3)
    n_atoms = np.diff(np.array(table["atomic_numbers"].chunk(0).offsets)) if table.num_rows else np.zeros(0)
    return SampleSet(
        ids=words("id"),
        lattices=flat("lattice_ang").reshape(-1, 3, 3),
        n_atoms=n_atoms.astype(np.int64),
        frac_coords=frac,
        atomic_numbers=flat("atomic_numbers").astype(np.int64),
        formulas=words("reduced_formula"),
        splits=words("split"),
        descriptions=words("description"),
        canonical_texts=words("canonical"),
        targets={
            name.removeprefix("label."): np.array(table[name].to_numpy(), dtype=np.float64)
            for name in table.column_names
            if name.startswith("label.")
        },
    )


# ---------------------------------------------------------------- splits

SPLITS = ("train", "val", "test")


def split_at_random(keys: Sequence[str], shares: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0) -> list[str]:
    """train, val or test for each key; equal keys (formulas) go together, and their order does not matter.

    Each split takes whole keys in a drawn order until it has its share of the samples.
    """
    counts = Counter(keys)
    distinct = sorted(counts)
    order = np.random.default_rng([seed, 0x5B117]).permutation(len(distinct))
    ends = np.cumsum(shares) / np.sum(shares) * len(keys)
    of_key, taken = {}, 0
    for place in order:
        of_key[distinct[place]] = SPLITS[min(int(np.searchsorted(ends, taken, side="right")), len(SPLITS) - 1)]
        taken += counts[distinct[place]]
    return [of_key[key] for key in keys]


def read_split_file(path: str | Path) -> dict[str, str]:
    """id -> train, val or test, from lines `id,split` under such a header; ValueError names a line that is none."""
    data = Path(path).read_bytes()
    text = (gzip.decompress(data) if str(path).endswith(".gz") else data).decode("utf-8")
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, _, split = line.strip().rpartition(",")
        if number == 1 and split == "split":
            continue
        if split not in SPLITS or not name:
            raise ValueError(f"{path}, line {number}: got {line.strip()!r}, wanted id,train or id,val or id,test")
        found[name] = split
    return found


def write_split_file(path: str | Path, splits: Mapping[str, str]) -> None:
    text = "id,split\n" + "".join(f"{name},{split}\n" for name, split in sorted(splits.items()))
    Path(path).write_bytes(gzip.compress(text.encode(), mtime=0))
