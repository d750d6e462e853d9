"""Members of .tar(.gz, .bz2, .xz) and .zip files, read in memory only: no name in them is ever a path on this disk.

Bounded on both sides: a member over the file limit is skipped unread, and an archive that unpacks to more than
MAX_EXPANSION times its size is left where that is noticed.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from crystallm.data.files import MAX_EXPANSION, MIN_EXPANDED_BYTES, is_hidden


class ArchiveError(ValueError):
    """The archive cannot be read on: `reason` is the name it is counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Member:
    name: str
    size: int
    stream: BinaryIO | None  # None: refused, for this `reason`
    rejected_by: str = ""
    reason: str = ""


class BoundedStream(io.RawIOBase):
    """Passes on at most `limit` bytes of what a decompressor makes, then raises."""

    def __init__(self, stream: gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile, packed_size: int) -> None:
        self.stream, self.packed_size = stream, packed_size
        self.left = max(MIN_EXPANDED_BYTES, MAX_EXPANSION * packed_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer)).cast("B")
        try:
            data = self.stream.read1(len(view))  # what is whole of a truncated file comes before the error
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as err:
            raise ArchiveError("bad_archive", f"unpacking stops: {err}") from err
        self.left -= len(data)
        if self.left < 0:
            raise ArchiveError(
                "too_large", f"{self.packed_size:,} bytes unpack to more than {MAX_EXPANSION} times their size"
            )
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.stream.close()
        super().close()


def open_packed(path: Path, buffered: bool = True) -> BinaryIO:
    """The unpacked bytes of a file, by its first bytes rather than its name, and bounded."""
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(6)
    stream: gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile
    if magic.startswith(b"\x1f\x8b"):
        stream = gzip.open(path)  # noqa: SIM115  # closed by who reads it
    elif magic.startswith(b"BZh"):
        stream = bz2.open(path)  # noqa: SIM115
    elif magic == b"\xfd7zXZ\0":
        stream = lzma.open(path)  # noqa: SIM115
    else:
        return path.open("rb")
    bounded = BoundedStream(stream, size)
    return cast(BinaryIO, io.BufferedReader(bounded, 1 << 16) if buffered else bounded)


def unsafe_path(name: str) -> str | None:
    """Why a member's name may not be trusted, or None."""
    if name.startswith(("/", "\\")) or re.match(r"^[A-Za-z]:", name):
        return f"absolute path {name!r}"
    if ".." in re.split(r"[/\\]", name):
        return f"path {name!r} leaves its folder"
    if "\\" in name:
        return f"backslash in path {name!r}"
    return None


def tar_members(path: Path) -> Iterator[Member]:
    with open_packed(path, buffered=False) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for info in tar:
            why = unsafe_path(info.name)
            if not info.isreg() and not info.isdir():
                why = f"{info.name!r} is a {_tar_kind(info)}, not a file"
            if not why and (info.isdir() or is_hidden(info.name)):
                continue
            if why:
                yield Member(info.name, info.size, None, "unsafe_path", why)
            else:
                yield Member(info.name, info.size, cast(BinaryIO, tar.extractfile(info)))
            tar.members = []  # type: ignore[attr-defined]  # else the list grows with the archive
        _check_end(tar)


def _tar_kind(info: tarfile.TarInfo) -> str:
    return f"link to {info.linkname!r}" if info.issym() or info.islnk() else "device or pipe"


def _check_end(tar: tarfile.TarFile) -> None:
    """tarfile takes a damaged header for the end of the archive; the real end is zeros."""
    while rest := tar.fileobj.read(1 << 16):
        if rest.strip(b"\0"):
            raise ArchiveError("bad_archive", "damaged header: what follows the last member cannot be read")


def zip_members(path: Path) -> Iterator[Member]:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if (total := sum(info.file_size for info in infos)) > max(MIN_EXPANDED_BYTES, MAX_EXPANSION * size):
            raise ArchiveError(
                "too_large", f"{size:,} bytes unpack to {total:,}, over {MAX_EXPANSION} times their size"
            )
        for info in infos:
            name = info.orig_filename
            why = unsafe_path(name)
            if stat.S_ISLNK(info.external_attr >> 16):
                why = f"{name!r} is a link, not a file"
            if not why and (info.is_dir() or is_hidden(name)):
                continue
            if why:
                yield Member(name, info.file_size, None, "unsafe_path", why)
            elif info.flag_bits & 1:
                yield Member(name, info.file_size, None, "unreadable", f"{name!r} is encrypted")
            else:
                try:
                    with archive.open(info) as stream:
                        yield Member(name, info.file_size, cast(BinaryIO, stream))
                except (zipfile.BadZipFile, NotImplementedError, OSError) as err:
                    yield Member(name, info.file_size, None, "unreadable", f"{name!r}: {err}")
