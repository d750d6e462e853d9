"""What may be replaced, and what never."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crystallm.output import check_output, check_output_folder

OURS = "crystals of an earlier run"


def is_ours(path: Path) -> bool:
    return path.suffix == ".cif"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    for name in ("a.cif", "b.cif"):
        (tmp_path / "made" / name).write_text("data_x\n")
    return tmp_path / "made"


def test_a_file_is_replaced_only_when_asked(folder: Path) -> None:
    check_output(folder / "new.csv")
    with pytest.raises(FileExistsError, match=r"a\.cif exists; --overwrite replaces it, or name another file"):
        check_output(folder / "a.cif")
    check_output(folder / "a.cif", overwrite=True)
    with pytest.raises(ValueError, match="made is a folder; wanted a file"):
        check_output(folder, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_an_output(folder: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str | Path, source: str | Path, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            check_output(path, ["nowhere", source], overwrite)

    monkeypatch.chdir(folder)
    os.symlink("a.cif", "link.cif")
    os.link("a.cif", "again.cif")
    for name in ("a.cif", "link.cif", "again.cif", "../made/a.cif"):
        refused(name, "a.cif", "is an input")
    refused("a.cif", ".", r"a\.cif is there already and belongs to the input \.")
    check_output("new.csv", ["."], overwrite)
    for source, message in ((folder, "is an input"), ("a.cif", r"made holds the input a\.cif"), ("..", "belongs to")):
        with pytest.raises(ValueError, match=message):
            check_output_folder(folder, is_ours, OURS, [source], overwrite)
    check_output_folder("new", is_ours, OURS, [".", "a.cif"], overwrite)


def test_a_folder_is_new_or_empty_or_of_an_earlier_run(folder: Path, tmp_path: Path) -> None:
    check_output_folder(tmp_path / "new", is_ours, OURS)
    (tmp_path / "empty").mkdir()
    check_output_folder(tmp_path / "empty", is_ours, OURS, inputs=[tmp_path])
    with pytest.raises(FileExistsError, match=f"made holds 2 {OURS}; --overwrite replaces them, or name another"):
        check_output_folder(folder, is_ours, OURS)
    check_output_folder(folder, is_ours, OURS, overwrite=True)
    (folder / "sub").mkdir()
    (folder / "sub/notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=rf"made holds more than {OURS} \(sub, \.\.\.\); wanted a new or an"):
            check_output_folder(folder, is_ours, OURS, overwrite=overwrite)
    with pytest.raises(ValueError, match=r"a\.cif is a file; wanted a folder"):
        check_output_folder(folder / "a.cif", is_ours, OURS, overwrite=True)
