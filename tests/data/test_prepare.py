import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystallm.data.prepare import PrepareConfig, PrepareError, prepare
from crystallm.data.readers import read_sources
from crystallm.data.shards import open_shards, read_meta
from crystallm.data.split import split_of
from crystallm.data.tables import with_default_properties
from tokenizer import CIFTokenizer

CATIONS = ("Li", "Na", "K", "Rb", "Cs", "Ag", "Tl")
ANIONS = ("F", "Cl", "Br", "I")


def run(paths, out, **options):
    paths = tuple(map(str, paths if isinstance(paths, list) else [paths]))
    return prepare(PrepareConfig(paths, str(out), **{"workers": 0, **options}), show_progress=False)


def kept(out):
    return pq.read_table(out / "records.parquet").to_pylist()


def rejected(out):
    rows = pq.read_table(out / "rejected.parquet").to_pylist()
    return {row["id"]: (row["rejected_by"], row["reason"]) for row in rows}


@pytest.fixture
def corpus(tmp_path, rock_salt, caesium_chloride):
    """28 rock salts and 28 caesium chlorides, each with a gap, and a few rows that must fall."""
    rows = []
    for i, cation in enumerate(CATIONS):
        for j, anion in enumerate(ANIONS):
            cif = rock_salt(cation, anion, 5 + i / 10 + j / 5)
            rows.append({"material_id": f"rs-{i}{j}", "cif": cif, "band_gap": i + j})
            rows.append({"material_id": f"cs-{i}{j}", "cif": caesium_chloride(cation, anion, 4 + j / 10)})
    rows.insert(20, {"material_id": "again", "cif": caesium_chloride("Li", "F", 4.0, shift=0.2)})  # the same text
    rows.insert(30, {"material_id": "near", "cif": rock_salt("Li", "F", 5.01)})  # a matching structure
    rows.insert(10, {"material_id": "bad", "cif": "data_x\n"})
    rows.insert(11, {"material_id": "none", "cif": None})
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_everything_read_is_kept_or_rejected_by_name(corpus, tmp_path):
    result = run(corpus, tmp_path / "out", val_share=0.3)
    assert (result.n_read, result.n_kept) == (60, 56)
    assert result.rejected_by == {"no_cell": 1, "empty": 1, "duplicate": 2}
    found = rejected(tmp_path / "out")
    assert found["again"] == ("duplicate", "cs-00") and found["near"] == ("duplicate", "rs-00")
    assert found["bad"][0] == "no_cell" and found["none"][0] == "empty"
    meta = read_meta(tmp_path / "out")
    assert meta["n_read"] == meta["n_kept"] + sum(meta["rejected_by"].values())
    text = str(result)
    assert re.search(r"read +60", text) and re.search(r"duplicate +2", text) and re.search(r"kept +56", text)
    assert not (tmp_path / "out" / ".crystallm_work").exists()


def test_records_and_shards_agree(corpus, tmp_path):
    run(corpus, tmp_path / "out", val_share=0.3)
    tokenizer = CIFTokenizer()
    rows = kept(tmp_path / "out")
    assert len({row["id"] for row in rows}) == 56
    for split in ("train", "val"):
        shards = open_shards(tmp_path / "out", split, tokenizer.hash)
        here = [row for row in rows if row["split"] == split]
        assert here and shards.ids == [row["id"] for row in here]
        for k, row in enumerate(here):
            assert tokenizer.decode(shards[k]) == row["text"]
            assert row["n_tokens"] == len(shards[k])
            assert split_of(row["reduced_formula"], 0, 0.3) == split
        gaps = [np.nan if row["band_gap_ev"] is None else row["band_gap_ev"] for row in here]
        np.testing.assert_allclose(shards.properties["band_gap_ev"], gaps)
        np.testing.assert_allclose(shards.properties["volume_per_atom_ang3"], [r["volume_per_atom_ang3"] for r in here])
    sides = {}
    for row in rows:
        sides.setdefault(row["reduced_formula"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())


@pytest.mark.multi_process
def test_workers_change_nothing(corpus, tmp_path):
    run(corpus, tmp_path / "one", chunk_rows=7)
    run(corpus, tmp_path / "two", workers=2)
    assert kept(tmp_path / "one") == kept(tmp_path / "two")
    assert rejected(tmp_path / "one") == rejected(tmp_path / "two")
    for name in ("tokens_train.npy", "offsets_train.npy", "ids_train.txt"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_buckets_change_nothing(corpus, tmp_path, monkeypatch):
    run(corpus, tmp_path / "one")
    monkeypatch.setattr("crystallm.data.dedup.BUCKET_STRUCTURES", 10)
    run(corpus, tmp_path / "six")
    assert rejected(tmp_path / "one") == rejected(tmp_path / "six")


def test_excluded_formulas_stay_out(corpus, tmp_path, caesium_chloride):
    test_set = tmp_path / "test.csv"
    with test_set.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["cif"], [caesium_chloride("Na", "Cl")], [caesium_chloride("K", "I")], ["data_unreadable"]])
    result = run(corpus, tmp_path / "out", exclude=(str(test_set),), val_share=0.3)
    assert result.rejected_by["excluded_formula"] == 4  # both polymorphs of both
    assert not {"NaCl", "KI"} & {row["reduced_formula"] for row in kept(tmp_path / "out")}
    assert result.warnings == ("1 excluded structures could not be read, so their formulas are not kept out",)


def test_an_excluded_source_that_cannot_be_read_stops_the_run(corpus, tmp_path, caesium_chloride):
    sources = {
        "other.csv": ("structure\nx\n", r"no_cif_column, other\.csv: no column 'cif'"),
        "broken.parquet": ("PAR1", r"unreadable|bad_table"),
        "broken.tar": ("x" * 600, "bad_archive"),
        "rows.csv": ("cif\ndata_x\n", "no formula could be read"),
        "none.csv": ("cif\n", "no formula could be read"),
    }
    good = tmp_path / "good.cif"
    good.write_text(caesium_chloride("Na", "Cl"))
    for name, (text, message) in sources.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(PrepareError, match=f"--exclude .*{name}: .*({message})"):
            run(corpus, tmp_path / "out", exclude=(str(good), str(tmp_path / name)))
    result = run(corpus, tmp_path / "out", exclude=(str(good),))  # no trace of the others is in the way
    assert result.rejected_by["excluded_formula"] == 2


def test_split_as_given(tmp_path, rock_salt):
    rows = [
        {"id": "a", "cif": rock_salt(a=5.64), "fold": "train"},
        {"id": "b", "cif": rock_salt(a=5.64), "fold": "val"},
        {"id": "c", "cif": rock_salt("K"), "fold": "test"},
        {"id": "d", "cif": rock_salt("Li"), "fold": None},
        {"id": "e", "cif": rock_salt("Rb"), "fold": "../../evil"},
        {"id": "f", "cif": rock_salt("Rb"), "fold": "Validation"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    result = run(tmp_path / "t.parquet", tmp_path / "out", split_column="fold")
    # of a pair on two sides the training row goes
    assert {row["id"]: row["split"] for row in kept(tmp_path / "out")} == {"b": "val", "c": "test", "f": "val"}
    assert rejected(tmp_path / "out") == {
        "a": ("duplicate", "b"),
        "d": ("no_split", "'' in column 'fold'; wanted train, val or test"),
        "e": ("no_split", "'../../evil' in column 'fold'; wanted train, val or test"),
    }
    assert result.warnings == ("1 formulas stand on more than one side of the split given",)


def test_chains_of_duplicates_name_one_that_was_kept(tmp_path, rock_salt, caesium_chloride):
    shifted = caesium_chloride(a=4.13, shift=0.25)
    cells = {"a": caesium_chloride(a=4.12), "b": caesium_chloride(a=4.13), "c": shifted}
    pq.write_table(pa.table({"id": list(cells), "cif": list(cells.values())}), tmp_path / "t.parquet")
    run(tmp_path / "t.parquet", tmp_path / "out")
    assert rejected(tmp_path / "out") == {"b": ("duplicate", "a"), "c": ("duplicate", "a")}


def test_a_value_of_a_duplicate_is_not_lost(tmp_path, rock_salt):
    """Rows in two chunks: an equal text and a matching structure, each with what the first lacks."""
    table = {
        "id": ["a", "b", "c", "d"],
        "cif": [rock_salt(), rock_salt("K"), rock_salt(), rock_salt(a=5.65)],
        "band_gap": [None, None, 5.0, 6.0],
        "e_above_hull": [0.1, None, 0.2, 0.3],
        "formation_energy_per_atom": [None, None, None, -2.0],
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    result = run(tmp_path / "t.parquet", tmp_path / "out", chunk_rows=2, required=("band_gap_ev",))
    first, other = kept(tmp_path / "out")
    names = ("id", "band_gap_ev", "e_above_hull_ev_per_atom", "formation_energy_ev_per_atom")
    assert [first[name] for name in names] == ["a", 5.0, 0.1, -2.0]
    assert [other[name] for name in names] == ["b", None, None, None]
    assert result.failure is None and result.labels["band_gap_ev"] == 1
    run(tmp_path / "t.parquet", tmp_path / "all", keep_duplicates=True)
    assert [row["band_gap_ev"] for row in kept(tmp_path / "all")] == [None, None, 5.0, 6.0]


def test_only_texts_without_matching(corpus, tmp_path):
    assert run(corpus, tmp_path / "out", match_structures=False).rejected_by["duplicate"] == 1


def test_duplicates_stay_where_asked(corpus, tmp_path):
    result = run(corpus, tmp_path / "out", keep_duplicates=True)
    assert (result.n_kept, result.rejected_by.get("duplicate", 0)) == (58, 0)


def test_properties_by_name(tmp_path, rock_salt):
    table = pa.table({"cif": [rock_salt()], "gap": [5.0], "bulk": [25.0]})
    pq.write_table(table, tmp_path / "t.parquet")
    run(tmp_path / "t.parquet", tmp_path / "out", properties={"gap": "band_gap_ev", "bulk": "bulk_modulus_gpa"})
    (row,) = kept(tmp_path / "out")
    assert (row["band_gap_ev"], row["bulk_modulus_gpa"], row["e_above_hull_ev_per_atom"]) == (5.0, 25.0, None)


def test_a_column_asked_for_wins_over_the_usual_one(tmp_path, rock_salt):
    table = pa.table({"cif": [rock_salt(), rock_salt("K")], "band_gap": [5.0, 4.0], "gap_hse": [6.5, None]})
    pq.write_table(table.append_column("e_above_hull", pa.array([0.0, 0.1])), tmp_path / "t.parquet")
    run(tmp_path / "t.parquet", tmp_path / "out", properties=with_default_properties({"gap_hse": "band_gap_ev"}))
    assert [row["band_gap_ev"] for row in kept(tmp_path / "out")] == [6.5, None]
    assert [row["e_above_hull_ev_per_atom"] for row in kept(tmp_path / "out")] == [0.0, 0.1]
    assert with_default_properties({"band_gap": "gap_ev"})["band_gap"] == "gap_ev"


def test_a_property_without_any_value_is_told_with_the_columns_there_are(corpus, tmp_path):
    columns = {"nonexistent": "foo_bar", "material_id": "words", "band_gap": "gap_ev"}
    result = run(corpus, tmp_path / "out", properties=columns, required=("foo_bar", "words", "gap_ev"))
    lines = str(result).splitlines()
    there = "there are 'material_id', 'cif', 'band_gap'"
    assert f"foo_bar: 0 of 56 have a value; no column 'nonexistent'; {there}" in lines
    assert "words: 0 of 56 have a value; no structure kept has a number in column 'material_id'" in lines
    assert "gap_ev: 28 of 56 have a value" in lines
    assert result.failure == "no structure has a value of foo_bar, words"
    again = run(corpus, tmp_path / "out", properties=columns)  # nothing is required, so nothing is wrong
    assert again.failure is None and "foo_bar" not in str(again)


def test_each_reason_has_an_example(corpus, tmp_path):
    text = str(run(corpus, tmp_path / "out"))
    assert re.search(r"no_cell +1   block 'x': no value for _cell_length_a.*\(bad\)", text)
    assert re.search(r"duplicate +2   the same crystal as cs-00 \(again\)", text)
    result = run(corpus, tmp_path / "other", cif_column="structure")
    there = "the table has 'material_id', 'cif', 'band_gap'"
    assert f"no column 'structure' (--cif-column names another); {there} (corpus)" in str(result)
    assert result.failure == "no structure was kept" and rejected(tmp_path / "other")


def test_a_preparation_without_validation_says_so(tmp_path, rock_salt):
    pq.write_table(pa.table({"cif": [rock_salt()], "fold": ["train"]}), tmp_path / "t.parquet")
    (note,) = run(tmp_path / "t.parquet", tmp_path / "out", val_share=0.0).warnings
    assert note.startswith("no validation structures") and "--val-share" in note
    (note,) = run(tmp_path / "t.parquet", tmp_path / "other", split_column="fold").warnings
    assert note.endswith("rows with val in column 'fold'")


def test_own_records_can_be_read_again(corpus, tmp_path):
    run(corpus, tmp_path / "out")
    again = run(tmp_path / "out" / "records.parquet", tmp_path / "again")
    assert again.n_kept == again.n_read == 56
    for a, b in zip(kept(tmp_path / "out"), kept(tmp_path / "again"), strict=True):
        assert a["text"] == b["text"] and a["band_gap_ev"] == b["band_gap_ev"] and a["id"] == b["id"]


def test_a_worker_that_dies_costs_one_row(corpus, tmp_path, monkeypatch):
    def clean(record, options):
        if record.id == "rs-11":
            raise RuntimeError("a bug")
        return original(record, options)

    from crystallm.data import prepare as module

    original = module.clean_record
    monkeypatch.setattr(module, "clean_record", clean)
    result = run(corpus, tmp_path / "out")
    assert result.rejected_by["failed"] == 1 and result.n_read == 60
    _, reason = rejected(tmp_path / "out")["rs-11"]
    assert reason.startswith("RuntimeError: a bug (test_prepare.py:")


def test_folder_of_another_call_is_refused(corpus, tmp_path):
    first = run(corpus, tmp_path / "out")
    before = (tmp_path / "out" / "meta.json").stat().st_mtime_ns
    assert run(corpus, tmp_path / "out") == first  # done already
    assert (tmp_path / "out" / "meta.json").stat().st_mtime_ns == before
    with pytest.raises(PrepareError, match="holds another preparation"):
        run(corpus, tmp_path / "out", seed=1)
    again = run(corpus, tmp_path / "out", val_share=0.0, overwrite=True)
    assert list(again.counts) == ["train"] and not list((tmp_path / "out").glob("*_val.*"))


def test_nothing_that_is_not_ours_is_replaced(corpus, tmp_path):
    mine = tmp_path / "mine"
    (mine / "work").mkdir(parents=True)
    (mine / "work" / "thesis.txt").write_text("years")
    assert run(corpus, mine).n_kept == 56 and (mine / "work" / "thesis.txt").read_text() == "years"
    for name in ("records.parquet", "rejected.parquet", "tokens_train.npy", "meta.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("[]")
        for overwrite in (False, True):
            with pytest.raises(PrepareError, match=f"holds {name}, which no preparation made here"):
                run(corpus, folder, overwrite=overwrite)
        assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_text() == "[]"
    with pytest.raises(PrepareError, match=r"corpus\.parquet is a file; wanted a folder"):
        run(corpus, corpus / "out")


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_output_is_no_input_and_lies_in_none(corpus, tmp_path, overwrite):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(corpus, source / "a.parquet")
    shutil.copy(corpus, source / "records.parquet")
    for out, message in [
        (source, "is an input"),
        (source / "out", "would lie in the input"),
        (tmp_path, "holds the input"),
    ]:
        with pytest.raises(PrepareError, match=message):
            run(source, out, overwrite=overwrite)
        with pytest.raises(PrepareError, match=message):
            run(corpus if out != tmp_path else source, out, exclude=(str(source),), overwrite=overwrite)
    assert sorted(path.name for path in source.iterdir()) == ["a.parquet", "records.parquet"]


def test_work_without_its_plan_is_done_anew(corpus, tmp_path, monkeypatch):
    from crystallm.data import prepare as module

    out = tmp_path / "out"
    monkeypatch.setattr(module, "DuplicateSearch", None)
    with pytest.raises(TypeError):
        run(corpus, out)
    monkeypatch.undo()
    (out / ".crystallm_work" / "plan.txt").unlink()  # the first to go, of a folder that is being removed
    run(corpus, out, limit=20)
    assert read_meta(out)["n_read"] == 20


def test_config_checks_itself(tmp_path):
    with pytest.raises(ValueError, match=r"must leave some to train, got 0\.6, 0\.4"):
        PrepareConfig(("x",), "out", val_share=0.6, test_share=0.4)
    for name, value, message in [
        ("limit", -1, "limit must be at least 1 row, got -1"),
        ("workers", -1, r"workers must be 0 \(this process\) or more, got -1"),
        ("properties", {"gap": "text"}, "a property cannot be named 'text', a column of the result"),
        ("properties", {"gap": ""}, "a property cannot be named ''"),
    ]:
        with pytest.raises(ValueError, match=message):
            PrepareConfig(("x",), "out", **{name: value})
    with pytest.raises(ValueError, match="at least one folder"):
        PrepareConfig((), "out")
    with pytest.raises(FileNotFoundError, match=r"gone.cif does not exist"):
        run("gone.cif", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no structure file in this folder"):
        run(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.multi_process
def test_the_script(corpus, tmp_path, root):
    def script(*arguments):
        command = [sys.executable, str(root / "bin" / "prepare_data.py"), *map(str, arguments)]
        env = {**os.environ, "PYTHONPATH": str(root)}
        return subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)

    done = script(corpus, "--out", "out", "--val-share", "0.3", "--property", "band_gap=gap_ev", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert re.search(r"duplicate +2", done.stdout) and "clean: 100%" in done.stderr
    assert np.nanmax(open_shards(tmp_path / "out", "val").properties["gap_ev"]) > 0
    (tmp_path / "x.cif").write_text("data_x\n")
    for arguments, message in [
        (("x.cif", "--out", "none"), "no structure was kept"),
        ((corpus, "--out", "unlabelled", "--property", "gone=foo_bar"), "no structure has a value of foo_bar"),
        (("gone.cif", "--out", "new"), "gone.cif does not exist"),
        ((corpus, "--out", "out"), "out holds another preparation"),
        ((corpus, "--out", "new", "--property", "gap"), "--property wants COLUMN=NAME, got 'gap'"),
        ((corpus, "--out", "new", "--property", "gap=text"), "a property cannot be named 'text'"),
        ((corpus, "--out", "new", "--limit", "-1"), "limit must be at least 1 row, got -1"),
        ((corpus, "--out", "x.cif"), "x.cif is a file; wanted a folder"),
        ((corpus, "--out", "."), "holds the input"),
        ((corpus, "--out", "new", "--val-share", "1"), "val_share and test_share must leave some to train"),
    ]:
        failed = script(*arguments)
        assert failed.returncode and message in failed.stderr and "Traceback" not in failed.stderr, failed.stderr


# ------------------------------------------------------------------ kill and resume

KILLED = """
import sys, time
from crystallm.data import prepare as module
original = module.clean_record
def slow(record, options):
    with open(sys.argv[3], "a") as log:
        log.write(record.id + "\\n")
    time.sleep(float(sys.argv[4]))
    return original(record, options)
module.clean_record = slow
config = module.PrepareConfig((sys.argv[1],), sys.argv[2], workers=0, chunk_rows=8)
module.prepare(config, show_progress=False)
"""


def start(corpus, out, log, delay, root):
    command = [sys.executable, "-c", KILLED, str(corpus), str(out), str(log), str(delay)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root)})


@pytest.mark.multi_process
def test_a_killed_run_goes_on_where_it_was(corpus, tmp_path, root):
    log = tmp_path / "log"
    process = start(corpus, tmp_path / "out", log, 0.05, root)
    chunk = tmp_path / "out" / ".crystallm_work" / "clean" / "00000002.parquet"
    deadline = time.time() + 60
    while not chunk.exists() and time.time() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(chunk.parent.glob("0*.parquet")))
    assert 3 <= done < 7 and not (tmp_path / "out" / "meta.json").exists()
    with pytest.raises(PrepareError, match="holds the beginning of another"):
        run(corpus, tmp_path / "out", seed=3)
    log.unlink()
    assert start(corpus, tmp_path / "out", log, 0, root).wait() == 0
    assert len(log.read_text().splitlines()) == 60 - 8 * done
    run(corpus, tmp_path / "whole", chunk_rows=8)
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")
    assert rejected(tmp_path / "out") == rejected(tmp_path / "whole")


@pytest.mark.parametrize("step", ["_search", "_write", "_write_result"])
def test_stopped_in_a_later_step_it_goes_on(corpus, tmp_path, monkeypatch, step):
    from crystallm.data import dedup
    from crystallm.data import prepare as module

    monkeypatch.setattr(dedup, "BUCKET_STRUCTURES", 20)
    owner = module if step == "_write_result" else dedup.DuplicateSearch
    original, calls = getattr(owner, step), []

    def stop(*args):
        calls.append(1)
        if len(calls) == 2 or step != "_write":  # after the first bucket
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(owner, step, stop)
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "out")
    monkeypatch.setattr(owner, step, original)
    monkeypatch.setattr(module, "_clean_records", None)  # not needed again
    run(corpus, tmp_path / "out")
    monkeypatch.undo()
    run(corpus, tmp_path / "whole")
    assert rejected(tmp_path / "out") == rejected(tmp_path / "whole")
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")


# ------------------------------------------------------------------ memory

MEASURED = """
import sys, threading, time, psutil
from crystallm.data import dedup, prepare as module
peak, process = 0, psutil.Process()
def watch():
    global peak
    while True:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.01)
dedup.BUCKET_STRUCTURES = 500
module.clean_record = lambda record, options: module.CleanRecord(
    record.id, "s", f"data_{record.id}\\n1\\n2\\n" + "x" * 1000, record.id, 1, 1, 1, 1, "train")
config = module.PrepareConfig((sys.argv[1],), sys.argv[2], workers=0, chunk_rows=100, split_column="split")
import pyarrow, tokenizer, pymatgen.analysis.structure_matcher
threading.Thread(target=watch, daemon=True).start()
module.prepare(config, show_progress=False)
print(peak)
"""


@pytest.mark.multi_process
def test_memory_is_flat(tmp_path, root):
    """3 kB a row, text and CIF: 1,000 rows are 3 MB, 10,000 are 30 MB."""
    peaks = {}
    for n in (1_000, 10_000):
        noise = random.Random(0)
        cells = [noise.randbytes(1000).hex() for _ in range(n)]
        path = tmp_path / f"{n}.parquet"
        pq.write_table(pa.table({"id": [f"Q{k}" for k in range(n)], "cif": cells, "split": ["train"] * n}), path)
        command = [sys.executable, "-c", MEASURED, str(path), str(tmp_path / str(n))]
        result = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=True
        )
        peaks[n] = int(result.stdout) / 1e6
    print(f"peak memory: {peaks} MB")
    assert peaks[10_000] - peaks[1_000] < 18, peaks


def test_reading_is_flat(tmp_path):
    """One row group of 60 MB, read in pages: the reader holds a few of them."""
    noise = random.Random(0)
    cells = [noise.randbytes(1500).hex() for _ in range(20_000)]
    pq.write_table(pa.table({"cif": cells}), tmp_path / "t.parquet", row_group_size=20_000)
    del cells
    shutil.copy(tmp_path / "t.parquet", tmp_path / "u.parquet")
    before, peak = psutil.Process().memory_info().rss, 0
    for k, _ in enumerate(read_sources([tmp_path / "u.parquet"])):
        if k % 500 == 0:
            peak = max(peak, psutil.Process().memory_info().rss)
    assert (peak - before) / 1e6 < 35
