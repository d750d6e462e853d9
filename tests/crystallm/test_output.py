"""What may be replaced, and what never."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest

from crystallm.output import check_is_folder, check_output, check_output_folder, spare_inputs
from crystallm.records import check_records_output

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


def test_a_place_without_permission_is_told_before_any_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crystallm.output.os.access", lambda place, mode: place != folder)
    with pytest.raises(PermissionError, match=rf"new\.csv cannot be written: no permission in {folder}"):
        check_output(folder / "new.csv")
    with pytest.raises(PermissionError, match=rf"cannot be written: no permission in {folder}"):
        check_records_output(folder / "deep" / "new")


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
    spare_inputs("../new/deep", ["a.cif", "."])
    with pytest.raises(ValueError, match=r"new/deep would lie in the input \."):
        spare_inputs("new/deep", ["."])
    with pytest.raises(ValueError, match=r"a\.cif is a file; wanted a folder"):
        check_is_folder("a.cif/deep")


def test_a_folder_is_new_or_empty_or_of_an_earlier_run(folder: Path, tmp_path: Path) -> None:
    check_output_folder(tmp_path / "new", is_ours, OURS)
    (tmp_path / "empty").mkdir()
    check_output_folder(tmp_path / "empty", is_ours, OURS, inputs=[tmp_path])
    with pytest.raises(FileExistsError, match=rf"made holds {OURS} \(2\); --overwrite replaces them, or name another"):
        check_output_folder(folder, is_ours, OURS)
    check_output_folder(folder, is_ours, OURS, overwrite=True)
    (folder / "sub").mkdir()
    (folder / "sub/notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=rf"made holds more than {OURS} \(sub, \.\.\.\); wanted a new or an"):
            check_output_folder(folder, is_ours, OURS, overwrite=overwrite)
    with pytest.raises(ValueError, match=r"a\.cif is a file; wanted a folder"):
        check_output_folder(folder / "a.cif", is_ours, OURS, overwrite=True)


@pytest.mark.parametrize(
    ("script", "arguments", "there"),
    [
        ("predict", ["a.cif", "--out", "p.csv"], "p.csv"),
        ("score_cifs", ["a.cif", "--out", "s.parquet"], "s.parquet"),
        ("evaluate_cifs", ["a.cif", "--out", "report.parquet"], "report.parquet"),
        ("evaluate_cifs", ["a.cif", "--pictures", "."], "density_g_per_cm3.png"),
        ("refine", ["a.cif", "--out", "r.tar"], "r.tar"),
        ("sample", ["--out", "s.parquet"], "s.parquet"),
        ("explain", ["a.cif", "--out", "why"], "why/explanations.csv"),
        ("extract_embeddings", ["--out", "."], "formula_element_map.png"),
        ("diffusion_pictures", ["runs/mine", "--out", "."], "training_curve.png"),
        ("benchmark_scaling", ["--out", "g.json"], "g.json"),
        ("benchmark_speed", ["--out", "s.json"], "s.json"),
        ("benchmark_steering", ["--out", "."], "steering.json"),
    ],
)
def test_no_command_replaces_what_is_there(
    script: str,
    arguments: list[str],
    there: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each says so before it looks at anything else: the inputs of most are not even there."""
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(root / f"bin/{script}.py"), run_name="__main__")
    said = f"{ended.value.code}{capsys.readouterr().err}"
    assert f"{there.partition('/')[0]} " in said and "--overwrite replaces" in said
    assert (tmp_path / there).read_text() == "mine"
