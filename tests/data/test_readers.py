import csv
import gzip
import io
import json
import os
import random
import tarfile
import zipfile

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ase.build import bulk
from ase.io import write as ase_write
from pymatgen.core import Lattice, Structure

from crystallm.cif import parse_cif
from crystallm.data import archives, files
from crystallm.data.readers import count_rows, read_sources, table_columns
from crystallm.records import CIFRecord, write_records


def read(*paths, **options):
    return list(read_sources(paths, **options))


def outcomes(*paths, **options):
    return [(record.id, record.rejected_by) for record in read(*paths, **options)]


@pytest.fixture
def rows(rock_salt):
    return [
        {"material_id": "mp-1", "cif": rock_salt(), "band_gap": 5.0, "split": "train", "note": "x"},
        {"material_id": "mp-2", "cif": rock_salt("K", "Br", 6.6), "band_gap": None, "split": "val", "note": "y"},
        {"material_id": None, "cif": None, "band_gap": 1.0, "split": None, "note": ""},
    ]


def write_table(path, rows):
    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    text = io.StringIO()
    if ".csv" in name:
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    else:
        text.write("\n".join(json.dumps(row) for row in rows) + "\n\n")
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.csv.gz", "t.jsonl", "t.jsonl.gz"])
def test_tables_give_the_same_records(tmp_path, rows, name):
    write_table(tmp_path / name, rows)
    records = read(tmp_path / name, split_column="split")
    assert [record.id for record in records] == ["mp-1", "mp-2", "t-2"]
    assert [record.cif for record in records] == [rows[0]["cif"], rows[1]["cif"], ""]
    assert [record.rejected_by for record in records] == [None, None, "empty"]
    assert [record.scores for record in records] == [{"band_gap_ev": 5.0}, {}, {"band_gap_ev": 1.0}]
    assert [record.provenance.get("split") for record in records[:2]] == ["train", "val"]
    assert records[0].provenance["source"] == str(tmp_path / name)


def test_ids_are_stable_and_follow_the_row(tmp_path, rows):
    for row in rows:
        del row["material_id"]
    write_table(tmp_path / "corpus.csv", rows)
    assert [r.id for r in read(tmp_path / "corpus.csv")] == ["corpus-0", "corpus-1", "corpus-2"]
    assert [r.id for r in read(tmp_path / "corpus.csv", id_column="note")][:2] == ["x", "y"]


def test_columns_by_name(tmp_path, rows):
    renamed = [{"structure": r["cif"], "gap": r["band_gap"]} for r in rows]
    write_table(tmp_path / "t.parquet", renamed)
    records = read(tmp_path / "t.parquet", cif_column="structure", properties={"gap": "band_gap_ev"})
    assert records[0].scores == {"band_gap_ev": 5.0}
    assert outcomes(tmp_path / "t.parquet") == [("t", "no_cif_column")]
    (record,) = read(tmp_path / "t.parquet", cif_column="structure", split_column="fold")
    assert "no column 'fold'" in record.reason


def test_ids_of_records_are_printable(tmp_path, rock_salt):
    record = CIFRecord("a\nb\x1b", rock_salt())
    write_records(tmp_path / "r.parquet", [record])
    write_records(tmp_path / "r.tar", [record])
    for name in ("r.parquet", "r.tar"):
        assert outcomes(tmp_path / name) == [("a_b_", None)]


def test_count_rows_without_reading(tmp_path, rows):
    write_table(tmp_path / "t.parquet", rows)
    write_table(tmp_path / "t.csv", rows)
    assert count_rows([tmp_path / "t.parquet"]) == 3
    assert count_rows([tmp_path / "t.csv"]) is None
    assert count_rows([tmp_path]) is None


def test_one_bad_cell_costs_its_row(tmp_path, rock_salt):
    good = rock_salt().encode()
    cells = [good, good + b"# \xff\xfe", good + b"\0", b"   ", b"#" * (files.MAX_FILE_BYTES + 1), good]
    expected = [None, None, "binary", "empty", "too_large", None]
    pq.write_table(pa.table({"cif": pa.array(cells, pa.binary())}), tmp_path / "t.parquet")
    assert [by for _, by in outcomes(tmp_path / "t.parquet")] == expected
    with (tmp_path / "t.csv").open("wb") as file:
        file.write(b"cif\n" + b"".join(b'"' + cell + b'"\n' for cell in cells))
    assert [by for _, by in outcomes(tmp_path / "t.csv")] == expected


def test_json_lines_that_are_none(tmp_path, rock_salt):
    good = json.dumps({"cif": rock_salt()})
    (tmp_path / "t.jsonl").write_text("\n".join([good, "{", "[1]", json.dumps({"x": 1}), good]))
    expected = [None, "bad_json", "no_cif_column", "no_cif_column", None]
    assert [by for _, by in outcomes(tmp_path / "t.jsonl")] == expected


def test_a_line_beyond_all_bounds_is_skipped(tmp_path, rock_salt, monkeypatch):
    monkeypatch.setattr("crystallm.data.tables.MAX_FILE_BYTES", 1000)
    good = json.dumps({"cif": rock_salt()})
    (tmp_path / "t.jsonl").write_text("\n".join([good, json.dumps({"cif": "x" * 10_000}), good]))
    assert [by for _, by in outcomes(tmp_path / "t.jsonl")] == [None, "too_large", None]


def test_several_blocks_are_several_records(tmp_path, rock_salt, caesium_chloride):
    (tmp_path / "two.cif").write_text("data_global\n_journal_name x\n" + rock_salt() + caesium_chloride())
    records = read(tmp_path / "two.cif")
    assert [record.id for record in records] == ["two#NaCl", "two#CsCl"]
    assert [parse_cif(record.cif)[0].reduced_formula for record in records] == ["NaCl", "CsCl"]


def test_folder_in_order_with_subfolders_and_bad_files(tmp_path, rock_salt):
    good = rock_salt().encode()
    (tmp_path / "sub").mkdir()
    contents = {
        "b.cif": good,
        "a.cif": good,
        "sub/c.CIF": b"\xef\xbb\xbf" + good,  # with a byte order mark
        "d.cif.gz": gzip.compress(good),
        "empty.cif": b"",
        "binary.cif": b"\x7fELF\0\0" + bytes(range(256)),
        "latin.cif": "data_x\n_author 'Müller'\n".encode("latin-1"),
        "cut.cif.gz": gzip.compress(good)[:40],
        "README.md": b"notes",
        ".hidden.cif": good,
        "empty.zip": b"",
        "empty.tar": b"",
        "broken.zip": b"PK\x03\x04 and nothing else",
        "broken.tar.gz": b"no gzip at all",
        "broken.parquet": b"PAR1 no parquet",
        "empty.csv": b"",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    assert outcomes(tmp_path) == [
        ("a", None),
        ("b", None),
        ("binary", "binary"),
        ("broken.parquet", "unreadable"),
        ("broken.tar.gz", "bad_archive"),
        ("broken.zip", "bad_archive"),
        ("cut", "unreadable"),
        ("d", None),
        ("empty", "empty"),
        ("empty.csv", "empty"),
        ("empty.tar", "empty"),
        ("empty.zip", "empty"),
        ("latin", None),
        ("sub/c", None),
    ]


def test_a_large_file_is_not_read(tmp_path):
    with (tmp_path / "large.cif").open("wb") as file:
        file.truncate(50_000_000_000)  # sparse: reading it would take a minute and all memory
    before = psutil.Process().memory_info().rss
    assert outcomes(tmp_path / "large.cif") == [("large", "too_large")]
    assert psutil.Process().memory_info().rss - before < 50e6


def test_pipes_and_missing_paths(tmp_path):
    os.mkfifo(tmp_path / "pipe.cif")
    assert outcomes(tmp_path / "pipe.cif") == [("pipe.cif", "not_a_file")]
    with pytest.raises(FileNotFoundError, match="no structure file"):  # and does not wait for a writer
        read_sources([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"gone.cif does not exist; wanted a folder"):
        read_sources([tmp_path / "gone.cif"])


def test_a_folder_without_structures_names_what_is_read(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.cif").write_text("x")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}: no structure file in this folder; wanted \.cif, .*zip"):
        read_sources([tmp_path])


def test_columns_of_tables_by_name(tmp_path, rows):
    for name in ("a.parquet", "b.csv", "c.jsonl.gz"):
        write_table(tmp_path / name, [{f"own_{name[0]}": 1, **rows[0]}])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "x.cif").write_text(rows[0]["cif"])
    assert table_columns([tmp_path / "b.csv"]) == ["own_b", *rows[0]]
    assert table_columns([tmp_path]) == ["own_a", *rows[0], "own_b", "own_c"]


def test_poscar_and_extxyz_come_through_their_libraries(tmp_path):
    nacl = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    nacl.to(str(tmp_path / "POSCAR"), fmt="poscar")
    ase_write(tmp_path / "frames.extxyz", [bulk("Cu"), bulk("Si")])
    (tmp_path / "CONTCAR").write_text("not a POSCAR\n")
    records = read(tmp_path)
    assert [(r.id, r.rejected_by) for r in records] == [
        ("CONTCAR", "syntax"),
        ("POSCAR", None),
        ("frames#0", None),
        ("frames#1", None),
    ]
    crystals = [parse_cif(record.cif)[0] for record in records[1:]]
    assert [(c.reduced_formula, c.n_atoms) for c in crystals] == [("NaCl", 8), ("Cu", 1), ("Si", 2)]
    assert crystals[0].volume_ang3 == pytest.approx(5.64**3, rel=1e-6)


@pytest.mark.parametrize("name", ["r.parquet", "folder", "r.tar", "r.tar.gz"])
def test_records_as_written_come_back(tmp_path, rock_salt, name):
    record = CIFRecord("gen-0", rock_salt(), prompt="NaCl", scores={"x": 1.0}, rejected_by="distance", reason="0.3 Å")
    write_records(tmp_path / name, [record])
    (back,) = read(tmp_path / name)
    assert (back.id, back.prompt, back.scores, back.rejected_by) == ("gen-0", "NaCl", {"x": 1.0}, "distance")
    assert back.cif == record.cif


def test_canonical_records_keep_their_text(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "text": ["data_NaCl\n"]}), tmp_path / "records.parquet")
    (record,) = read(tmp_path / "records.parquet")
    assert record.text == record.cif == "data_NaCl\n"


# ------------------------------------------------------------------ archives


def tar_bytes(members, mode="w"):
    """members: name → bytes, or a TarInfo without content"""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def zip_bytes(members, **options):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz", "x.zip"])
def test_archives_give_the_same_records(tmp_path, rock_salt, name):
    good = rock_salt().encode()
    table = f"cif\n{json.dumps(rock_salt('K', 'Br'))}\n".replace("\\n", "\n").encode()
    members = {
        "a.cif": good,
        "sub/b.cif": good,
        "./c.cif": b"\xff",
        "__MACOSX/._a.cif": b"\0",
        "README": b"",
        "t.csv": table,
        "in.zip": b"",
    }
    mode = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz"}.get(name.rsplit(".", 1)[-1], "w")
    (tmp_path / name).write_bytes(zip_bytes(members) if name == "x.zip" else tar_bytes(members, mode))
    assert outcomes(tmp_path / name) == [
        ("a", None),
        ("sub/b", None),
        ("c", None),
        ("t-0", None),
        ("in.zip", "nested"),
    ]


def tar_member(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_path_tricks_of_a_tar_touch_nothing(tmp_path, rock_salt):
    good = rock_salt().encode()
    outside = tmp_path / "outside"
    members = {
        "../outside.cif": good,
        str(outside): good,
        "a/../../outside.cif": good,
        "C:\\evil.cif": good,
        "..\\evil.cif": good,
        "link.cif": tar_member("link.cif", tarfile.SYMTYPE, "/etc/passwd"),
        "hard.cif": tar_member("hard.cif", tarfile.LNKTYPE, "../../etc/passwd"),
        "device.cif": tar_member("device.cif", tarfile.CHRTYPE),
        "pipe.cif": tar_member("pipe.cif", tarfile.FIFOTYPE),
        "good.cif": good,
    }
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "x.tar").write_bytes(tar_bytes(members))
    before = sorted(tmp_path.rglob("*"))
    found = outcomes(folder / "x.tar")
    assert [by for _, by in found] == ["unsafe_path"] * 9 + [None]
    assert sorted(tmp_path.rglob("*")) == before


def test_path_tricks_of_a_zip_touch_nothing(tmp_path, rock_salt):
    link = zipfile.ZipInfo("link.cif")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    good = rock_salt().encode()
    members = {"../a.cif": good, "/abs.cif": good, "a\\..\\b.cif": good, link: b"/etc/passwd", "good.cif": good}
    (tmp_path / "x.zip").write_bytes(zip_bytes(members))
    found = outcomes(tmp_path / "x.zip")
    assert [by for _, by in found] == ["unsafe_path"] * 4 + [None]
    assert "passwd" not in str(found) and list(tmp_path.iterdir()) == [tmp_path / "x.zip"]


def test_ids_from_archives_are_printable(tmp_path, rock_salt):
    (tmp_path / "x.tar").write_bytes(tar_bytes({"a\nb\udcff.cif": rock_salt().encode()}))
    assert outcomes(tmp_path / "x.tar") == [("a_b_", None)]


def test_archive_without_structures_is_one_record(tmp_path):
    for data, by in [(tar_bytes({}), "empty"), (tar_bytes({"README": b"x"}), "empty"), (b"x" * 700, "bad_archive")]:
        (tmp_path / "x.tar").write_bytes(data)
        assert outcomes(tmp_path / "x.tar") == [("x.tar", by)]


def test_empty_zip_is_one_record(tmp_path):
    (tmp_path / "x.zip").write_bytes(zip_bytes({}))
    assert outcomes(tmp_path / "x.zip") == [("x.zip", "empty")]


@pytest.mark.parametrize("packed", [False, True])
def test_truncated_tar_keeps_what_came_before(tmp_path, rock_salt, packed):
    noise = random.Random(0)
    data = tar_bytes({f"{k}.cif": rock_salt().encode() + noise.randbytes(900).hex().encode() for k in range(4)})
    cut = data[: 512 + 2560 + 512 + 1000]  # within the second member's content
    (tmp_path / "x.tar").write_bytes(gzip.compress(data)[:3000] if packed else cut)
    found = outcomes(tmp_path / "x.tar")
    assert found[0] == ("0", None) and found[-1] == ("x.tar", "bad_archive")
    assert [by for _, by in found].count("bad_archive") == 1


def test_damaged_tar_header_is_noticed(tmp_path, rock_salt):
    data = bytearray(tar_bytes({f"{k}.cif": rock_salt().encode() for k in range(3)}))
    second = data.index(b"1.cif")
    data[second : second + 300] = b"\xaa" * 300
    (tmp_path / "x.tar").write_bytes(data)
    assert outcomes(tmp_path / "x.tar") == [("0", None), ("x.tar", "bad_archive")]


def test_encrypted_and_damaged_zip_members_cost_themselves(tmp_path, rock_salt):
    data = bytearray(zip_bytes({f"{k}.cif": rock_salt(a=5 + k).encode() for k in range(3)}))
    data[data.index(b"1.cif") + 20] ^= 0xFF
    central = data.rindex(b"PK\x01\x02", 0, data.rindex(b"2.cif"))
    data[central + 8] |= 1  # the flag of encryption
    (tmp_path / "x.zip").write_bytes(data)
    assert outcomes(tmp_path / "x.zip") == [("0", None), ("1", "unreadable"), ("2.cif", "unreadable")]


def test_bombs_are_left_where_they_are_noticed(tmp_path, monkeypatch, rock_salt):
    for module in (files, archives):
        monkeypatch.setattr(module, "MIN_EXPANDED_BYTES", 5_000_000)
    good, zeros = rock_salt().encode(), b" " * 19_000_000
    (tmp_path / "bomb.zip").write_bytes(zip_bytes({"a.cif": good} | {f"z{k}.cif": zeros for k in range(3)}))
    (tmp_path / "bomb.tar.gz").write_bytes(tar_bytes({"a.cif": good, "z.cif": zeros}, "w:gz"))
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b'{"cif": "' + zeros))
    (tmp_path / "large.cif.gz").write_bytes(gzip.compress(b" " * 30_000_000))
    assert outcomes(tmp_path / "bomb.zip") == [("bomb.zip", "too_large")]
    assert outcomes(tmp_path / "bomb.tar.gz") == [("a", None), ("bomb.tar.gz", "too_large")]
    assert outcomes(tmp_path / "bomb.jsonl.gz") == [("bomb.jsonl.gz", "too_large")]
    assert outcomes(tmp_path / "large.cif.gz") == [("large", "too_large")]


def test_large_members_are_not_read(tmp_path, rock_salt):
    good, large = rock_salt().encode(), random.Random(0).randbytes(1000) * 21_000
    (tmp_path / "x.zip").write_bytes(zip_bytes({"l.cif": large, "a.cif": good}))
    (tmp_path / "x.tar").write_bytes(tar_bytes({"l.cif": large, "a.cif": good}))
    assert outcomes(tmp_path / "x.zip") == outcomes(tmp_path / "x.tar") == [("l", "too_large"), ("a", None)]


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.zip", "x.parquet", "x.csv", "x.jsonl.gz", "x.cif.gz"])
def test_no_damage_raises(tmp_path, rock_salt, rows, name):
    """Bytes flipped, cut out and put in, at random: there are always records, and never an exception."""
    path = tmp_path / name
    members = {f"{k}.cif": rock_salt(a=5 + k).encode() for k in range(3)}
    if ".tar" in name:
        path.write_bytes(tar_bytes(members, "w:gz" if name.endswith("gz") else "w"))
    elif name == "x.zip":
        path.write_bytes(zip_bytes(members))
    elif name == "x.cif.gz":
        path.write_bytes(gzip.compress(members["0.cif"]))
    else:
        write_table(path, rows)
    whole, chance = path.read_bytes(), random.Random(name)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 3, 30])):
            at = chance.randrange(len(data))
            action = chance.random()
            if action < 0.7:
                data[at] = chance.randrange(256)
            elif action < 0.85:
                del data[at : at + chance.randrange(1, 50)]
            else:
                data[at:at] = chance.randbytes(chance.randrange(1, 50))
        path.write_bytes(data)
        assert read(path), data.hex()
