"""Corpora as people have them → a stream of records, in the same order and with the same ids each time.

    for record in read_sources(["materials_project.parquet", "my_cifs/", "more.tar.gz"]):
        if record.rejected_by: ...   # "too_large", "binary", "unsafe_path", "bad_archive": with a sentence in .reason

Nothing is parsed here beyond what tells one data block from the next; nothing is lost here either: what cannot be read
is one rejected record. Property columns arrive in `record.scores`, split and source file in `record.provenance`.
"""

from __future__ import annotations

import contextlib
import logging
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from crystallm.data.archives import ArchiveError, Member, open_packed, tar_members, zip_members
from crystallm.data.files import (
    ARCHIVE_KINDS,
    KINDS,
    STRUCTURE_KINDS,
    TABLE_KINDS,
    id_of,
    is_hidden,
    kind_of,
    printable,
    records_of_file,
    rejected,
)
from crystallm.data.tables import DEFAULT_PROPERTIES, Columns, column_names, records_of_table
from crystallm.records import CIFRecord, read_records

logger = logging.getLogger(__name__)

# What the libraries below raise on damaged input, tried by flipping bytes. A mistake of ours is not among them.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)


def read_sources(
    paths: Iterable[str | Path],
    cif_column: str = "cif",
    *,
    id_column: str | None = None,
    split_column: str | None = None,
    properties: Mapping[str, str] | None = None,
) -> Iterator[CIFRecord]:
    """Records of all the paths, one after the other. FileNotFoundError as in check_sources, before any is read."""
    all_paths = [Path(path) for path in paths]
    check_sources(all_paths)
    columns = Columns(
        cif_column, id_column, split_column, dict(DEFAULT_PROPERTIES if properties is None else properties)
    )
    return (record for path in all_paths for record in _records_of_path(path, columns))


def check_sources(paths: Iterable[str | Path]) -> None:
    """FileNotFoundError for a path that does not exist, and for a folder that holds no file of a kind that is read."""
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; wanted a folder, a CIF, a table or an archive")
        if path.is_dir() and not any(_is_read(path, file) for file in _walk(path)):
            endings = ", ".join(f".{ending}" for kind in KINDS.values() for ending in kind)
            raise FileNotFoundError(f"{path}: no structure file in this folder; wanted {endings}, POSCAR or CONTCAR")


def table_columns(paths: Iterable[str | Path]) -> list[str]:
    """Names of the columns of the tables among the paths and in folders among them; archives are not opened."""
    found: list[str] = []
    for path in map(Path, paths):
        for file in _walk(path) if path.is_dir() else [path]:
            kind = kind_of(file.name)
            with contextlib.suppress(*DAMAGE):
                if kind == "parquet":
                    found += column_names(kind, file)
                elif kind in TABLE_KINDS:
                    with open_packed(file) as stream:
                        found += column_names(kind, stream)
    return list(dict.fromkeys(found))


def count_rows(paths: Iterable[str | Path]) -> int | None:
    """How many records to expect where that costs nothing to know (parquet), for a progress bar."""
    import pyarrow.parquet as pq

    try:
        return sum(pq.read_metadata(path).num_rows for path in paths)
    except (OSError, ValueError):
        return None


def _records_of_path(path: Path, columns: Columns) -> Iterator[CIFRecord]:
    if path.is_dir():
        yield from _records_of_folder(path, columns)
    elif not path.is_file():
        yield rejected(path.name, "not_a_file", f"{path} is a device or a pipe", str(path))
    else:
        yield from _records_of_plain_file(path, path.name, columns)


def _records_of_folder(folder: Path, columns: Columns) -> Iterator[CIFRecord]:
    passed_by = Counter[str]()
    for path in _walk(folder):
        if _is_read(folder, path):
            yield from _records_of_plain_file(path, path.relative_to(folder).as_posix(), columns)
        else:
            passed_by[path.suffix] += 1
    if passed_by:
        logger.info("%s: passed by %d files of other kinds: %s", folder, sum(passed_by.values()), dict(passed_by))


def _is_read(folder: Path, path: Path) -> bool:
    name = path.relative_to(folder).as_posix()
    return kind_of(name) is not None and not is_hidden(name) and path.is_file()


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names))


def _records_of_plain_file(path: Path, name: str, columns: Columns) -> Iterator[CIFRecord]:
    kind, source = kind_of(name), str(path)
    try:
        if kind in ARCHIVE_KINDS:
            yield from _records_of_archive(path, kind, columns)
        elif path.stat().st_size == 0:
            yield rejected(id_of(name), "empty", f"{path}: 0 bytes", source)
        elif kind == "parquet":
            if _is_records_file(path):
                yield from (replace(record, id=printable(record.id)) for record in read_records(path))
            else:
                yield from records_of_table(kind, path, name, columns, source)
        elif kind in TABLE_KINDS:
            with open_packed(path) as stream:
                yield from records_of_table(kind, stream, name, columns, source)
        else:
            with path.open("rb") as stream:
                yield from records_of_file(name, stream, source, path.stat().st_size)
    except ArchiveError as err:
        yield rejected(name, err.reason, f"{path}: {err}", source)
    except DAMAGE as err:
        by = "bad_archive" if kind in ARCHIVE_KINDS else "unreadable"
        yield rejected(name, by, f"{path}: {type(err).__name__}: {err}", source)


def _is_records_file(path: Path) -> bool:
    """Written by write_records: prompts, scores and what rejected a record come back with it."""
    import pyarrow.parquet as pq

    return {"cif", "text", "scores", "provenance", "rejected_by"} <= set(pq.read_schema(path).names)


def _records_of_archive(path: Path, kind: str | None, columns: Columns) -> Iterator[CIFRecord]:
    if path.stat().st_size == 0:
        yield rejected(path.name, "empty", f"{path}: 0 bytes", str(path))
        return
    found = seen = 0
    for member in tar_members(path) if kind == "tar" else zip_members(path):
        seen += 1
        for record in _records_of_member(member, f"{path}:{member.name}", columns):
            found += 1
            yield record
    if not found:
        yield rejected(path.name, "empty", f"{path}: no structure file among {seen} members", str(path))


def _records_of_member(member: Member, source: str, columns: Columns) -> Iterator[CIFRecord]:
    kind = kind_of(member.name)
    if member.stream is None:
        yield rejected(member.name, member.rejected_by, member.reason, source)
    elif kind in STRUCTURE_KINDS:
        yield from records_of_file(member.name, member.stream, source, member.size)
    elif kind in ("csv", "jsonl") and not member.name.lower().endswith(".gz"):
        yield from records_of_table(kind, member.stream, member.name, columns, source)
    elif kind is not None:
        yield rejected(member.name, "nested", f"{member.name!r}: a {kind} file inside an archive is not opened", source)
