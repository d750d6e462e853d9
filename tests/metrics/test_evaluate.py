"""Evaluation on real files: nothing stops it, everything is counted once, and the numbers are those worked by hand."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wasserstein_distance

from crystallm.checks.rules import RULE_SETS
from crystallm.cif import parse_cif, write_cif
from crystallm.metrics.evaluate import EvaluateConfig, Share, evaluate, evaluate_records, write_report
from crystallm.records import CIFRecord

MATERIALS_PROJECT = Path(__file__).resolve().parents[3] / "shared/data/materials_project.parquet"
HERE = {"workers": 0}  # in this process


def expected_counts(folder: Path) -> Counter[str]:
    return Counter(path.name.split(".")[0] for path in folder.iterdir())


def test_every_bad_file_is_counted_once_and_by_its_cause(bad_files):
    evaluation = evaluate(EvaluateConfig((str(bad_files),), **HERE))
    expected = expected_counts(bad_files)
    counts = evaluation.generated.counts
    assert counts.n_valid == expected.pop("valid") == 3
    assert counts.rejected_by == expected
    assert counts.n_read == len(list(bad_files.iterdir())) == counts.n_valid + counts.rejected_by.total()
    assert evaluation.generated.rates["parse"] == (counts.n_valid + expected["distance"]) / counts.n_read
    assert evaluation.generated.rates["distance"] == counts.n_valid / counts.n_read


def test_every_bad_file_alone_is_one_rejected_record(bad_files):
    for path in bad_files.iterdir():
        cause = path.name.split(".")[0]
        counts = evaluate(EvaluateConfig((str(path),), compare=False, **HERE)).generated.counts
        assert (counts.n_read, counts.n_valid) == (1, int(cause == "valid")), path.name
        assert counts.rejected_by == ({} if cause == "valid" else {cause: 1}), path.name


def test_path_tricks_in_an_archive_read_and_write_nothing_outside(tricky_tar, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    evaluation = evaluate(EvaluateConfig((str(tricky_tar),), **HERE))
    assert sorted(tmp_path.rglob("*")) == before
    assert evaluation.generated.counts.n_read == 5
    assert {row.formula for row in evaluation.generated.rows} <= {"NaCl", ""}  # the Si beside the archive was not read
    assert evaluation.generated.counts.rejected_by == {"unsafe_path": 4}


def test_a_reference_set_stands_beside(tmp_path, cif_texts):
    generated, reference = tmp_path / "generated", tmp_path / "reference"
    for folder, names in ((generated, ("NaCl", "rutile", "Si")), (reference, ("rutile", "quartz", "ZrO2", "Po"))):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.cif").write_text(cif_texts[name], encoding="utf-8")
    (generated / "NaCl again.cif").write_text(write_cif(parse_cif(cif_texts["NaCl"])[0]), encoding="utf-8")
    (generated / "broken.cif").write_text("data_x", encoding="utf-8")
    evaluation = evaluate(EvaluateConfig((str(generated),), (str(reference),), **HERE))
    assert evaluation.generated.counts.n_read == 5
    assert evaluation.uniqueness == Share(3, 4)  # the second NaCl is the first
    assert evaluation.novelty == Share(3, 4)  # rutile is known
    assert evaluation.unique_and_novel == Share(2, 5)  # NaCl and Si
    assert evaluation.reference is not None
    assert evaluation.reference.counts.n_valid == evaluation.reference.counts.n_read == 4
    assert set(evaluation.reference.rates) == set(evaluation.generated.rates)
    # n_elements: 2, 2, 2, 1 against 2, 2, 2, 1
    assert evaluation.distances["n_elements"] == 0
    densities = [
        [parse_cif(cif_texts[name])[0].density_g_per_cm3 for name in names]
        for names in (("NaCl", "NaCl", "rutile", "Si"), ("rutile", "quartz", "ZrO2", "Po"))
    ]
    assert evaluation.distances["density_g_per_cm3"] == pytest.approx(wasserstein_distance(*densities), rel=1e-6)


@pytest.mark.parametrize(
    "content, message",
    [(None, "empty: no structure file in this folder"), ("data_x", "empty holds no readable crystal")],
)
def test_a_reference_without_a_crystal_is_refused(content, message, tmp_path, root):
    (tmp_path / "empty").mkdir()
    if content:
        (tmp_path / "empty" / "x.cif").write_text(content)
    paths, reference = (str(root / "tests/cifs/NaCl.cif"),), (str(tmp_path / "empty"),)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(EvaluateConfig(paths, reference, **HERE))
    command = [sys.executable, str(root / "bin/evaluate_cifs.py"), *paths, "--reference", *reference, "--workers", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_a_set_against_itself_has_no_novelty_and_no_distance(bad_files):
    evaluation = evaluate(EvaluateConfig((str(bad_files),), (str(bad_files),), **HERE))
    assert evaluation.novelty == Share(0, 3)
    assert evaluation.unique_and_novel == Share(0, evaluation.generated.counts.n_read)
    assert evaluation.reference.rates == evaluation.generated.rates


@pytest.mark.parametrize("rules", RULE_SETS)
def test_po_with_its_one_atom_is_valid_under_all_rules(rules, cif_texts):
    from crystallm.canonical import canonicalize

    full = write_cif(canonicalize(parse_cif(cif_texts["Po"])[0]))
    config = EvaluateConfig(("-",), rules=rules, **HERE)
    evaluation = evaluate_records([CIFRecord("Po", full)], None, config)
    assert evaluation.generated.counts.n_valid == 1, evaluation.generated.rows


def test_a_verdict_of_other_rules_is_taken_anew(cif_texts):
    earlier = CIFRecord("x", cif_texts["NaCl"], rejected_by="bonds", reason="by CrystaLLM's rules")
    unfinished = CIFRecord("y", "", rejected_by="dead_end", reason="no position left")
    evaluation = evaluate_records([earlier, unfinished], None, EvaluateConfig(("-",), **HERE))
    assert evaluation.generated.counts.n_valid == 1
    assert evaluation.generated.counts.rejected_by == {"dead_end": 1}


def test_the_report_has_a_row_for_each_record(bad_files, tmp_path):
    evaluation = evaluate(EvaluateConfig((str(bad_files),), (str(bad_files / "valid.Po.cif"),), **HERE))
    write_report(evaluation, tmp_path / "out/report.parquet")
    table = pd.read_parquet(tmp_path / "out/report.parquet").set_index("id")
    assert len(table) == evaluation.generated.counts.n_read
    assert table.valid.sum() == 3
    assert table.rejected_by.value_counts().to_dict() == dict(evaluation.generated.counts.rejected_by)
    assert (table.reason[~table.valid] != "").all()
    assert table.loc["valid.Po", ["unique", "novel"]].tolist() == [True, False]
    assert table.loc["valid.NaCl", ["unique", "novel"]].tolist() == [True, True]
    assert not table.loc["distance", "passes_distance"] and pd.isna(table.loc["not_utf8", "passes_distance"])


def test_the_command_prints_one_json_object(bad_files, root, tmp_path):
    command = [sys.executable, str(root / "bin/evaluate_cifs.py"), str(bad_files), "--json", "--workers", "0"]
    command += ["--reference", str(root / "tests/cifs/rutile.cif"), "--pictures", str(tmp_path / "pictures")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["n_read"] == len(list(bad_files.iterdir()))
    assert result["n_valid"] + sum(result["rejected_by"].values()) == result["n_read"]
    assert next(iter(result["rates"])) == "parse" and all(0 <= rate <= 1 for rate in result["rates"].values())
    assert result["reference"]["n_valid"] == 1
    assert result["novelty"]["n"] == 2
    assert result["distances"]["n_elements"] == pytest.approx(np.mean([0, 0, 1]))  # NaCl, TiO2, Po against TiO2
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir())[-1] == "volume_per_atom_ang3.png"


def test_the_command_says_what_is_wrong_before_it_reads(root, tmp_path, monkeypatch):
    (tmp_path / "report.parquet").write_text("")
    (tmp_path / "rates.png").write_text("")
    for arguments, message in (
        (["nowhere"], "nowhere does not exist"),
        (["a", "--out", "report.csv"], r"report\.csv: wanted \.parquet, got '\.csv'"),
        (["a", "--workers", "-1"], r"workers must be 0 \(this process\) or more, got -1"),
        (["a", "--out", "report.parquet"], r"report\.parquet exists; --overwrite replaces it"),
        (["a", "--pictures", "."], r"rates\.png exists"),
        (["a", "--reference", "report.parquet", "--out", "report.parquet", "--overwrite"], "is an input"),
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["evaluate_cifs.py", *arguments])
        with pytest.raises(SystemExit, match=message):
            runpy.run_path(str(root / "bin/evaluate_cifs.py"), run_name="__main__")


def test_a_config_without_paths_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        EvaluateConfig(())


@pytest.mark.slow
@pytest.mark.skipif(not MATERIALS_PROJECT.exists(), reason=f"{MATERIALS_PROJECT} is not there")
def test_real_crystals_pass_the_default_rules():
    rows = pd.read_parquet(MATERIALS_PROJECT, columns=["material_id", "cif"]).sample(2000, random_state=0)
    records = [CIFRecord(record_id, cif) for record_id, cif in rows.itertuples(index=False)]
    evaluation = evaluate_records(records, None, EvaluateConfig(("-",), compare=False))
    assert evaluation.generated.counts.n_valid >= 0.99 * 2000, evaluation.generated.counts
