"""A whole run with the bundled model: its figures against pymatgen, resumed against unbroken, nothing lost."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from safetensors.torch import save_file

from crystallm.benchmark import csp
from crystallm.benchmark.csp import CSPConfig, benchmark_csp
from crystallm.benchmark.log import LogError
from crystallm.benchmark.run_folder import OtherRunError, RunFolder
from crystallm.cif import parse_cif
from crystallm.model.checkpoint import model_info
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.properties.prediction import Predictor
from crystallm.records import CIFRecord, read_records
from crystallm.sample.prompts import PromptError
from tokenizer import CIFTokenizer
from tokenizer.pieces import digits_spec
from tokenizer.vocabulary import vocabulary_from_spec

NUM = 3
RUN_OF_TIME = ("seconds_per_structure", "commits")  # what may differ between equal runs


def config_of(table: Path, out: Path, **settings: Any) -> CSPConfig:
    values = {"num": NUM, "targets_at_once": 3, "workers": 0, "device": "cpu", "split": "val"} | settings
    return CSPConfig(str(table), str(out), **values)


@pytest.fixture(scope="module")
def unbroken(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("run") / "unbroken"
    return out, benchmark_csp(config_of(table, out))


def without_time(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key not in RUN_OF_TIME}


def samples_of(out: Path) -> dict[str, list[CIFRecord]]:
    found: dict[str, list[CIFRecord]] = {}
    for path in sorted((out / "samples").glob("*.parquet")):
        for record in read_records(path):
            found.setdefault(record.id.split("/")[0], []).append(record)
    return found


def test_figures_are_pymatgens(table: Path, unbroken: tuple[Path, dict[str, Any]]) -> None:
    """From the files alone: the samples as written, the rows of the table, and StructureMatcher as it is."""
    out, results = unbroken
    matcher = StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3)
    rows = pd.read_parquet(table)
    true = {r.material_id: Structure.from_str(r.cif, fmt="cif") for r in rows.itertuples() if r.material_id != "broken"}
    drawn = {name: [record.structure for record in records] for name, records in samples_of(out).items()}
    assert {name: len(some) for name, some in drawn.items()} == dict.fromkeys(true, NUM)

    def distance(predicted: Structure, reference: Structure) -> float:
        same = predicted.composition.reduced_formula == reference.composition.reduced_formula
        found = matcher.get_rms_dist(predicted, reference) if same else None
        return math.inf if found is None else found[0]

    for n in (1, NUM):
        own = [min(distance(p, true[name]) for p in drawn[name][:n]) for name in true]
        everyone = [min(distance(p, true[name]) for some in drawn.values() for p in some[:n]) for name in true]
        figures = results["scores"]["unfiltered"][f"n={n}"]
        assert figures["n_targets"] == 8
        assert figures["match_rate"] == np.isfinite(own).sum() / 8
        assert figures["crmse"] == pytest.approx((sum(min(rms, 0.5) for rms in own) + 0.5) / 8, abs=1e-5)
        assert figures["metre"] == np.isfinite(everyone).sum() / 8
        assert figures["metre_crmse"] == pytest.approx((sum(min(rms, 0.5) for rms in everyone) + 0.5) / 8, abs=1e-5)
    assert results["scores"]["unfiltered"][f"n={NUM}"]["n_matched"] > 0, "nothing matches: the test shows nothing"
    assert results["metre_compares"] == {"samples": "all", "pairs": 2 * NUM}


def test_every_target_is_accounted_for(unbroken: tuple[Path, dict[str, Any]]) -> None:
    out, results = unbroken
    table = pd.read_parquet(out / "targets.parquet")
    assert len(table) == results["n_targets"] == 8 and results["n_formulas"] == 6
    [(name, why)] = results["lost"].items()
    assert name == "4: broken" and why.startswith("unread row") and "no value for _cell_length_b" in why
    broken = table[table.id == "broken"].iloc[0]
    assert broken.lost == why and not broken["n=1, unfiltered: matched"]
    assert json.loads(broken.rejected_by) == {"unread": NUM}
    samples = results["samples"]
    assert samples["rejected_by"]["unread"] == NUM
    assert samples["valid_by_default_rules"] + sum(samples["rejected_by"].values()) / 24 == pytest.approx(1)
    for name, rows in results["scores"].items():
        best = rows[f"n={NUM}"]
        for figures in rows.values():
            assert figures["match_rate"] <= best["match_rate"], name
            assert figures["metre"] >= figures["match_rate"]
    matched = table[f"n={NUM}, unfiltered: matched"].sum()
    assert matched == results["scores"]["unfiltered"][f"n={NUM}"]["n_matched"]


def test_filters_and_selection(unbroken: tuple[Path, dict[str, Any]]) -> None:
    out, results = unbroken
    ceiling = results["ceiling"]
    assert ceiling["true_structures"] == 7 and ceiling["cdvae"] == ceiling["cdvae_composition"] == 1
    table = pd.read_parquet(out / "targets.parquet").set_index("id")
    for name, records in samples_of(out).items():
        likeliest = max(range(NUM), key=lambda k: records[k].scores["log_likelihood_nats"])
        rejected = json.loads(table.loc[name, "rejected_by"])
        assert rejected or table.loc[name, "selected by likelihood"] == likeliest
        rms = table.loc[name, f"likelihood of {NUM}, unfiltered: rms"]
        if not rejected and likeliest == 0:
            assert rms == pytest.approx(table.loc[name, "n=1, unfiltered: rms"], nan_ok=True)
    text = (out / "results.md").read_text(encoding="utf-8")
    assert f"| self_consistency of {NUM} |" in text and "ceiling of a filtered match rate: 100.0 %" in text


def test_an_answer_by_predicted_energies_names_what_predicting_cost(
    table: Path, unbroken: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    results = benchmark_csp(config_of(table, tmp_path / "run", select=("self_consistency", "energy_votes")))
    scores = results["scores"]["unfiltered"]
    plain, weighed = scores[f"self_consistency of {NUM}"], scores[f"energy_votes of {NUM}"]
    assert plain == unbroken[1]["scores"]["unfiltered"][f"self_consistency of {NUM}"]
    assert weighed["n_targets"] == 8
    identity = json.loads((tmp_path / "run" / "config.json").read_text())
    assert identity["scorers"] == {"energy_votes": Predictor.load().info["model_hash"]}
    assert "scorers" not in json.loads((unbroken[0] / "config.json").read_text())
    seconds = results["seconds_per_structure"]
    assert seconds["select_energy_votes_cpu"] > seconds["select_self_consistency_cpu"] > 0
    for records in samples_of(tmp_path / "run").values():
        assert all(
            math.isfinite(r.scores["predicted_formation_energy_ev_per_atom"]) for r in records if not r.rejected_by
        )


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", ["after samples", "before judged", "cross"])
def test_a_killed_run_goes_on(
    at: str, table: Path, tmp_path: Path, unbroken: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(self: RunFolder, chunk: int, *rest: Any) -> None:
        if chunk == 1:
            if at == "after samples":
                write_samples(self, chunk, *rest)
            (self.path / "judged").mkdir(exist_ok=True)
            (self.path / "judged" / ".0001.parquet.part").write_bytes(b"half of it")
            raise Killed
        (write_judged if at == "before judged" else write_samples)(self, chunk, *rest)

    write_samples, write_judged, draws = RunFolder.write_samples, RunFolder.write_judged, []
    sample = csp._Run._sample
    monkeypatch.setattr(csp._Run, "_sample", lambda self, chunk: (draws.append(chunk), sample(self, chunk))[1])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if at == "cross":
            patch.setattr(csp, "map_processes", _killing(csp.map_processes))
        else:
            patch.setattr(RunFolder, "write_judged" if at == "before judged" else "write_samples", kill)
        benchmark_csp(config_of(table, tmp_path / "run"))
    results = benchmark_csp(config_of(table, tmp_path / "run"))
    out, expected = unbroken
    assert draws == [0, 1, 2], "a chunk that was written is not drawn again"
    assert without_time(results) == without_time(expected)
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "run/targets.parquet"), pd.read_parquet(out / "targets.parquet")
    )


def _killing(map_processes: Any) -> Any:
    def mapped(function: Any, *rest: Any, **options: Any) -> Any:
        if function is csp.match_block:
            raise Killed
        return map_processes(function, *rest, **options)

    return mapped


@pytest.mark.multi_process
def test_workers_and_chunks_do_not_matter(table: Path, tmp_path: Path, unbroken: tuple[Path, dict[str, Any]]) -> None:
    """But for the random numbers, which go by chunk: so the workers judge the samples of the unbroken run."""
    out, expected = unbroken
    copy = tmp_path / "run"
    (copy / "samples").mkdir(parents=True)
    for path in [out / "config.json", *(out / "samples").iterdir()]:
        (copy / path.relative_to(out)).write_bytes(path.read_bytes())
    assert without_time(benchmark_csp(config_of(table, copy, workers=1))) == without_time(expected)


def test_another_run_is_refused(table: Path, unbroken: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, expected = unbroken
    before = (out / "results.json").stat().st_mtime_ns
    assert benchmark_csp(config_of(table, out, workers=3, batch=7)) == expected, "what is done is only shown"
    assert (out / "results.json").stat().st_mtime_ns == before
    with pytest.raises(OtherRunError, match=r"settings.temperature: 1.0, now 0.5; settings.seed: 0, now 1\."):
        benchmark_csp(config_of(table, out, temperature=0.5, seed=1))
    other_rows = tmp_path / "rows.parquet"
    pd.read_parquet(table).assign(material_id="x").to_parquet(other_rows)
    with pytest.raises(OtherRunError, match="rows_sha256"):
        benchmark_csp(replace(config_of(other_rows, out), dataset=str(other_rows)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(OtherRunError, match="holds other files"):
        benchmark_csp(config_of(table, tmp_path / "mine"))


def test_what_goes_wrong_is_a_miss_and_named(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that is refused, a target whose worker fails, a sample that the matcher cannot take."""
    from crystallm.benchmark import judge
    from crystallm.sample.text_forms import CanonicalForm

    begin, judge_target, distance_to = CanonicalForm.begin, csp.judge_target, judge.distance_to

    def picky(self: Any, prompt: Any, *rest: Any) -> Any:
        if "ZnS" in prompt.text:
            raise PromptError("no ZnS here")
        return begin(self, prompt, *rest)

    def failing(task: Any) -> Any:
        if task.id == "mgo":
            raise RuntimeError("out of luck")
        return judge_target(task)

    def stumbling(predicted: Any, reference: Any) -> float:
        if 81 in predicted.atomic_numbers:
            raise ArithmeticError("singular")
        return distance_to(predicted, reference)

    monkeypatch.setattr(CanonicalForm, "begin", picky)
    monkeypatch.setattr(csp, "judge_target", failing)
    monkeypatch.setattr(judge, "distance_to", stumbling)
    results = benchmark_csp(config_of(table, tmp_path / "run", num=1, select=()))
    lost = results["lost"]
    assert lost["2: zns"] == "prompt: no ZnS here" and "RuntimeError: out of luck" in lost["5: mgo"]
    assert set(lost) == {"2: zns", "4: broken", "5: mgo"}
    assert results["errors"] == ["tlbr/000: ArithmeticError: singular"]
    assert results["samples"]["rejected_by"].items() >= {"refused": 1, "unread": 1, "error": 1}.items()
    assert results["scores"]["unfiltered"]["n=1"]["n_targets"] == 8
    table_of_targets = pd.read_parquet(tmp_path / "run/targets.parquet").set_index("id")
    assert not table_of_targets.loc[["zns", "mgo", "tlbr", "broken"], "n=1, unfiltered: matched"].any()


def test_formula_alone(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    results = benchmark_csp(config_of(table, out, formula_only=True, limit=2, num=1, select=()))
    assert results["prompt"] == "formula"
    assert [records[0].prompt for records in samples_of(out).values()] == ["NaCl", "CsCl"]


def test_metre_within_the_limit_of_pairs(table: Path, tmp_path: Path) -> None:
    for limit, kinds, known in [(2 * 3, "all", True), (3, "first", False), (1, "none", False)]:
        config = config_of(
            table, tmp_path / kinds, where="material_id.str.startswith('cscl')", select=(), max_pairs=limit
        )
        results = benchmark_csp(config)
        assert results["metre_compares"]["samples"] == kinds
        rows = results["scores"]["unfiltered"]
        assert (rows[f"n={NUM}"]["metre"] is not None) == known
        assert (rows["n=1"]["metre"] is not None) == (kinds != "none")


def test_test_rows_are_logged_once(table: Path, tmp_path: Path) -> None:
    path, log = tmp_path / "test_rows.parquet", tmp_path / "LOG.md"
    pd.read_parquet(table).assign(split="test").to_parquet(path)
    settings: dict[str, Any] = {"split": "test", "limit": 2, "num": 1, "select": (), "log": str(log)}
    first = config_of(path, tmp_path / "first", **settings)
    results = benchmark_csp(first)
    entry = log.read_text(encoding="utf-8")
    assert entry.count("csp-test") == 1 and results["model_hash"][:12] in entry and results["config_hash"][:12] in entry
    assert f"{100 * results['scores']['unfiltered']['n=1']['match_rate']:.2f}" in entry
    benchmark_csp(first)  # the same folder: nothing new is run, nothing new is written
    assert log.read_text(encoding="utf-8") == entry
    second = config_of(path, tmp_path / "second", temperature=0.5, **settings)
    with pytest.raises(LogError, match="--again"):
        benchmark_csp(second)
    assert not (tmp_path / "second").exists()
    benchmark_csp(replace(second, again=True))
    assert log.read_text(encoding="utf-8").count("csp-test") == 2


def test_settings_are_checked(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no way to select 'luck'; there are first, likelihood"):
        config_of(table, tmp_path, select=("luck",))
    with pytest.raises(ValueError, match="temperature"):
        config_of(table, tmp_path, temperature=-1.0)


@pytest.mark.slow
@pytest.mark.multi_process
def test_a_real_kill(root: Path, table: Path, tmp_path: Path, unbroken: tuple[Path, dict[str, Any]]) -> None:
    """SIGKILL as soon as the first chunk is judged, then the same command again."""
    out = tmp_path / "run"
    command = [sys.executable, str(root / "bin/benchmark_csp.py"), "--dataset", str(table), "--split", "val"]
    command += ["--num", str(NUM), "--targets-at-once", "3", "--workers", "1", "--device", "cpu", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (out / "judged/0000.parquet").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "results.json").exists(), "it was too fast to be killed"
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "| n=1 |" in done.stdout
    stored, expected = (
        json.loads((out / "results.json").read_text()),
        json.loads((unbroken[0] / "results.json").read_text()),
    )
    assert without_time(stored) == without_time(expected)


def test_a_model_without_a_grammar_is_asked_for_cells_of_many_formula_units(root: Path, tmp_path: Path) -> None:
    tokenizer = CIFTokenizer(vocabulary_from_spec(digits_spec()))
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=40, number_hidden=8, loss="full")
    torch.manual_seed(0)
    model = GPT(config, token_spec(tokenizer, "full"))
    (tmp_path / "model").mkdir()
    save_file({name: p.detach() for name, p in model.named_parameters()}, tmp_path / "model/model.safetensors")
    (tmp_path / "model/config.json").write_text(json.dumps(model_info(config, tokenizer)))
    row = {"material_id": "nacl", "cif": (root / "tests/cifs/NaCl.cif").read_text(), "split": "val"}
    assert parse_cif(row["cif"])[0].n_atoms == 8
    pd.DataFrame([row]).to_parquet(tmp_path / "one.parquet")
    results = benchmark_csp(config_of(tmp_path / "one.parquet", tmp_path / "run", model=str(tmp_path / "model")))
    assert results["lost"] == {} and set(results["samples"]["rejected_by"]) <= {"unfinished", "syntax"}
