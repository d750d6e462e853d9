from __future__ import annotations

import dataclasses
import io
import math
import tarfile
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crystallm import canonicalize
from crystallm.cif import CIFError, parse_cif, write_cif
from crystallm.records import CIFRecord, read_records, write_records

CIFS = Path(__file__).parents[1] / "cifs"
NACL = (CIFS / "NaCl.cif").read_text(encoding="utf-8")
TARGETS = ("records.parquet", "records.tar", "records.tar.gz", "records.tgz", "records")
RECORDS = [
    CIFRecord("mp-149", NACL),
    CIFRecord(
        "gen-000017",
        NACL,
        prompt="data_NaCl\n",
        text="data_NaCl\n_crystallm_primitive_formula_units 1\n",
        scores={"e_above_hull_ev_per_atom": 0.031, "nats": -54.25},
        provenance={
            "model": "sha256:ab12",
            "seed": 0,
            "settings": {"top_k": None, "constraints": "full"},
            "tags": ["a"],
        },
    ),
    CIFRecord(
        "gen-000018", "", prompt="", rejected_by="parse", reason="no_cell: block 'x': no value\nfor _cell_length_a"
    ),
    CIFRecord("archive/sub folder/Å.cif#block 1", NACL.replace("\n", "\r\n"), provenance={"source": "ICSD, 2019"}),
    CIFRecord("../../escape", NACL.rstrip("\n")),
]


@pytest.mark.parametrize("target", TARGETS)
def test_round_trip(tmp_path, target):
    assert write_records(tmp_path / target, RECORDS) == len(RECORDS)
    assert sorted(read_records(tmp_path / target), key=lambda r: r.id) == sorted(RECORDS, key=lambda r: r.id)
    assert [path.name for path in tmp_path.iterdir()] == [target]  # nothing beside it, no temporary file


@pytest.mark.parametrize("target", TARGETS)
def test_order_of_numbered_records_is_kept(tmp_path, target):
    records = [CIFRecord(f"gen-{i}", NACL) for i in range(25)]
    write_records(tmp_path / target, records)
    assert [record.id for record in read_records(tmp_path / target)] == [record.id for record in records]


text = st.text(st.characters(codec="utf-8"), max_size=40)
plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
                     lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))  # fmt: skip
any_record = st.builds(
    CIFRecord,
    id=text,
    cif=text | st.just("# crystallm.record.id 1\n# crystallm.record.prompt 2\ndata_x\n"),
    prompt=st.none() | text,
    rejected_by=st.none() | text,
    reason=text,
    text=text,
    scores=st.dictionaries(text, st.floats(allow_nan=False), max_size=3),
    provenance=st.dictionaries(text, plain, max_size=3),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_record, max_size=4), st.sampled_from(["r.parquet", "r.tar", "r"]))
def test_any_record_round_trips(tmp_path_factory, records, target):
    path = tmp_path_factory.mktemp("any") / target
    assert write_records(path, records) == len(records)
    again = list(read_records(path))
    if target == "r.tar" and not records:
        assert [record.rejected_by for record in again] == ["empty"]
    elif target == "r":  # a folder keeps no order but that of its names
        assert sorted(again, key=repr) == sorted(records, key=repr)
    else:
        assert again == records


@pytest.mark.parametrize("target", ["r.parquet", "r.tar"])
def test_nan_and_infinite_scores(tmp_path, target):
    write_records(tmp_path / target, [CIFRecord("a", "", scores={"x": math.nan, "y": -math.inf})])
    (record,) = read_records(tmp_path / target)
    assert math.isnan(record.scores["x"]) and record.scores["y"] == -math.inf


def test_a_record_is_not_written_without_its_crystal_s_text(tmp_path):
    crystal, header = parse_cif(NACL)
    write_records(tmp_path / "r.parquet", [CIFRecord("a", NACL, crystal=crystal, header=header)])
    (record,) = read_records(tmp_path / "r.parquet")
    assert record == CIFRecord("a", NACL)


@pytest.mark.parametrize("target", TARGETS)
def test_a_stream_is_written_as_it_comes_and_is_the_same_file(tmp_path, target, monkeypatch):
    monkeypatch.setattr("crystallm.records._ROWS_PER_GROUP", 10)
    records = [CIFRecord(f"gen-{i}", NACL, scores={"x": float(i)}) for i in range(35)]
    references, most_alive = [], 0

    def stream():
        nonlocal most_alive
        for record in records:
            crystal = parse_cif(NACL)[0]
            references.append(weakref.ref(crystal.lattice))
            yield dataclasses.replace(record, crystal=crystal)
            del crystal
            most_alive = max(most_alive, sum(reference() is not None for reference in references))

    assert write_records(tmp_path / "list" / target, records) == 35
    assert write_records(tmp_path / "stream" / target, stream()) == 35
    assert most_alive <= (22 if target.endswith("parquet") else 2)
    assert list(read_records(tmp_path / "list" / target)) == list(read_records(tmp_path / "stream" / target))
    if target.endswith("parquet"):
        assert pq.ParquetFile(tmp_path / "stream" / target).num_row_groups == 4
    if target != "records":
        assert (tmp_path / "list" / target).read_bytes() == (tmp_path / "stream" / target).read_bytes()


def test_a_failing_stream_leaves_the_old_file_and_nothing_else(tmp_path):
    def failing():
        yield CIFRecord("new", NACL)
        raise RuntimeError("the model died")

    for target in TARGETS:
        path = tmp_path / target
        write_records(path, RECORDS[:1])
        with pytest.raises(RuntimeError, match="the model died"):
            write_records(path, failing())
        assert list(read_records(path)) == RECORDS[:1]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(TARGETS)


def test_rewriting_replaces_unless_told_not_to(tmp_path):
    for target in TARGETS:
        write_records(tmp_path / target, RECORDS)
        told = rf"crystals of an earlier run \({len(RECORDS)}\)|exists; --overwrite replaces it"
        with pytest.raises(FileExistsError, match=told):
            write_records(tmp_path / target, RECORDS[:1], overwrite=False)
        write_records(tmp_path / target, RECORDS[:1])
        assert list(read_records(tmp_path / target)) == RECORDS[:1]


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "mine.cif").write_text(NACL)
    with pytest.raises(FileExistsError, match=r"mine\.cif"):
        write_records(tmp_path, RECORDS)
    assert (tmp_path / "mine.cif").read_text() == NACL


def test_equal_ids_do_not_overwrite_each_other(tmp_path):
    records = [CIFRecord("a", "1"), CIFRecord("a", "2"), CIFRecord("A", "3"), CIFRecord("x" * 400, "4")]
    for target in ("r", "r.tar"):
        write_records(tmp_path / target, records)
        assert sorted(record.cif for record in read_records(tmp_path / target)) == ["1", "2", "3", "4"]
    assert len({path.name.lower() for path in (tmp_path / "r").iterdir()}) == 4


def test_same_records_same_bytes(tmp_path):
    for name in ("a.tar.gz", "b.tar.gz"):
        write_records(tmp_path / name, RECORDS)
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()


def test_written_files_are_cifs_to_others(tmp_path):
    """The fields stand in comments: pymatgen, ASE and gemmi read past them."""
    write_records(tmp_path / "out", RECORDS[:2])
    lines = (tmp_path / "out" / "gen-000017.cif").read_text().splitlines()
    assert lines[0] == '# crystallm.record.id "gen-000017"'
    assert all(line.startswith("#") for line in lines[: lines.index("data_NaCl")])
    assert parse_cif("\n".join(lines))[0].n_atoms == 8


# ---------------------------------------------------------------- files of others


def test_cifs_of_others(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b10.cif").write_text(NACL)
    (tmp_path / "b9.CIF").write_text(NACL + NACL.replace("data_NaCl", "data_again"))
    (tmp_path / "sub" / "a.cif").write_text(write_cif(parse_cif(NACL)[0], {"seed": 3}))
    (tmp_path / "README.md").write_text("no crystal")
    records = list(read_records(tmp_path))
    assert [record.id for record in records] == ["b9#NaCl", "b9#again", "b10", "sub/a"]
    assert [record.provenance for record in records] == [{}, {}, {}, {"seed": 3}]
    assert all(parse_cif(record.cif)[0].n_atoms == 8 for record in records)
    assert [record.id for record in read_records(tmp_path / "b10.cif", tmp_path / "sub")] == ["b10", "a"]


def test_edited_comment_lines(tmp_path):
    cases = {
        '# crystallm.record.id "a"': CIFRecord("a", ""),  # cut off after its first line
        "# crystallm.provenance.seed three\ndata_x\n": None,
        "# crystallm.record.id a\ndata_x\n": None,
    }
    for i, (content, want) in enumerate(cases.items()):
        (tmp_path / f"{i}.cif").write_text(content)
        (record,) = read_records(tmp_path / f"{i}.cif")
        assert want is None or record == want
    first, second, third = read_records(tmp_path)
    assert second.provenance == {"seed": "three"} and second.rejected_by is None
    assert (third.id, third.rejected_by) == ("2", "syntax")
    assert "no JSON: a" in third.reason and first.id == "a"


def test_an_edited_cif_is_what_it_says_now(tmp_path):
    """Its comment lines were written for another crystal: of them the id stays."""
    text = canonicalize(NACL)
    stated = CIFRecord("gen-1", NACL, text=text, scores={"nats": -1.0}, rejected_by="bonds", reason="long")
    write_records(tmp_path / "out", [stated])
    file = tmp_path / "out" / "gen-1.cif"
    whole = file.read_text()
    assert list(read_records(file)) == [stated]
    file.write_bytes(whole.replace("\n", "\r\n").encode())
    [record] = read_records(file)
    assert (record.text, record.scores, record.rejected_by) == (text, {"nats": -1.0}, "bonds"), "line ends are no edit"
    head, _, body = whole.partition("data_")
    file.write_text(f"{head}data_{body.replace('Na', 'K')}")
    [record] = read_records(file)
    assert record.id == "gen-1" and parse_cif(record.cif)[0].reduced_formula == "KCl"
    assert (record.text, record.scores, record.rejected_by, record.reason) == ("", {}, None, "")


def test_files_one_behind_the_other_are_all_read(tmp_path):
    records = [dataclasses.replace(RECORDS[1], id=f"gen-{k}", text=f"text {k}") for k in range(3)]
    write_records(tmp_path / "out", records)
    parts = [(tmp_path / "out" / f"gen-{k}.cif").read_text() for k in range(3)]
    (tmp_path / "all.cif").write_text("".join(part if part.endswith("\n") else f"{part}\n" for part in parts))
    found = list(read_records(tmp_path / "all.cif"))
    assert [(one.id, one.text, one.cif.strip()) for one in found] == [(r.id, r.text, r.cif.strip()) for r in records]


@pytest.mark.parametrize("name", ["POSCAR", "mp-1_CONTCAR", "OUTCAR", "XDATCAR", "x@2", "CONFIG-7"])
def test_others_read_a_file_whatever_the_id(name, tmp_path):
    """ASE goes by words in file names, and takes what is behind an @ for an index."""
    from ase.io import read

    write_records(tmp_path / "out", [CIFRecord(name, NACL)])
    [file] = (tmp_path / "out").iterdir()
    assert len(read(str(file))) == 8
    assert [record.id for record in read_records(tmp_path / "out")] == [name]


def test_parquet_of_others(tmp_path):
    table = {"material_id": ["mp-1", None], "cif": [NACL, None], "scores": [5.0, 1.0], "text": [1, 2]}
    pq.write_table(pa.table(table), tmp_path / "corpus.parquet")
    first, second = read_records(tmp_path / "corpus.parquet")
    assert first == CIFRecord("mp-1", NACL)
    assert (second.id, second.rejected_by) == ("corpus-000001", "empty")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="no column 'cif'; it has id"):
        list(read_records(tmp_path / "other.parquet"))


def tar_of(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


def test_bad_files_are_one_rejected_record_each(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    bad = {"empty": b"", "latin": "# Ångström".encode("latin-1"), "image": b"\x89PNG\0", "large": b"#" * 20_000_001}
    for name, data in {**bad, "good": NACL.encode()}.items():
        (folder / f"{name}.cif").write_bytes(data)
    tar = tar_of(tmp_path / "x.tar", {f"{name}.cif": data for name, data in {**bad, "good": NACL.encode()}.items()})
    for source in (folder, tar):
        found = {record.id: record for record in read_records(source)}
        assert {name: record.rejected_by for name, record in found.items()} == {
            "empty": "empty", "latin": None, "image": "binary", "large": "too_large", "good": None}  # fmt: skip
        assert "20,000,001 bytes" in found["large"].reason


def test_archives_that_cannot_be_read(tmp_path):
    whole = tar_of(tmp_path / "whole.tar", {f"{i}.cif": NACL.encode() for i in range(9)}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:3000])
    (tmp_path / "noise.tar").write_bytes(b"\x93" * 2000)
    (tmp_path / "zero.tar.gz").write_bytes(b"")
    tar_of(tmp_path / "readme.tar", {"README.md": b"nothing"})
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 is not enough")
    for name, by in [("noise.tar", "unreadable"), ("zero.tar.gz", "unreadable"), ("readme.tar", "empty"),
                     ("broken.parquet", "unreadable")]:  # fmt: skip
        (record,) = read_records(tmp_path / name)
        assert (record.id, record.rejected_by) == (name, by)
        assert name in record.reason
    *good, last = read_records(tmp_path / "cut.tar")
    assert [record.rejected_by for record in good] == [None] * len(good) and 0 < len(good) < 9
    assert last.rejected_by == "unreadable"


def test_paths_and_links_in_archives_lead_nowhere(tmp_path):
    secret = tmp_path / "secret.cif"
    secret.write_text(NACL)
    inside = tmp_path / "in"
    inside.mkdir()
    tar = tar_of(inside / "x.tar", {"../../evil.cif": NACL.encode()}, {"link.cif": "../secret.cif"})
    records = {record.id: record for record in read_records(tar)}
    assert set(records) == {"../../evil", "link"}
    assert records["link"].rejected_by == "unreadable" and records["link"].cif == ""
    write_records(inside / "out", records.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "secret.cif"]
    assert sorted(path.name for path in inside.iterdir()) == ["out", "x.tar"]


def test_wrong_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; wanted"):
        read_records(tmp_path / "none")
    (tmp_path / "table.xlsx").write_text("")
    with pytest.raises(ValueError, match="wanted a folder"):
        read_records(tmp_path / "table.xlsx")
    with pytest.raises(ValueError, match=r"got '\.xlsx'"):
        write_records(tmp_path / "out.xlsx", RECORDS)
    with pytest.raises(ValueError, match="wanted numbers, text, lists and dicts"):
        write_records(tmp_path / "out.parquet", [CIFRecord("a", "", provenance={"array": np.zeros(2)})])
    with pytest.raises(ValueError, match="is a file; wanted a folder"):
        (tmp_path / "taken").write_text("")
        write_records(tmp_path / "taken", RECORDS)


# ---------------------------------------------------------------- the record itself


def test_structure_and_atoms():
    record = CIFRecord("a", NACL)
    assert record.structure.composition.reduced_formula == "NaCl"
    assert record.atoms.get_chemical_formula() == "Cl4Na4"
    half = dataclasses.replace(record, crystal=parse_cif((CIFS / "Po.cif").read_text())[0])
    assert half.structure.formula == "Po1"  # the crystal that a step has set goes before the text
    with pytest.raises(CIFError, match="empty"):
        _ = CIFRecord("b", "").structure


def test_defaults_are_not_shared():
    first, second = CIFRecord("a", ""), CIFRecord("b", "")
    first.scores["x"] = 1.0
    assert second.scores == {}


def test_a_record_of_a_structure_or_atoms_at_hand(root: Path) -> None:
    ase_atoms = pytest.importorskip("ase", reason="ASE is not installed").Atoms
    file = root / "tests/cifs/rutile.cif"
    plain = CIFRecord("a", file.read_text())
    assert canonicalize(file) == canonicalize(plain.cif)
    for structure in (plain.structure, plain.atoms, parse_cif(plain.cif)[0]):
        record = CIFRecord.of(structure, "mine")
        assert record.id == "mine" and canonicalize(record.cif) == canonicalize(plain.cif)
    with pytest.raises(CIFError, match="periodic in three directions"):
        CIFRecord.of(ase_atoms("Na", cell=[3, 3, 3]))
