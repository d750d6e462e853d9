"""Rows of parquet, CSV and JSON-lines tables → records, a few hundred at a time, so that memory stays flat."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from crystallm.data.files import MAX_FILE_BYTES, records_of_bytes, rejected, table_stem
from crystallm.records import CIFRecord

ID_COLUMNS = ("material_id", "id", "mp_id", "jid", "name")
# Column of a published table → the name the model knows. Values of other functionals are not in it on purpose.
DEFAULT_PROPERTIES = {
    "band_gap": "band_gap_ev",
    "formation_energy_per_atom": "formation_energy_ev_per_atom",
    "e_above_hull": "e_above_hull_ev_per_atom",
    "energy_above_hull": "e_above_hull_ev_per_atom",
    "band_gap_ev": "band_gap_ev",
    "formation_energy_ev_per_atom": "formation_energy_ev_per_atom",
    "e_above_hull_ev_per_atom": "e_above_hull_ev_per_atom",
}
BATCH_ROWS = 256


def with_default_properties(asked: Mapping[str, str]) -> dict[str, str]:
    """Columns asked for → names, and of DEFAULT_PROPERTIES those that would overrule none of them."""
    names = set(asked.values())
    return {**asked, **{c: n for c, n in DEFAULT_PROPERTIES.items() if c not in asked and n not in names}}


class NoColumnError(ValueError):
    """A table without a column that was asked for."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read. `id` None takes the first of ID_COLUMNS, else the row's number."""

    cif: str = "cif"
    id: str | None = None
    split: str | None = None
    properties: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_PROPERTIES))

    def wanted(self, names: Iterable[str]) -> list[str]:
        """The columns to read of those there. NoColumnError without the cif column, or one asked for by name."""
        names = list(names)
        if self.cif == "cif" and "cif" not in names and "text" in names:  # records.parquet of a preparation
            return replace(self, cif="text").wanted(names)
        for option, name in (("cif", self.cif), ("id", self.id), ("split", self.split)):
            if name is not None and name not in names:
                have = ", ".join(map(repr, names)) or "none"
                raise NoColumnError(f"no column {name!r} (--{option}-column names another); the table has {have}")
        extra = [self.id] if self.id else [name for name in ID_COLUMNS if name in names][:1]
        extra += [self.split] if self.split else []
        return list(dict.fromkeys([self.cif, *extra, *(name for name in self.properties if name in names)]))


def records_of_table(
    kind: str, stream: BinaryIO | Path, name: str, columns: Columns, source: str
) -> Iterator[CIFRecord]:
    """Records of the rows, one for each data block. A table that breaks off ends in one rejected record."""
    stem = table_stem(name)
    try:
        rows = {"parquet": _parquet_rows, "csv": _csv_rows, "jsonl": _jsonl_rows}[kind](stream, columns)
        for number, row in enumerate(rows):
            yield from _records_of_row(row, f"{stem}-{number}", columns, source)
    except NoColumnError as err:
        yield rejected(stem, "no_cif_column", f"{name}: {err}", source)
    except (csv.Error, pa.ArrowException) as err:
        yield rejected(stem, "bad_table", f"{name}: {err}", source)


def column_names(kind: str, stream: BinaryIO | Path) -> list[str]:
    """Of JSON lines, the keys of the first."""
    if kind == "parquet":
        return list(pq.read_schema(stream).names)
    assert not isinstance(stream, Path)
    if kind == "csv":
        return list(csv.DictReader(_lines(stream)).fieldnames or [])
    row = json.loads(stream.readline(MAX_FILE_BYTES))
    return list(row) if isinstance(row, dict) else []


def _records_of_row(
    row: dict[str, Any] | tuple[str, str], fallback_id: str, columns: Columns, source: str
) -> Iterator[CIFRecord]:
    if isinstance(row, tuple):
        yield rejected(fallback_id, *row, source)
        return
    names = [columns.id] if columns.id else ID_COLUMNS
    record_id = next((str(value) for name in names if (value := _text(row.get(name))) not in (None, "")), fallback_id)
    canonical = columns.cif not in row  # a preparation's records.parquet: see Columns.wanted
    cif = row["text"] if canonical else row[columns.cif]
    data = cif if isinstance(cif, bytes) else str(cif or "").encode("utf-8", "surrogateescape")
    scores: dict[str, float] = {}
    for name, target in columns.properties.items():
        if target not in scores and (value := _number(row.get(name))) is not None:
            scores[target] = value
    split = str(_text(row.get(columns.split)) or "") if columns.split else ""
    for record in records_of_bytes(record_id, data, source):
        provenance = {"source": source, **({"split": split} if split else {})}
        yield replace(
            record,
            scores=record.scores | scores,
            provenance=record.provenance | provenance,
            text=record.cif if canonical else record.text,
        )


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number  # an infinite one is a mistake that whoever learns from it reports


def _parquet_rows(stream: BinaryIO | Path, columns: Columns) -> Iterator[dict[str, Any]]:
    """Pages of a row group are decoded as they are needed (`pre_buffer` would hold the whole group)."""
    with pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20) as file:
        wanted = columns.wanted(file.schema_arrow.names)
        for batch in file.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
            # Text as bytes: one cell that is no UTF-8 must cost its row, not the table.
            arrays = [a.cast(_binary(a.type)) if _is_text(a.type) else a for a in batch.columns]
            yield from pa.RecordBatch.from_arrays(arrays, names=batch.schema.names).to_pylist()


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _binary(kind: pa.DataType) -> pa.DataType:
    return pa.large_binary() if pa.types.is_large_string(kind) else pa.binary()


def _csv_rows(stream: BinaryIO | Path, columns: Columns) -> Iterator[dict[str, Any]]:
    assert not isinstance(stream, Path)
    csv.field_size_limit(max(csv.field_size_limit(), 3 * MAX_FILE_BYTES))  # the default of 131,072 is a 500-atom CIF
    reader = csv.DictReader(_lines(stream))
    wanted = columns.wanted(reader.fieldnames or [])
    for row in reader:
        yield {name: row[name] for name in wanted}


def _lines(stream: BinaryIO) -> Iterator[str]:
    """Text in which a byte that is no UTF-8 survives as a surrogate, to cost its own row. Long lines come in pieces."""
    line = stream.readline(MAX_FILE_BYTES).removeprefix(b"\xef\xbb\xbf")
    while line:
        yield line.decode("utf-8", "surrogateescape")
        line = stream.readline(MAX_FILE_BYTES)


def _jsonl_rows(stream: BinaryIO | Path, columns: Columns) -> Iterator[dict[str, Any] | tuple[str, str]]:
    assert not isinstance(stream, Path)
    limit = 3 * MAX_FILE_BYTES
    while line := stream.readline(limit + 1):
        if len(line) > limit:
            yield "too_large", f"a line of more than {limit:,} bytes"
            while line and not line.endswith(b"\n"):
                line = stream.readline(limit)
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as err:
            yield "bad_json", str(err)
            continue
        if not isinstance(row, dict) or columns.cif not in row:
            have = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            yield "no_cif_column", f"no key {columns.cif!r} (--cif-column names another) among {have}"
        else:
            yield row


def write_table(path: Path, table: pa.Table) -> None:
    with replacing_table(path, table.schema) as file:
        file.write_table(table)


@contextlib.contextmanager
def replacing_table(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A parquet file that is in its place when all of it is written."""
    part = path.with_name(f".{path.name}.part")
    numbers = [field.name for field in schema if not pa.types.is_string(field.type)]  # else whole texts are statistics
    with pq.ParquetWriter(part, schema, compression="zstd", write_statistics=numbers) as file:
        yield file
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(path)
