from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from crystallm.benchmark.datasets import DatasetError, Reference, find_file, half_of, load_references

DATA = os.environ.get("CRYSTALLM_DATA", "")


def test_every_row_is_there(table: Path) -> None:
    references, rows = load_references(str(table), "val")
    assert [one.id for one in references][:2] == ["nacl", "cscl-1"] and len(references) == rows.n_rows == 8
    [broken] = [one for one in references if one.crystal is None]
    assert broken.id == "broken" and broken.formula == "" and "no_cell" in broken.reason
    assert [one.formula for one in references if one.id.startswith("cscl")] == ["CsCl", "CsCl"]
    few, rows = load_references(str(table), where="material_id != 'nacl'", limit=2)
    assert [one.id for one in few] == ["cscl-1", "zns"] and rows.rows == "material_id != 'nacl', the first 2"


def test_a_row_without_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"cif": [None, "data_x"], "material_id": ["a", "b"]}).to_parquet(path)
    first, second = load_references(str(path))[0]
    assert first.reason.startswith("empty") and second.crystal is None and second.reason


def test_halves_share_no_formula(tmp_path: Path, table: Path) -> None:
    """All rows of a formula are on one side, whatever else the table holds, and each row is in one half."""
    cifs = dict(pd.read_parquet(table)[["material_id", "cif"]].to_numpy())
    names = list(cifs) * 3
    path = tmp_path / "many.parquet"
    pd.DataFrame({"material_id": names, "cif": [cifs[name] for name in names], "split": "val"}).to_parquet(path)
    tune, about_tune = load_references(str(path), "val_tune")
    report, about_report = load_references(str(path), "val_report")
    assert not {one.formula for one in tune} & {one.formula for one in report}
    assert sorted(one.id for one in [*tune, *report]) == sorted(names)
    assert (about_tune.n_rows, about_tune.n_other_half) == (about_report.n_other_half, about_report.n_rows)
    assert {one.id for one in load_references(str(table), "val_tune")[0]} == {one.id for one in tune}
    assert len(load_references(str(path), "val_report", limit=2)[0]) == 2


def test_the_halves_stay_what_they_are() -> None:
    """blake2b of "52:NaCl" is 0f… by b2sum, so it is in the lower half. Old figures hang on it."""
    sides = {formula: half_of(Reference("", "", _named(formula))) for formula in ("NaCl", "CsCl", "TiO2", "GaAs")}
    assert sides == {"NaCl": "tune", "CsCl": "report", "TiO2": "report", "GaAs": "tune"}


def _named(formula: str):  # type: ignore[no-untyped-def]
    class Named:
        reduced_formula = formula

    return Named()


@pytest.mark.parametrize(
    "file", ["mp20.parquet", "mp20_val.parquet", "mp_20.parquet", "mp_20_val.csv", "mp_20/val.csv"]
)
def test_names_of_files(tmp_path: Path, table: Path, file: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    frame = pd.read_parquet(table)
    if path.suffix == ".csv":
        frame.drop(columns="split").to_csv(path)  # as CDVAE's: one split a file
    else:
        frame.assign(in_complete_block=[True] * 5 + [False] * 3).to_parquet(path)
    assert find_file("mp20", "val", str(tmp_path)) == path
    references, rows = load_references("mp20", "val", str(tmp_path))
    assert (len(references), rows.rows) == ((8, "val") if path.suffix == ".csv" else (5, "val, in_complete_block"))


def test_errors(tmp_path: Path, table: Path) -> None:
    with pytest.raises(DatasetError, match="no split 'vel'; there are train, val, test"):
        load_references("mp20", "vel", str(tmp_path))
    with pytest.raises(DatasetError, match="mp20 needs a split"):
        load_references("mp20", None, str(tmp_path))
    with pytest.raises(DatasetError, match="CRYSTALLM_DATA"):
        load_references("mp20", "val")
    with pytest.raises(FileNotFoundError, match="mp21: no such file, and none of the sets perov5, carbon24"):
        load_references("mp21", "val")
    with pytest.raises(FileNotFoundError, match=r"mp_20_val\.csv.*download_data"):
        load_references("mp20", "val", str(tmp_path))
    with pytest.raises(DatasetError, match="no row is left by test"):
        load_references(str(table), "test")
    with pytest.raises(DatasetError, match="at least 1, got 0"):
        load_references(str(table), limit=0)
    pd.DataFrame({"text": ["x"]}).to_parquet(tmp_path / "no.parquet")
    with pytest.raises(DatasetError, match="no column 'cif'; it has text"):
        load_references(str(tmp_path / "no.parquet"))


@pytest.mark.skipif(not DATA, reason="CRYSTALLM_DATA names no folder of benchmark sets")
@pytest.mark.parametrize(
    ("name", "split", "n_rows"), [("mp20", "test", 2130), ("mp20", "val", 1000), ("perov5", "test", 3785)]
)
def test_the_real_sets(name: str, split: str, n_rows: int) -> None:
    references, _ = load_references(name, split, DATA, limit=3)
    assert len(references) == 3 and all(one.crystal is not None for one in references)
    table = pd.read_parquet(Path(DATA) / f"{name}.parquet")
    asked = table[(table.split == split) & table.get("in_complete_block", True)]
    assert len(asked) == n_rows and list(asked.material_id[:3]) == [one.id for one in references]
