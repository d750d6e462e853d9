"""Crystals that count as known, in each form that they come in, and samples that are none of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure

from crystallm.benchmark.csp import CSPConfig, make_sampler
from crystallm.benchmark.samplers import RowSampler
from crystallm.checks.fingerprints import KnownFingerprints
from crystallm.checks.known import same_crystal
from crystallm.interop import from_structure
from crystallm.records import CIFRecord, write_records
from crystallm.sample.generate import GenerateConfig, generate
from crystallm.sample.known import known_crystals
from crystallm.sample.search import SearchConfig, search

NACL = {"prompt": "NaCl", "formula_units": 1}


@pytest.fixture(scope="module")
def drawn(checkpoint: str) -> list[CIFRecord]:
    return generate(num=30, seed=0, model=checkpoint, rules="none", **NACL)


def prepared(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """A records.parquet, as bin/prepare_data.py leaves it, of (id, text, split)."""
    columns = {"id": [row[0] for row in rows], "text": [row[1] for row in rows], "split": [row[2] for row in rows]}
    formulas = [text.partition("\n")[0].removeprefix("data_") for text in columns["text"]]
    folder.mkdir()
    pq.write_table(
        pa.table({**columns, "reduced_formula": formulas, "n_atoms": [2] * len(rows)}), folder / "records.parquet"
    )
    return folder / "records.parquet"


def test_each_form(drawn: list[CIFRecord], tmp_path: Path) -> None:
    text, other = drawn[0].text, drawn[1].text.replace("NaCl", "KCl").replace("Na ", "K ")
    index = KnownFingerprints.from_texts([("fp-1", text)])
    index.save(tmp_path / "known.npz")
    records = prepared(tmp_path / "data", [("tr-1", text, "train"), ("va-1", other, "val")])
    write_records(tmp_path / "cifs", [CIFRecord("c-1", drawn[0].cif), CIFRecord("c-2", drawn[1].cif)])
    (tmp_path / "cifs" / "bad.cif").write_text("data_bad\n_cell_length_a wide\n")
    for path, found, note in (
        (tmp_path / "known.npz", "fp-1", "among 1 crystals of .*npz, one with the same formula, space group and Wyck"),
        (records, "tr-1", "among 1 crystals of .*parquet, one that matches"),
        (records.parent, "tr-1", "among 1 crystals of .*parquet, one that matches"),
        (tmp_path / "cifs", "c-1", r"among 2 crystals of .*cifs \(1 more could not be read\), one that matches"),
    ):
        known = known_crystals(path, {})
        assert known is not None and known.find(text) == found and re.match(note, known.note)
        assert known.find(other) is None, "a row of the validation split is no training crystal"


def test_those_of_a_model(drawn: list[CIFRecord], checkpoint: str, tmp_path: Path) -> None:
    text = drawn[0].text
    assert known_crystals(None, {}) is None
    assert known_crystals(None, {"path": str(tmp_path), "run": {"data": {"path": str(tmp_path / "gone")}}}) is None
    data = prepared(tmp_path / "data", [("tr-1", text, "train")]).parent
    own = known_crystals(None, {"path": str(tmp_path), "run": {"data": {"path": str(data)}}})
    assert own is not None and own.find(text) == "tr-1" and own.note == "among 1 training crystals, one that matches"
    KnownFingerprints.from_texts([("fp-1", text)]).save(tmp_path / "known.npz")
    beside = known_crystals(None, {"path": str(tmp_path), "run": {"data": {"path": str(data)}}})
    assert beside is not None and beside.find(text) == "fp-1", "the index that travels with a model goes first"


def test_what_holds_no_crystal_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"known: .*none\.npz does not exist; wanted known\.npz, prepared data"):
        known_crystals(tmp_path / "none.npz", {})
    (tmp_path / "bad.cif").write_text("data_bad\n_cell_length_a wide\n")
    with pytest.raises(ValueError, match=r"known: .*bad\.cif holds no crystal that can be read, of 1"):
        known_crystals(tmp_path / "bad.cif", {})
    with pytest.raises(ValueError, match=r"known: .*records\.parquet holds no crystal$"):
        known_crystals(prepared(tmp_path / "data", [("va-1", "data_NaCl\n", "val")]), {})
    (tmp_path / "half.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"known: .*half\.parquet holds no crystal that can be read, of 1"):
        known_crystals(tmp_path / "half.parquet", {})


def test_known_samples_are_rejected(drawn: list[CIFRecord], checkpoint: str, tmp_path: Path) -> None:
    known = str(prepared(tmp_path / "data", [("tr-1", drawn[2].text, "train")]))
    settings = {**NACL, "seed": 0, "model": checkpoint, "rules": "none"}
    records = generate(num=30, novel=True, known=known, **settings)
    assert [record.text for record in records] == [record.text for record in drawn], "the same are drawn"
    same = [same_crystal(record.text, drawn[2].text) for record in drawn]
    assert same[2] and not all(same)
    assert [record.rejected_by for record in records] == ["known" if one else None for one in same]
    assert records[2].reason == "known as tr-1, one that matches"
    more = generate(num=30, novel=True, unique=True, until_valid=True, max_draws=400, known=known, **settings)
    kept = [record.text for record in more if record.rejected_by is None]
    assert {record.rejected_by for record in more} == {None, "known", "duplicate"}
    assert not any(same_crystal(text, drawn[2].text) for text in kept)
    assert not any(same_crystal(a, b) for k, a in enumerate(kept) for b in kept[:k])


def test_novel_needs_to_know_what_is_known(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="novel: nothing tells what this model was trained on"):
        generate("NaCl", num=1, seed=0, model=checkpoint, novel=True)
    with pytest.raises(ValueError, match="goes without novel"):
        search("NaCl", SearchConfig("best_of_n"), GenerateConfig(model=checkpoint, novel=True))
    with pytest.raises(ValueError, match="known goes with novel"):
        CSPConfig("perov5", str(tmp_path), known="known.npz")


def test_a_benchmark_of_novel_samples(checkpoint: str, tmp_path: Path) -> None:
    """`num` of each row, in the order drawn, without the known ones; a row that gets too few says so."""
    rows = {4: from_structure(rock_salt("Na", "Cl")), 7: from_structure(rock_salt("K", "Br"))}

    def sampler(**settings: Any) -> RowSampler:
        return make_sampler(CSPConfig("x.parquet", "x", model=checkpoint, device="cpu", split="val", **settings))

    plain = sampler(num=6).draw(rows, seed=3).records
    assert sampler(num=6).known is None
    data = str(prepared(tmp_path / "data", [("tr-1", plain[1].text, "train")]))
    novel = sampler(num=6, novel=True, known=data)
    assert novel.known == f"among 1 crystals of {data}, one that matches"
    found = novel.draw(rows, seed=3)
    kept = [record.text for record in plain[:6] if not same_crystal(record.text, plain[1].text)]
    assert [record.text for record in found.records][: len(kept)] == kept and len(found.records) == 12
    assert found.n_known >= 6 - len(kept) > 0 and all(record.rejected_by is None for record in found.records)
    assert not any(same_crystal(record.text, plain[1].text) for record in found.records)

    [likeliest] = sampler(num=1, temperature=0.0).draw({7: rows[7]}, seed=0).records
    data = str(prepared(tmp_path / "likeliest", [("tr-1", likeliest.text, "train")]))
    none_left = sampler(num=2, temperature=0.0, novel=True, known=data).draw({7: rows[7]}, seed=0)
    assert [record.rejected_by for record in none_left.records] == ["known", "known"] and none_left.n_known == 40


def rock_salt(cation: str, anion: str) -> Structure:
    cell = Lattice.cubic(5.6)
    return Structure.from_spacegroup(225, cell, [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]]).get_primitive_structure()
