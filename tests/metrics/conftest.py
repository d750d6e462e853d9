"""A folder of real files, good and bad, each bad in its own way."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

GOOD = ("NaCl", "Po", "rutile")


@pytest.fixture(scope="session")
def cif_texts(root: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted((root / "tests/cifs").glob("*.cif"))}


@pytest.fixture
def bad_files(tmp_path: Path, cif_texts: dict[str, str]) -> Path:
    """tmp_path/corpus: what each file is expected to be counted as is its name up to the first '.'."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    salt = cif_texts["NaCl"]

    def write(name: str, data: str | bytes) -> None:
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    for name in GOOD:
        write(f"valid.{name}.cif", cif_texts[name])
    write("empty.file.cif", "")
    write("empty.blank.cif", " \n\n")
    write("syntax.truncated.cif", salt[: salt.index("Na1 Na") + 4])
    write("binary.cif", bytes(range(256)) * 20)
    write("not_utf8.cif", salt.replace("Na1 Na ", "'Nä1' Na ").encode("latin-1"))
    write("unknown_element.cif", salt.replace("Na1 Na ", "Qq1 Qq "))
    half = salt.replace("_fract_z\n", "_fract_z\n_atom_site_occupancy\n")
    write("partial_occupancy.cif", half.replace(" 0 0 0", " 0 0 0 0.5").replace(" 0.5 0.5 0.5", " 0.5 0.5 0.5 1"))
    write("bad_cell.negative.cif", salt.replace("_cell_length_a 5.6402", "_cell_length_a -5.6402"))
    write("bad_cell.zero.cif", salt.replace("_cell_length_a 5.6402", "_cell_length_a 0"))
    write("bad_cell.nan.cif", salt.replace("_cell_length_a 5.6402", "_cell_length_a nan"))
    write("bad_coordinate.nan.cif", salt.replace("Na1 Na 0 0 0", "Na1 Na nan 0 0"))
    write("distance.cif", salt.replace("5.6402", "2.6402"))
    with (folder / "too_large.cif").open("wb") as stream:
        stream.write(salt.encode())
        stream.truncate(20_000_001)

    write("empty.archive.tar", b"")
    write("bad_archive.noise.tar", b"this is no archive" * 100)
    write("bad_archive.noise.zip", b"this is no archive" * 100)
    with tarfile.open(folder / "empty.members.tar", "w"):
        pass
    with zipfile.ZipFile(folder / "empty.members.zip", "w"):
        pass
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(_member("a.cif", salt), io.BytesIO(salt.encode()))
    write("bad_archive.truncated.tar.gz", packed.getvalue()[: len(packed.getvalue()) // 2])
    return folder


@pytest.fixture
def tricky_tar(tmp_path: Path, cif_texts: dict[str, str]) -> Path:
    """One good member among names and links that point outside."""
    salt = cif_texts["NaCl"]
    secret = tmp_path / "secret.cif"
    secret.write_text(cif_texts["Si"], encoding="utf-8")
    path = tmp_path / "inner" / "tricky.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name in ("good.cif", "../escaped.cif", str(tmp_path / "absolute.cif")):
            archive.addfile(_member(name, salt), io.BytesIO(salt.encode()))
        for kind, name in ((tarfile.SYMTYPE, "soft.cif"), (tarfile.LNKTYPE, "hard.cif")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, str(secret)
            archive.addfile(link)
    return path


def _member(name: str, text: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = len(text.encode())
    return info
