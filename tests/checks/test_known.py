"""An index of known crystals finds what describes them anew, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from crystallm.canonical import canonicalize
from crystallm.checks.fingerprints import KnownFingerprints
from crystallm.checks.known import KnownCrystals, canonical_text, formula_of, same_crystal, strip_conditions
from crystallm.cif import parse_cif
from crystallm.crystal import Crystal
from crystallm.records import CIFRecord

NAMES = ["NaCl", "Po", "Si", "SrTiO3", "ZrO2", "hematite", "quartz", "rutile"]


@pytest.fixture(scope="module")
def texts(root):
    return {
        name: canonicalize(parse_cif((root / f"tests/cifs/{name}.cif").read_text(encoding="utf-8"))[0]).to_text()
        for name in NAMES
    }


@pytest.fixture(scope="module")
def known(root):
    records = [CIFRecord(name, (root / f"tests/cifs/{name}.cif").read_text(encoding="utf-8")) for name in NAMES]
    return KnownCrystals.from_records(
        [*records, CIFRecord("bad", "no CIF"), CIFRecord("worse", "", rejected_by="empty")]
    )


def strained(text: str, factor: float) -> str:
    """The same crystal with all lengths scaled."""
    lines = text.splitlines()
    for k, line in enumerate(lines):
        if line.startswith("_cell_length"):
            tag, value = line.split()
            lines[k] = f"{tag} {float(value) * factor:.2f}"
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_known_crystals_are_found_in_any_description(known, texts, name):
    assert known.find(texts[name]) == name
    assert known.find(f"# band_gap_ev +1.10\n{texts[name]}") == name
    assert known.find(strained(texts[name], 1.03)) == name  # by structure: its text is in no index


def test_others_are_not(known, texts):
    assert known.find(texts["NaCl"].replace("Na", "K")) is None
    caesium_chloride_type = Crystal(np.eye(3) * 3.4, np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), np.array([11, 17]))
    assert known.find(canonicalize(caesium_chloride_type).to_text()) is None


def test_fingerprints_come_back_from_disk_and_other_files_are_refused(texts, tmp_path):
    index = KnownFingerprints.from_texts(texts.items())
    index.save(tmp_path / "known.npz")
    assert KnownFingerprints.open(tmp_path / "known.npz").find(texts["NaCl"]) == "NaCl"
    np.savez(tmp_path / "other.npz", hashes=np.zeros(2))
    np.save(tmp_path / "array.npy", np.zeros(2))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "text.npz").write_text("NaCl")
    (tmp_path / "empty.npz").write_text("")
    (tmp_path / "half.npz").write_bytes((tmp_path / "known.npz").read_bytes()[:100])
    for name in ("other", "array", "text", "empty", "half"):
        with pytest.raises(ValueError, match=rf"{name}\.npz: wanted an \.npz with hashes and ids, as KnownFinger"):
            KnownFingerprints.open(tmp_path / f"{name}.npz")


def test_records_without_a_description_are_left_out(known):
    assert len(known) == len(NAMES) and known.n_left_out == 2


def test_an_empty_index_knows_nothing(texts):
    assert KnownCrystals.from_records([]).find(texts["NaCl"]) is None


def test_same_crystal_is_pymatgens_opinion(texts):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher()
    variants = [texts["rutile"], strained(texts["rutile"], 1.1), texts["rutile"].replace("0.305", "0.240")]
    variants += [texts["rutile"].replace("0.305", "0.300"), texts["rutile"].replace("2.96", "4.10")]
    structures = [CIFRecord("x", "", text=text).structure for text in variants]
    for first, one in zip(variants, structures, strict=True):
        for second, other in zip(variants, structures, strict=True):
            assert same_crystal(first, second) == matcher.fit(one, other)


def test_canonical_text_of_a_record(root, texts):
    cif = (root / "tests/cifs/Si.cif").read_text(encoding="utf-8")
    assert canonical_text(CIFRecord("x", cif)) == texts["Si"]
    assert canonical_text(CIFRecord("x", "", text="# band_gap_ev +1.10\n" + texts["Si"])) == texts["Si"]
    assert canonical_text(CIFRecord("x", cif, rejected_by="distance")) == ""
    assert canonical_text(CIFRecord("x", "data_")) == ""
    assert formula_of(strip_conditions(texts["SrTiO3"])) == "SrTiO3"
