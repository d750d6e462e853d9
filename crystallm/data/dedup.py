"""Duplicates: equal canonical texts, then structures that match, within one formula, group and formula units.

The corpus is cut into buckets by a hash of the formula, on disk, and one bucket is in memory at a time; beside it stand
the row and id of each duplicate found. Comparisons are bounded: a structure is held against at most `max_comparisons`
of those kept before it, the most similar first, so that a corpus of one formula alone (Carbon-24) stays linear.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from crystallm.asymmetric_unit import AsymmetricUnit, to_primitive
from crystallm.data.tables import write_table
from crystallm.matching import SAME, Reduced, fits, reduce_primitive
from crystallm.parallel import Failure, map_processes

BUCKET_STRUCTURES = 20_000  # some 100 MB
MAX_VOLUME_RATIO = 1.1  # StructureMatcher scales volumes away; a polymorph under pressure is no duplicate


@dataclass(frozen=True, slots=True)
class Entry:
    """One structure in the search for duplicates. Of a pair the one with the smaller (`priority`, `row`) stays."""

    row: int  # in the corpus
    text: str
    priority: int = 0

    @property
    def order(self) -> tuple[int, int]:
        return self.priority, self.row


@dataclass(frozen=True, slots=True)
class Family:
    """Structures that could be duplicates of each other: different texts, same formula, group and formula units."""

    entries: tuple[Entry, ...]  # in order


def duplicate_texts(entries: Sequence[Entry]) -> dict[int, int]:
    """Row of each entry whose text stands before → row of the first with that text."""
    first: dict[str, int] = {}
    found = {}
    for entry in sorted(entries, key=lambda e: e.order):
        kept = first.setdefault(entry.text, entry.row)
        if kept != entry.row:
            found[entry.row] = kept
    return found


def families(entries: Sequence[Entry]) -> Iterator[Family]:
    """Of entries with different texts. The first three lines of a text state formula, formula units and group."""
    by_head: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda e: e.order):
        by_head[tuple(entry.text.split("\n", 3)[:3])].append(entry)
    for members in by_head.values():
        if len(members) > 1:
            yield Family(tuple(members))


def matches_in_family(family: Family, max_comparisons: int) -> dict[int, int]:
    """Row of each entry that matches one kept before it → row of that one."""
    kept: list[_Candidate] = []
    found = {}
    for entry in family.entries:
        new = _Candidate(entry)
        near = [old for old in kept if abs(old.log_volume - new.log_volume) <= math.log(MAX_VOLUME_RATIO)]
        near.sort(key=lambda old: (old.letters != new.letters, abs(old.log_volume - new.log_volume)))
        same = next((old for old in near[:max_comparisons] if old.matches(new)), None)
        if same is None:
            kept.append(new)
        else:
            found[entry.row] = same.entry.row
    return found


class _Candidate:
    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.unit = AsymmetricUnit.from_text(entry.text)
        self.letters = [(site.symbol, site.letter) for site in self.unit.sites]
        crystal = self.unit.to_crystal()
        self.log_volume = math.log(crystal.volume_ang3)
        self._crystal = crystal

    @functools.cached_property
    def reduced(self) -> Reduced:
        return reduce_primitive(to_primitive(self._crystal, self.unit.group))

    def matches(self, other: _Candidate) -> bool:
        return fits(self.reduced, other.reduced, SAME)


# ------------------------------------------------------------------ the whole corpus


@dataclass
class _Bucket:
    """What the search has found among the structures of one bucket."""

    number: int
    ids: dict[int, str]  # by row
    duplicate_of: dict[int, int]  # row → row
    notes: Counter[str]


@dataclass(frozen=True)
class DuplicateSearch:
    """Finds the duplicates of a corpus that lies in chunk files. Each bucket's result is a file in `folder`, so that a
    killed search goes on. `given_split`: of a pair on two sides the one in val or test stays and the one in train goes.
    """

    folder: Path
    given_split: bool = False
    match_structures: bool = True
    max_comparisons: int = 20
    workers: int | None = None
    show_progress: bool = False

    def run(self, chunks: Sequence[Path]) -> tuple[pa.Table, list[str]]:
        """(row, kept_row, kept_id) of the duplicates, by row, and what is to be noted.

        Chunks are parquet files with the columns id, text, split, reduced_formula and rejected_by (null: still in).
        """
        self.folder.mkdir(exist_ok=True)
        n_rows = sum(pq.read_table(chunk, columns=["rejected_by"])["rejected_by"].null_count for chunk in chunks)
        n_buckets = max(1, -(-n_rows // BUCKET_STRUCTURES))
        results = [self._result(k, n_buckets) for k in range(n_buckets)]
        if todo := [k for k in range(n_buckets) if not results[k].exists()]:
            fill_buckets([self._bucket(k) for k in range(n_buckets)], chunks)
            self._search(todo, n_buckets)
        tables = [pq.read_table(path) for path in results]
        notes = Counter[str]()
        for table in tables:
            notes.update(json.loads(table.schema.metadata[b"notes"]))
        found = pa.concat_tables([table.replace_schema_metadata() for table in tables]).sort_by("row")
        return found, [f"{n:,} {name}" for name, n in notes.items() if n]

    def _bucket(self, number: int) -> Path:
        return self.folder / f"bucket-{number:05d}.parquet"

    def _result(self, number: int, n_buckets: int) -> Path:
        return self.folder / f"result-{number:05d}-of-{n_buckets:05d}.parquet"

    def _search(self, numbers: Sequence[int], n_buckets: int) -> None:
        """Buckets one after the other, their families in parallel; a result is written when its last family is in."""
        opened: deque[_Bucket] = deque()
        owners: deque[_Bucket] = deque()  # of the families under way

        def all_families() -> Iterator[Family]:
            for number in numbers:
                entries, bucket = self._read(number)
                opened.append(bucket)
                if self.match_structures:
                    for family in families([entry for entry in entries if entry.row not in bucket.duplicate_of]):
                        owners.append(bucket)
                        yield family

        def write_before(number: float) -> None:
            while opened and opened[0].number < number:
                bucket = opened.popleft()
                self._write(bucket, self._result(bucket.number, n_buckets))

        work = functools.partial(matches_in_family, max_comparisons=self.max_comparisons)
        matches = map_processes(work, all_families(), self.workers, 4)
        for result in tqdm(matches, desc="match", unit=" families", disable=not self.show_progress):
            bucket = owners.popleft()
            write_before(bucket.number)
            if isinstance(result, Failure):
                bucket.notes[f"families of similar structures could not be compared: {result}"] += 1
            else:
                bucket.duplicate_of.update(result)
        write_before(math.inf)

    def _read(self, number: int) -> tuple[list[Entry], _Bucket]:
        rows = pq.read_table(self._bucket(number)).to_pylist()
        entries = [Entry(row["row"], row["text"], int(self.given_split and row["split"] == "train")) for row in rows]
        notes = Counter[str]()
        if self.given_split:
            sides = defaultdict(set)
            for row in rows:
                sides[row["text"].split("\n", 1)[0]].add(row["split"])
            notes["formulas stand on more than one side of the split given"] = sum(len(s) > 1 for s in sides.values())
        return entries, _Bucket(number, {row["row"]: row["id"] for row in rows}, duplicate_texts(entries), notes)

    def _write(self, bucket: _Bucket, path: Path) -> None:
        rows = sorted(bucket.duplicate_of)
        kept: list[int] = []
        for row in rows:
            while row in bucket.duplicate_of:  # equal in text to one that itself matched an earlier one
                row = bucket.duplicate_of[row]
            kept.append(row)
        columns = {
            "row": pa.array(rows, pa.int64()),
            "kept_row": pa.array(kept, pa.int64()),
            "kept_id": pa.array([bucket.ids[row] for row in kept], pa.string()),
        }
        table = pa.table(columns)
        write_table(path, table.replace_schema_metadata({"notes": json.dumps(bucket.notes)}))


def fill_buckets(paths: Sequence[Path], chunks: Sequence[Path]) -> None:
    """Structures still in, with their row in the corpus, by a hash of their formula."""
    schema = pa.schema([("row", pa.int64()), ("id", pa.string()), ("text", pa.string()), ("split", pa.string())])
    with contextlib.ExitStack() as stack:  # without dictionaries and statistics an open file holds next to nothing
        files = [
            stack.enter_context(pq.ParquetWriter(path, schema, use_dictionary=False, write_statistics=False))
            for path in paths
        ]
        first = 0
        for chunk in chunks:
            table = pq.read_table(chunk, columns=["id", "text", "split", "reduced_formula", "rejected_by"])
            table = table.append_column("row", pa.array(np.arange(first, first + table.num_rows)))
            first += table.num_rows
            table = table.filter(pc.is_null(table["rejected_by"]))
            formulas = table["reduced_formula"].to_pylist()
            bucket = np.array([zlib.crc32(formula.encode()) % len(paths) for formula in formulas], dtype=np.int64)
            for k, file in enumerate(files):
                if (bucket == k).any():
                    file.write_table(table.filter(pa.array(bucket == k)).select(schema.names))
