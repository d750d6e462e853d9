"""One file's bytes → records: what kind of file a name promises, and which files are refused before they are parsed.

Where the bytes come from (a folder, an archive, a table's cell) is the matter of readers.py, archives.py and tables.py.
"""

from __future__ import annotations

import gzip
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import BinaryIO

from crystallm import interop
from crystallm.cif import MAX_CIF_BYTES, CIFError, decode_cif
from crystallm.records import CIFRecord, records_of_text

MAX_FILE_BYTES = MAX_CIF_BYTES  # a larger CIF is a supercell dump or an attack: `too_large`, unread
MAX_EXPANSION = 200  # CIF text compresses 5 to 50 times; a bomb over 1,000
MIN_EXPANDED_BYTES = 256_000_000  # below this an archive may expand as it likes

KINDS = {
    "cif": ("cif", "mcif", "mmcif"),
    "poscar": ("vasp", "poscar"),
    "extxyz": ("extxyz", "xyz"),
    "csv": ("csv",),
    "jsonl": ("jsonl", "ndjson"),
    "parquet": ("parquet", "pq"),
    "tar": ("tar", "tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz"),
    "zip": ("zip",),
}
STRUCTURE_KINDS = ("cif", "poscar", "extxyz")
TABLE_KINDS = ("csv", "jsonl", "parquet")
ARCHIVE_KINDS = ("tar", "zip")
_KIND_BY_ENDING = {f".{ending}": kind for kind, endings in KINDS.items() for ending in endings}


def kind_of(name: str) -> str | None:
    """ "cif", "parquet", "tar", … by the file name, with or without .gz; None where it promises no structures."""
    name = PurePosixPath(name).name
    if name.upper().startswith(("POSCAR", "CONTCAR")) and not name.lower().endswith((".cif", ".cif.gz")):
        return "poscar"
    name = name.lower()
    for ending, kind in _KIND_BY_ENDING.items():
        if name.endswith(ending) or (name.endswith(ending + ".gz") and kind in (*STRUCTURE_KINDS, "csv", "jsonl")):
            return kind
    return None


def is_hidden(name: str) -> bool:
    """Files that operating systems leave behind: `.DS_Store`, `._a.cif`, `__MACOSX/`."""
    return any(part.startswith((".", "__MACOSX")) and part not in (".", "..") for part in PurePosixPath(name).parts)


def id_of(name: str) -> str:
    """The record id of a file: its relative path without the ending, printable (an id is a line of a shard's ids).

    Tables and archives keep their ending: their rows and members have ids of their own.
    """
    path = PurePosixPath(name)
    stem = re.sub(r"\.gz$", "", path.name, flags=re.IGNORECASE)
    for ending in (f".{e}" for kind in STRUCTURE_KINDS for e in KINDS[kind]):
        if stem.lower().endswith(ending) and len(stem) > len(ending):
            stem = stem[: -len(ending)]
            break
    return printable(str(path.with_name(stem)))


def table_stem(name: str) -> str:
    """corpus.csv.gz → corpus"""
    return printable(PurePosixPath(re.sub(r"\.gz$", "", name, flags=re.IGNORECASE)).stem)


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else "_" for char in text)


def rejected(record_id: str, by: str, reason: str, source: str) -> CIFRecord:
    return CIFRecord(printable(record_id), "", rejected_by=by, reason=reason, provenance={"source": printable(source)})


def records_of_file(name: str, stream: BinaryIO, source: str, size: int | None = None) -> Iterator[CIFRecord]:
    """The structures of one CIF, POSCAR or extxyz file; one rejected record where there is none to be had.

    `size` as the folder or archive states it: over the limit nothing is read.
    """
    record_id = id_of(name)
    if size is not None and size > MAX_FILE_BYTES:
        yield _too_large(record_id, size, source)
        return
    try:
        if name.lower().endswith(".gz"):
            with gzip.open(stream) as unpacked:
                data = unpacked.read(MAX_FILE_BYTES + 1)
        else:
            data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as err:
        yield rejected(record_id, "unreadable", f"{name}: {err}", source)
        return
    yield from records_of_bytes(record_id, data, source, kind_of(name) or "cif")


def records_of_bytes(record_id: str, data: bytes, source: str, kind: str = "cif") -> Iterator[CIFRecord]:
    if len(data) > MAX_FILE_BYTES:
        yield _too_large(record_id, len(data), source)
        return
    try:
        text = decode_cif(data)
    except CIFError as err:
        yield rejected(record_id, err.reason, err.message, source)
        return
    if kind == "cif":
        yield from records_of_cif(record_id, text, source)
    else:
        yield from _records_of_foreign(record_id, text, source, kind)


def _too_large(record_id: str, size: int, source: str) -> CIFRecord:
    reason = f"{size:,} bytes or more, the limit is {MAX_FILE_BYTES:,}"
    return rejected(record_id, "too_large", reason, source)


def records_of_cif(record_id: str, text: str, source: str) -> Iterator[CIFRecord]:
    """A record for each data block, or what write_records wrote, with all that its comment lines say of it."""
    for record in records_of_text(record_id, text):
        provenance = record.provenance | {"source": printable(source)}
        yield replace(record, id=printable(str(record.id)), provenance=provenance)


def _records_of_foreign(record_id: str, text: str, source: str, kind: str) -> Iterator[CIFRecord]:
    """POSCAR and extxyz, read by the libraries that own them, as P1 CIFs."""
    from crystallm.cif import write_cif

    try:
        crystals = interop.parse_structures(text, kind)
    except CIFError as err:
        yield rejected(record_id, err.reason, err.message, source)
        return
    for number, crystal in enumerate(crystals):
        name = record_id if len(crystals) == 1 else f"{record_id}#{number}"
        yield CIFRecord(printable(name), write_cif(crystal), provenance={"source": printable(source)})
