"""A corpus → canonical records and token shards, in three steps that each survive a kill.

    clean   text → canonical text, in parallel; each chunk of rows becomes a file in the work folder, or none does
    dedup   duplicates by bucket of formulas; each bucket's result is a file in the work folder
    write   OUT/records.parquet, OUT/rejected.parquet, the shards, and last OUT/meta.json; a property that the
            structure kept has no value of is taken from its duplicates

The work folder is OUT/.crystallm_work. Run again with the same sources and options, it goes on where it stopped.
kept + rejected by reason = read, asserted.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from crystallm.data.clean import CleanOptions, CleanRecord, clean_record, formula_of
from crystallm.data.dedup import DuplicateSearch
from crystallm.data.files import ARCHIVE_KINDS, kind_of
from crystallm.data.readers import check_sources, count_rows, read_sources, table_columns
from crystallm.data.shards import META, ShardWriter, read_meta, write_atomically, write_meta
from crystallm.data.split import SPLIT_NAMES, split_of
from crystallm.data.tables import DEFAULT_PROPERTIES, replacing_table, write_table
from crystallm.output import check_is_folder, spare_inputs
from crystallm.parallel import Failure, map_processes
from crystallm.records import CIFRecord
from crystallm.rejections import Rejections
from tokenizer import CIFTokenizer
from tokenizer.vocabulary import PROPERTY_NAMES

WORK_FOLDER, PLAN = ".crystallm_work", "plan.txt"
RESULTS = ("records.parquet", "rejected.parquet")
SHARDS = ("tokens_*.npy", "offsets_*.npy", "properties_*.npz", "ids_*.txt")
COLUMNS = {  # of the result, properties aside
    **dict.fromkeys(("id", "source", "text", "reduced_formula"), pa.string()),
    **dict.fromkeys(("space_group_number", "n_atoms", "n_sites", "n_tokens"), pa.int32()),
    **dict.fromkeys(("split", "rejected_by", "reason"), pa.string()),
}
WORK_FORMAT = 2  # raised when what a work folder holds changes its meaning
# Of an excluded source these would let through more than one row.
UNREAD_SOURCE = {"no_cif_column", "bad_table", "bad_archive", "unreadable", "nested", "not_a_file"}
ITEM_TIMEOUT_S = 60.0  # the median structure takes 0.005


@dataclass(frozen=True)
class PrepareConfig:
    paths: tuple[str, ...]  # folders, CIFs, tables, archives
    out: str
    exclude: tuple[str, ...] = ()  # sources whose formulas are kept out
    cif_column: str = "cif"
    id_column: str | None = None  # None: material_id, id, … or the row's number
    split_column: str | None = None  # None: by a hash of the formula
    properties: dict[str, str] = field(default_factory=lambda: dict(DEFAULT_PROPERTIES))  # column → name
    val_share: float = 0.05
    test_share: float = 0.0
    seed: int = 0
    max_sites: int | None = None  # in the primitive cell
    limit: int | None = None  # rows read
    check_round_trip: bool = False
    match_structures: bool = True  # beyond equal texts
    keep_duplicates: bool = False  # for a benchmark whose test rows repeat as its train rows do
    max_comparisons: int = 20  # of one structure with those kept before it
    vocabulary: str = "cif"
    chunk_rows: int = 1024
    workers: int | None = None  # None: one a core; 0: this process
    keep_work: bool = False
    overwrite: bool = False  # what another call made of this folder
    required: tuple[str, ...] = ()  # names of properties of which some structure must have a value

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("paths must name at least one folder, file or archive")
        if self.val_share < 0 or self.test_share < 0 or self.val_share + self.test_share >= 1:
            raise ValueError(
                f"val_share and test_share must leave some to train, got {self.val_share}, {self.test_share}"
            )
        if self.chunk_rows < 1:
            raise ValueError(f"chunk_rows must be at least 1, got {self.chunk_rows}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 row, got {self.limit}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be 0 (this process) or more, got {self.workers}")
        if taken := [name for name in self.properties.values() if name in ("", *COLUMNS)]:
            raise ValueError(f"a property cannot be named {taken[0]!r}, a column of the result or no name")

    @property
    def property_names(self) -> list[str]:
        return list(dict.fromkeys([*PROPERTY_NAMES, *self.properties.values()]))


class PrepareError(ValueError):
    """What cannot be prepared as asked: the output folder is not free, or the excluded sources cannot be read."""


@dataclass(frozen=True)
class PrepareResult:
    """What meta.json holds, as counts."""

    n_read: int
    n_kept: int
    rejected_by: dict[str, int]
    counts: dict[str, dict[str, int]]  # by split: structures, tokens, longest
    warnings: tuple[str, ...] = ()
    examples: dict[str, str] = field(default_factory=dict)  # by reason: what was rejected first
    labels: dict[str, int] = field(default_factory=dict)  # by property: structures with a value
    unlabelled: dict[str, str] = field(default_factory=dict)  # required properties without any value, and why

    @property
    def failure(self) -> str | None:
        """Why there is nothing to train on as it was asked for."""
        if not self.n_kept:
            return "no structure was kept"
        return f"no structure has a value of {', '.join(self.unlabelled)}" if self.unlabelled else None

    def __str__(self) -> str:
        lines = [f"{'read':<22}{self.n_read:>10,}"]
        for name, n in sorted(self.rejected_by.items(), key=lambda item: -item[1]):
            lines.append(f"  {name:<20}{n:>10,}   {self.examples.get(name, '')}".rstrip())
        lines += [f"{'kept':<22}{self.n_kept:>10,}"]
        lines += [
            f"  {split:<20}{c['structures']:>10,}   {c['tokens']:,} tokens, "
            f"{c['tokens'] / max(1, c['structures']):.1f} a structure, longest {c['longest']:,}"
            for split, c in self.counts.items()
        ]
        for name, n in self.labels.items():
            why = f"; {self.unlabelled[name]}" if name in self.unlabelled else ""
            lines.append(f"{name}: {n:,} of {self.n_kept:,} have a value{why}")
        return "\n".join([*lines, *(f"note: {text}" for text in self.warnings)])


def prepare(config: PrepareConfig, show_progress: bool = True) -> PrepareResult:
    """Run all steps, or what is left of them. The finished result of the same call is left as it is."""
    check_sources((*config.paths, *config.exclude))
    out, plan = Path(config.out), _plan(config)
    work = out / WORK_FOLDER
    _check_out(out, (*config.paths, *config.exclude))
    if (out / META).exists() and read_meta(out).get("plan") == plan:
        return _result(read_meta(out), config)
    _claim(out, plan, config.overwrite)
    try:
        warnings = _exclude(config, work, show_progress)
    except PrepareError:
        shutil.rmtree(work)  # nothing is begun, so another call need not overwrite it
        raise
    chunks = _clean(config, work, show_progress)
    search = DuplicateSearch(
        work / "dedup",
        given_split=config.split_column is not None,
        match_structures=config.match_structures and not config.keep_duplicates,
        max_comparisons=config.max_comparisons,
        workers=config.workers,
        show_progress=show_progress,
    )
    duplicates, notes = search.run(chunks)
    if config.keep_duplicates:
        duplicates = duplicates.slice(0, 0)
    meta = _write_result(config, out, chunks, duplicates, show_progress)
    if "val" not in meta["counts"] and meta["n_kept"]:
        column = config.split_column
        cure = "a larger --val-share" if column is None else f"rows with val in column {column!r}"
        notes = [*notes, f"no validation structures, without which nothing is trained: prepare again with {cure}"]
    meta |= {"plan": plan, "config": asdict(config), "warnings": [*warnings, *notes]}
    write_meta(out, meta)
    if not config.keep_work:
        shutil.rmtree(work)
    return _result(meta, config)


def _result(meta: Mapping[str, Any], config: PrepareConfig) -> PrepareResult:
    labels = {name: n for name, n in meta.get("labels", {}).items() if n or name in config.required}
    return PrepareResult(
        meta["n_read"],
        meta["n_kept"],
        meta["rejected_by"],
        meta["counts"],
        tuple(meta["warnings"]),
        meta.get("examples", {}),
        labels,
        _why_unlabelled(config, [name for name, n in labels.items() if not n]),
    )


def _why_unlabelled(config: PrepareConfig, names: Sequence[str]) -> dict[str, str]:
    there = table_columns(config.paths) if names else []
    reasons = {}
    for name in names:
        columns = [column for column, target in config.properties.items() if target == name]
        if found := [column for column in columns if column in there]:
            reasons[name] = f"no structure kept has a number in column {', '.join(map(repr, found))}"
        else:
            have = f"there are {', '.join(map(repr, there))}" if there else "there is no table"
            reasons[name] = f"no column {' or '.join(map(repr, columns))}; {have}"
    return reasons


# ------------------------------------------------------------------ what is being prepared


def _plan(config: PrepareConfig) -> str:
    """A digest of all that the result depends on: the files as they stand, the options, the vocabulary."""
    options = asdict(config)
    for name in ("out", "workers", "keep_work", "overwrite", "required"):
        del options[name]
    files = {path: _stamp(Path(path)) for path in (*config.paths, *config.exclude)}
    parts = [WORK_FORMAT, options, files, CIFTokenizer(config.vocabulary).hash]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _stamp(path: Path) -> str:
    """Changes when the file, or any file of the folder, changes in size or time."""
    digest = hashlib.sha256()
    names = [path]
    if path.is_dir():
        names = [Path(parent, name) for parent, _, files in sorted(os.walk(path)) for name in sorted(files)]
    for name in names:
        stat = name.lstat()
        digest.update(f"{os.fsencode(name.name)!r} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _check_out(out: Path, inputs: Sequence[str]) -> None:
    """Nothing that is read, and nothing that no preparation made, is ever replaced."""
    try:
        check_is_folder(out)
        spare_inputs(out, inputs)
    except ValueError as err:
        raise PrepareError(str(err)) from None
    if _has_shards(out) or (out / WORK_FOLDER / PLAN).exists():
        return
    for pattern in (META, *RESULTS, *SHARDS):
        if foreign := next(out.glob(pattern), None):
            raise PrepareError(f"{out} holds {foreign.name}, which no preparation made here: choose another folder")


def _has_shards(out: Path) -> bool:
    try:
        return "vocabulary_hash" in read_meta(out)
    except ValueError:  # none, or somebody else's file of that name
        return False


def _claim(out: Path, plan: str, overwrite: bool) -> None:
    """The folder is ours from here on, unless it holds what another call made."""
    file = out / WORK_FOLDER / PLAN
    finished = (out / META).exists()
    other = finished or (file.exists() and file.read_text() != plan)
    if other and not overwrite:
        what = "another preparation" if finished else "the beginning of another"
        raise PrepareError(f"{out} holds {what} (its sources or options differ): choose another folder, or overwrite")
    if other or not file.exists():  # without a plan, what a call that died here had left of another's work
        shutil.rmtree(file.parent, ignore_errors=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, plan.encode())
    if other:  # META last: a call that dies before leaves a folder that is still known as ours
        for pattern in (*SHARDS, META):
            for old in out.glob(pattern):
                old.unlink()


# ------------------------------------------------------------------ formulas to keep out


def _exclude(config: PrepareConfig, work: Path, show_progress: bool) -> list[str]:
    """Writes the formulas of the excluded sources; says what of them could not be read."""
    file = work / "excluded.json"
    if not file.exists():
        formulas, unread, without = set[str](), 0, dict.fromkeys(config.exclude)
        under_way: deque[str] = deque()

        def rows() -> Iterator[CIFRecord]:
            for path in config.exclude:
                for record in _whole_source(path, config.cif_column):
                    under_way.append(path)
                    yield record

        results = map_processes(formula_of, rows(), config.workers, 64, timeout_s=ITEM_TIMEOUT_S) if without else ()
        hidden = not (show_progress and config.exclude)
        for formula in tqdm(results, desc="exclude", total=count_rows(config.exclude), disable=hidden):
            path = under_way.popleft()
            if isinstance(formula, str):
                formulas.add(formula)
                without.pop(path, None)
            else:
                unread += 1
        if without:
            raise PrepareError(f"--exclude {', '.join(without)}: no formula could be read: nothing would be kept out")
        write_atomically(file, json.dumps({"formulas": sorted(formulas), "unread": unread}).encode())
    unread = json.loads(file.read_bytes())["unread"]
    return [f"{unread} excluded structures could not be read, so their formulas are not kept out"] if unread else []


def _whole_source(path: str, cif_column: str) -> Iterator[CIFRecord]:
    """PrepareError where more than single rows cannot be read: what they hold would not be kept out."""
    for record in read_sources([path], cif_column):
        by = record.rejected_by
        archive = by == "too_large" and kind_of(str(record.provenance.get("source", ""))) in ARCHIVE_KINDS
        if by in UNREAD_SOURCE or archive:
            raise PrepareError(f"--exclude {path}: {by}, {record.reason}")
        yield record


# ------------------------------------------------------------------ clean


def _clean(config: PrepareConfig, work: Path, show_progress: bool) -> list[Path]:
    """The chunk files, made as far as they are not there yet."""
    folder = work / "clean"
    folder.mkdir(exist_ok=True)
    done = folder / "done"
    chunks = sorted(folder.glob("[0-9]*.parquet"))
    assert [chunk.stem for chunk in chunks] == [f"{k:08d}" for k in range(len(chunks))], f"{folder}: a chunk is missing"
    if done.exists():
        return chunks
    skip = len(chunks) * config.chunk_rows
    total = count_rows(config.paths)
    total = config.limit if total is None or (config.limit and config.limit < total) else total
    options = CleanOptions(
        config.vocabulary,
        config.max_sites,
        frozenset(json.loads((work / "excluded.json").read_bytes())["formulas"]),
        config.check_round_trip,
    )
    records = read_sources(
        config.paths,
        config.cif_column,
        id_column=config.id_column,
        split_column=config.split_column,
        properties=config.properties,
    )
    records = itertools.islice(records, skip, config.limit)
    rows = _clean_records(records, options, config.workers)
    schema = _clean_schema(config)
    bar = tqdm(desc="clean", total=total, initial=skip, unit=" structures", disable=not show_progress)
    while part := list(itertools.islice(rows, config.chunk_rows)):
        path = folder / f"{len(chunks):08d}.parquet"
        write_table(path, pa.Table.from_pylist([_clean_row(row, config) for row in part], schema))
        chunks.append(path)
        bar.update(len(part))
    bar.close()
    write_atomically(done, b"")
    return chunks


def _clean_records(records: Iterable[CIFRecord], options: CleanOptions, workers: int | None) -> Iterator[CleanRecord]:
    """In order. What fails or dies in a worker is a rejected record too."""
    under_way: deque[CIFRecord] = deque()

    def remembered() -> Iterator[CIFRecord]:
        for record in records:
            under_way.append(replace(record, cif=""))
            yield record

    work = functools.partial(clean_record, options=options)
    for result in map_processes(work, remembered(), workers, 16, timeout_s=ITEM_TIMEOUT_S):
        record = under_way.popleft()
        if isinstance(result, Failure):
            by = "timeout" if result.error.startswith("timeout") else "failed"
            result = CleanRecord(
                record.id, str(record.provenance.get("source", "")), rejected_by=by, reason=str(result)
            )
        yield result


def _clean_schema(config: PrepareConfig) -> pa.Schema:
    return pa.schema([*COLUMNS.items(), *((name, pa.float64()) for name in config.property_names)])


def _clean_row(record: CleanRecord, config: PrepareConfig) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in CleanRecord.__slots__ if name != "properties"}
    if config.split_column is None and record.rejected_by is None:
        row["split"] = split_of(record.reduced_formula, config.seed, config.val_share, config.test_share)
    elif record.rejected_by is None:
        row["split"] = SPLIT_NAMES.get(record.split.strip().lower(), "")
        if not row["split"]:
            reason = f"{record.split!r} in column {config.split_column!r}; wanted train, val or test"
            row |= {"rejected_by": "no_split", "reason": reason}
    return row | {name: record.properties.get(name) for name in config.property_names}


# ------------------------------------------------------------------ write


def _write_result(
    config: PrepareConfig, out: Path, chunks: Sequence[Path], duplicates: pa.Table, show_progress: bool
) -> dict[str, Any]:
    """The files of the result but for meta.json, whose content is returned."""
    tokenizer = CIFTokenizer(config.vocabulary)
    duplicate_rows = duplicates["row"].to_numpy()
    names = config.property_names
    kept_schema = pa.schema([f for f in _clean_schema(config) if f.name not in ("rejected_by", "reason")])
    rejected_schema = pa.schema([(name, COLUMNS[name]) for name in ("id", "source", "rejected_by", "reason")])
    rejections, labels = Rejections(), dict.fromkeys(config.properties.values(), 0)
    known = _values_of_duplicates(chunks, duplicates, list(labels))
    splits: dict[str, ShardWriter] = {}
    n_read = n_kept = 0
    with (
        replacing_table(out / RESULTS[0], kept_schema) as kept_file,
        replacing_table(out / RESULTS[1], rejected_schema) as rejected_file,
        contextlib.ExitStack() as stack,
    ):
        for chunk in tqdm(chunks, desc="write", disable=not show_progress):
            table = pq.read_table(chunk)
            i, j = np.searchsorted(duplicate_rows, [n_read, n_read + table.num_rows])
            table = _fill(table, {row: known[n_read + row] for row in range(table.num_rows) if n_read + row in known})
            table = _mark_duplicates(table, duplicate_rows[i:j] - n_read, duplicates["kept_id"][i:j].to_pylist())
            n_read += table.num_rows
            is_kept = pc.is_null(table["rejected_by"])
            kept, rejected = table.filter(is_kept), table.filter(pc.invert(is_kept))
            n_kept += kept.num_rows
            for row in rejected.select(["id", "rejected_by", "reason"]).to_pylist():
                what = "the same crystal as " if row["rejected_by"] == "duplicate" else ""
                rejections.add(row["id"], row["rejected_by"], what + row["reason"])
            for name in labels:
                labels[name] += kept.num_rows - kept[name].null_count
            kept_file.write_table(kept.select(kept_schema.names))
            rejected_file.write_table(rejected.select(rejected_schema.names))
            rows = kept.select(["id", "split", *names]).to_pylist()
            for row, ids in zip(rows, tokenizer.encode_batch(kept["text"].to_pylist()), strict=True):
                if row["split"] not in splits:
                    splits[row["split"]] = stack.enter_context(ShardWriter(out, row["split"], names))
                splits[row["split"]].add(row["id"], ids, {n: row[n] for n in names if row[n] is not None})
    assert n_kept + rejections.counts.total() == n_read, f"{n_kept} kept + {rejections.counts} is not {n_read} read"
    assert n_kept == sum(len(w) for w in splits.values())
    return {
        "vocabulary": tokenizer.name,
        "vocabulary_hash": tokenizer.hash,
        "source": [str(path) for path in config.paths],
        "counts": {split: splits[split].counts() for split in sorted(splits)},
        "n_read": n_read,
        "n_kept": n_kept,
        "rejected_by": dict(rejections.counts.most_common()),
        "examples": rejections.examples,
        "labels": labels,
    }


def _values_of_duplicates(
    chunks: Sequence[Path], duplicates: pa.Table, names: Sequence[str]
) -> dict[int, dict[str, float]]:
    """By row that is kept: the values that its duplicates have, of each property the first in order."""
    rows, kept_rows = duplicates["row"].to_numpy(), duplicates["kept_row"].to_numpy()
    found: dict[int, dict[str, float]] = {}
    first = 0
    for chunk in chunks if len(rows) and names else ():
        table = pq.read_table(chunk, columns=list(names))
        i, j = np.searchsorted(rows, [first, first + table.num_rows])
        for kept_row, values in zip(kept_rows[i:j].tolist(), table.take(rows[i:j] - first).to_pylist(), strict=True):
            there = {name: value for name, value in values.items() if value is not None}
            if there:
                found[kept_row] = there | found.get(kept_row, {})
        first += table.num_rows
    return found


def _fill(table: pa.Table, values: Mapping[int, Mapping[str, float]]) -> pa.Table:
    """With these values, by row and name, where the table has none."""
    for name in {name: None for there in values.values() for name in there}:
        column = table[name].to_pylist()
        for row, there in values.items():
            column[row] = there.get(name) if column[row] is None else column[row]
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(column, pa.float64()))
    return table


def _mark_duplicates(table: pa.Table, rows: np.ndarray, kept_ids: Sequence[str]) -> pa.Table:
    if not len(rows):
        return table
    by, reason = table["rejected_by"].to_pylist(), table["reason"].to_pylist()
    for row, kept_id in zip(rows.tolist(), kept_ids, strict=True):
        assert by[row] is None
        by[row], reason[row] = "duplicate", kept_id
    for name, values in (("rejected_by", by), ("reason", reason)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return table
