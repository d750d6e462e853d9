"""The record that every step takes and returns, and the files between steps: parquet, a folder of .cif, a tar of them.

A .cif file carries its record's other fields in comments at its top, so all three give back what was written:

    # crystallm.record.id "gen-000017"
    # crystallm.record.prompt "Na Cl"
    # crystallm.record.provenance {"model": "mp-small", "seed": 0}
    data_NaCl
    ...
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import urllib.parse
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystallm.cif import MAX_CIF_BYTES, CIFError, CIFHeader, decode_cif, parse_cif, read_provenance, split_cif
from crystallm.crystal import Crystal
from crystallm.output import check_output, check_output_folder

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

_LINE = "# crystallm.record."
_STORED = ("id", "prompt", "rejected_by", "reason", "scores", "text", "provenance")  # and cif
_ROWS_PER_GROUP = 2_000


@dataclass(frozen=True, slots=True)
class CIFRecord:
    id: str  # "mp-149", "gen-000017"
    cif: str
    prompt: str | None = None  # text the model was conditioned on; None for corpus entries
    crystal: Crystal | None = None  # set by checks.filter; not written to disk
    header: CIFHeader | None = None  # what the text states: formula, space group; not written either
    rejected_by: str | None = None  # first check that failed; None = still in
    reason: str = ""
    scores: dict[str, float] = field(default_factory=dict)  # {"e_above_hull_ev_per_atom": 0.031}
    text: str = ""  # canonical text, as the model reads or wrote it
    provenance: dict[str, Any] = field(default_factory=dict)  # plain data: model hash, seed, settings, version, source

    @classmethod
    def of(cls, structure: Structure | Atoms | Crystal, id: str = "structure") -> CIFRecord:
        """Of pymatgen's Structure, ASE's Atoms or a Crystal: every atom listed, no symmetry claimed.

        CIFError for disorder, vacancies and what is not periodic in three directions.
        """
        from crystallm.cif_write import write_cif
        from crystallm.interop import from_atoms, from_structure

        if isinstance(structure, Crystal):
            crystal = structure
        else:
            crystal = from_structure(structure) if hasattr(structure, "lattice") else from_atoms(structure)
        return cls(id, write_cif(crystal), crystal=crystal)

    @property
    def structure(self) -> Structure:
        """As pymatgen's Structure. CIFError where the record describes no crystal."""
        from crystallm.interop import to_structure

        return to_structure(self._any_crystal())

    @property
    def atoms(self) -> Atoms:
        """As ASE's Atoms. CIFError where the record describes no crystal."""
        from crystallm.interop import to_atoms

        return to_atoms(self._any_crystal())

    def _any_crystal(self) -> Crystal:
        return self.crystal or parse_cif(self.cif or self.text)[0]


# ---------------------------------------------------------------- writing


def write_records(path: str | Path, records: Iterable[CIFRecord], overwrite: bool = True) -> int:
    """Write to `x.parquet`, `x.tar`, `x.tar.gz` (`x.tgz`), or else a folder of .cif files; returns how many.

    `records` are written as they come: memory does not grow with them, but by a name each where files have names. A
    reader sees the old file or the new one, never half of it. What is wrong with the path (`check_records_output`) is
    said before the first record is asked for.
    """
    check_records_output(path, overwrite=overwrite)
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    write = {"parquet": _write_parquet, "tar": _write_tar}.get(_kind(path) or "", _write_folder)
    return write(path, records)


def check_records_output(path: str | Path, inputs: Iterable[str | Path] = (), overwrite: bool = False) -> None:
    """What write_records would refuse, for those who work long before they write.

    ValueError for another ending, or a path that is an input or holds one; FileExistsError for what is there already,
    with `overwrite` for a folder of other files only.
    """
    path = Path(path)
    kind = _kind(path)
    if kind is None:
        raise ValueError(f"{path}: wanted .parquet, .tar, .tar.gz, .tgz or a folder, got {path.suffix!r}")
    if kind == "folder":
        check_output_folder(path, _is_ours, "crystals of an earlier run", inputs, overwrite)
    else:
        check_output(path, inputs, overwrite)


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return "tar"
    return "folder" if path.is_dir() or not path.suffix or not path.suffix[1:].isalpha() else None


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path beside this one that takes its place when the block ends well, and is removed when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _write_parquet(path: Path, records: Iterable[CIFRecord]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    schema = pa.schema(
        [
            *(pa.field(name, text, nullable=False) for name in ("id", "cif", "text")),
            pa.field("prompt", text),
            pa.field("rejected_by", text),
            pa.field("reason", text, nullable=False),
            pa.field("scores", pa.map_(text, pa.float64()), nullable=False),
            pa.field("provenance", text, nullable=False),  # JSON
        ]
    )
    count = 0
    with _replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in _batches(records, _ROWS_PER_GROUP):
            rows = [
                {
                    **{name: getattr(record, name) for name in schema.names},
                    "scores": [(name, float(value)) for name, value in record.scores.items()],
                    "provenance": _json(record.provenance, record.id),
                }
                for record in batch
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            count += len(rows)
        writer.close()
    return count


def _batches(records: Iterable[CIFRecord], size: int) -> Iterator[list[CIFRecord]]:
    batch: list[CIFRecord] = []
    for record in records:
        batch.append(record)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _write_tar(path: Path, records: Iterable[CIFRecord]) -> int:
    names = _FileNames()
    packed = path.name.lower().endswith("gz")
    with _replacing(path) as temporary, open(temporary, "wb") as raw:
        # mtime=0: the same records give the same bytes
        stream = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if packed else raw
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for record in records:
                data = _file_text(record).encode("utf-8")
                member = tarfile.TarInfo(names.of(record.id))
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
                archive.getmembers().clear()  # the archive's own list, of no use to a writer, a kilobyte a file
        if packed:
            stream.close()
    return len(names)


def _write_folder(path: Path, records: Iterable[CIFRecord]) -> int:
    names = _FileNames()
    with _replacing(path) as temporary:
        temporary.mkdir()
        for record in records:
            (temporary / names.of(record.id)).write_bytes(_file_text(record).encode("utf-8"))
        if path.is_dir():
            shutil.rmtree(path)  # os.replace takes no folder's place but an empty one's
    return len(names)


def _is_ours(file: Path) -> bool:
    if file.suffix != ".cif" or not file.is_file():
        return False
    with open(file, "rb") as stream:
        return stream.read(len(_LINE)) == _LINE.encode()


def _file_text(record: CIFRecord) -> str:
    fields = {
        "id": record.id,
        "prompt": record.prompt,
        "rejected_by": record.rejected_by,
        "reason": record.reason,
        "scores": {name: float(value) for name, value in record.scores.items()},
        "text": record.text,
        "provenance": record.provenance,
        "cif_hash": _hash(record.cif),
    }
    default: dict[str, Any] = {
        "cif_hash": "",
        "prompt": None,
        "rejected_by": None,
        "reason": "",
        "scores": {},
        "text": "",
        "provenance": {},
    }
    stated = {name: value for name, value in fields.items() if name == "id" or value != default[name]}
    return "".join(f"{_LINE}{name} {_json(value, record.id)}\n" for name, value in stated.items()) + record.cif


def _hash(cif: str) -> str:
    """By which a file tells whether its comment lines are still of this CIF. An editor's line ends may differ."""
    return hashlib.sha256(cif.replace("\r\n", "\n").strip().encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _json(value: Any, record_id: str) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as err:
        raise ValueError(f"{record_id}: {err}; wanted numbers, text, lists and dicts, got {value!r}") from None


_VASP = re.compile("POSCAR|CONTCAR|CENTCAR|OUTCAR|XDATCAR|CONFIG")  # ASE goes by these words, whatever the ending


class _FileNames:
    """A file name for each id, none twice, not even where upper and lower case are the same."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, record_id: str) -> str:
        stem = urllib.parse.quote(record_id, safe=" #+=,()[]") or "%"
        stem = _VASP.sub(lambda found: found[0].lower(), stem)
        if stem[0] in ". ":
            stem = f"%{ord(stem[0]):02X}{stem[1:]}"
        if len(stem) > 200:
            stem = f"{stem[:180]}%{hashlib.sha256(record_id.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
        self._count += 1
        repeats = self._seen[stem.lower()] = self._seen.get(stem.lower(), 0) + 1
        return f"{stem}%{repeats}.cif" if repeats > 1 else f"{stem}.cif"


# ---------------------------------------------------------------- reading


def read_records(*paths: str | Path) -> Iterator[CIFRecord]:
    """Records of parquet files, folders (with their subfolders), tars and .cif files, one after the other.

    Files that write_records did not write are read too: a CIF with several crystals gives a record each, "file#block";
    a parquet file needs a column `cif`, and takes `id` or `material_id` for the id. What cannot be read is one record
    with `rejected_by` and `reason`. A path that does not exist raises before anything is read.
    """
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; wanted a folder, .cif, .parquet or .tar(.gz)")
        if not path.is_dir() and path.suffix.lower() != ".cif" and _kind(path) in (None, "folder"):
            raise ValueError(f"{path}: wanted a folder, .cif, .parquet, .tar, .tar.gz or .tgz")
    return (record for path in paths for record in _read_path(Path(path)))


def _read_path(path: Path) -> Iterator[CIFRecord]:
    if path.is_dir():
        files = sorted((f for f in path.rglob("*") if f.suffix.lower() == ".cif"), key=_natural_order)
        for file in files:
            yield from _read_file(file.relative_to(path).with_suffix("").as_posix(), file)
    elif path.suffix.lower() == ".cif":
        yield from _read_file(path.stem, path)
    elif path.suffix.lower() == ".parquet":
        yield from _read_parquet(path)
    else:
        yield from _read_tar(path)


def _natural_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """gen-2 before gen-10."""
    parts = re.findall(r"\d+|\D+", path.as_posix())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.as_posix()


def _read_file(name: str, path: Path) -> Iterator[CIFRecord]:
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_CIF_BYTES else b""
    except OSError as err:
        yield CIFRecord(name, "", rejected_by="unreadable", reason=f"{path.name}: {err.strerror}")
        return
    yield from _records_of_bytes(name, size, lambda: data)


def _records_of_bytes(name: str, size: int, read: Callable[[], bytes]) -> Iterator[CIFRecord]:
    """The records of one file; a file that is too large is not even read."""
    try:
        if size > MAX_CIF_BYTES:
            raise CIFError("too_large", f"{size:,} bytes, at most {MAX_CIF_BYTES:,} are read")
        text = decode_cif(read())
    except CIFError as err:
        yield CIFRecord(name, "", rejected_by=err.reason, reason=f"{name}: {err.message}")
        return
    yield from records_of_text(name, text)


def records_of_text(name: str, text: str) -> Iterator[CIFRecord]:
    """The record of a file as `write_records` writes it, or those of several in a row; of any other CIF one a block.

    A file that was edited counts as any other: of its comment lines the id stays, and what the CIF itself says.
    """
    if not text.startswith(f"{_LINE}id "):
        for record_id, block in split_cif(text, name):
            yield CIFRecord(record_id, block, provenance=read_provenance(block))
        return
    record, stated_hash = _with_comments(name, text)
    if record.rejected_by == "syntax" or stated_hash == _hash(record.cif):
        yield record
        return
    parts = re.split(rf"^(?={re.escape(_LINE)}id )", text, flags=re.M)[1:]
    for part in parts:
        if len(parts) > 1:
            yield from records_of_text(name, part)
        else:
            yield from records_of_text(str(record.id), record.cif)


def _with_comments(name: str, text: str) -> tuple[CIFRecord, str]:
    """The record with all that its comment lines say, and the hash of the CIF that they were written for."""
    fields: dict[str, Any] = {}
    position = 0
    while text.startswith(_LINE, position):
        end = text.find("\n", position) % (len(text) + 1)  # without a last line break, the end of the text
        key, _, value = text[position + len(_LINE) : end].partition(" ")
        if key == "id" and fields:  # the cif itself begins like a record
            break
        try:
            fields[key] = json.loads(value)
        except ValueError:
            reason = f"{name}: the comment line {key!r} is no JSON: {value[:60]}"
            return CIFRecord(name, text, rejected_by="syntax", reason=reason), ""
        position = end + 1
    known = {key: value for key, value in fields.items() if key in _STORED}
    return CIFRecord(**known, cif=text[position:]), fields.get("cif_hash", "")


def _read_parquet(path: Path) -> Iterator[CIFRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as err:
        yield CIFRecord(path.name, "", rejected_by="unreadable", reason=f"{path.name}: {err}")
        return
    with file:
        names = file.schema_arrow.names
        if "cif" not in names:
            raise ValueError(f"{path}: no column 'cif'; it has {', '.join(names)}")
        ours = {*_STORED, "cif"}.issubset(names)  # other people's `text` or `scores` may be anything
        columns = [*_STORED, "cif"] if ours else [name for name in ("id", "material_id", "cif") if name in names]
        row_number = 0
        for batch in file.iter_batches(batch_size=1_000, columns=columns):
            for row in batch.to_pylist():
                yield _record_of_row(row, f"{path.stem}-{row_number:06d}")
                row_number += 1


def _record_of_row(row: dict[str, Any], fallback_id: str) -> CIFRecord:
    material_id = row.pop("material_id", None)
    record_id = next(value for value in (row.pop("id", None), material_id, fallback_id) if value is not None)
    cif = row.pop("cif")
    fields = {name: value for name, value in row.items() if value is not None}
    if "scores" in fields:
        fields["scores"] = dict(fields["scores"])
    if "provenance" in fields:
        fields["provenance"] = json.loads(fields["provenance"])
    if cif is None:
        fields |= {"rejected_by": "empty", "reason": f"{record_id}: no value in the column 'cif'"}
    return CIFRecord(id=str(record_id), cif=cif or "", **fields)


def _read_tar(path: Path) -> Iterator[CIFRecord]:
    """Reads members one by one and extracts nothing, so a name such as ../../x.cif is only a name."""
    found = False
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.name.lower().endswith(".cif") or member.isdir():
                    continue
                found = True
                name = member.name.removeprefix("./")[:-4]
                if not member.isreg():
                    yield CIFRecord(name, "", rejected_by="unreadable", reason=f"{member.name}: a link, wanted a file")
                    continue
                stream = archive.extractfile(member)
                assert stream is not None
                yield from _records_of_bytes(name, member.size, stream.read)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as err:
        yield CIFRecord(path.name, "", rejected_by="unreadable", reason=f"{path.name}: {err}; wanted a tar archive")
        return
    if not found:
        yield CIFRecord(path.name, "", rejected_by="empty", reason=f"{path.name}: holds no .cif file")
