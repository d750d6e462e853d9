"""Which sample a predicted property chooses, with predictors whose opinion is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crystallm.benchmark.csp import CSPConfig, benchmark_csp
from crystallm.benchmark.ranking import RankingConfig, compare_rankings, ranking_table
from crystallm.benchmark.run_folder import RunFolder
from crystallm.properties.prediction import Predictor
from crystallm.records import CIFRecord
from crystallm.sample.refined import load

NUM = 4


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranking") / "run"
    return out, benchmark_csp(CSPConfig(str(table), str(out), num=NUM, workers=0, device="cpu", split="val"))


def judged_of(run: Path) -> list[Any]:
    return RunFolder(run, json.loads((run / "config.json").read_text())).read_judged(0)


def knowing(values: dict[str, float]) -> Any:
    """In place of Predictor.score: the values of samples by id, 0 for others."""

    def score(self: Predictor, records: Sequence[CIFRecord]) -> list[CIFRecord]:
        name = "predicted_formation_energy_ev_per_atom"
        return [replace(one, scores=one.scores | {name: values.get(one.id, 0.0)}) for one in records]

    return score


def test_one_who_knows_the_answer_finds_it_and_one_who_errs_never(
    run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    folder, results = run
    right = {f"{one.id}/{k:03d}": -1.0 for one in judged_of(folder) for k in range(NUM) if np.isfinite(one.rms[k])}
    best = results["scores"]["unfiltered"][f"n={NUM}"]["match_rate"]
    assert 0 < best < 1  # or nothing is to be chosen
    for sign in (1.0, -1.0):
        monkeypatch.setattr(Predictor, "score", knowing({name: sign * value for name, value in right.items()}))
        answers = compare_rankings(RankingConfig(str(folder), votes=(0.01,)))["answers"]
        rates = [answers[way]["match_rate"] for way in answers if "formation_energy" in way]
        if sign > 0:
            assert rates == [best, best]
        else:
            assert all(rate < best for rate in rates)


def test_equal_values_choose_the_first_and_leave_votes_alone(
    run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Predictor, "score", knowing({}))
    results = compare_rankings(RankingConfig(str(run[0])))
    first, likelihood, consistent, by_value, by_votes = (one["match_rate"] for one in results["answers"].values())
    scores = run[1]["scores"]["unfiltered"]
    assert (first, consistent) == (scores["n=1"]["match_rate"], scores[f"self_consistency of {NUM}"]["match_rate"])
    assert likelihood == scores[f"likelihood of {NUM}"]["match_rate"]
    assert by_votes == consistent
    first_valid = [
        next((r for r, why in zip(one.rms, one.rejected_by, strict=True) if not why), np.nan)
        for one in judged_of(run[0])
    ]
    assert by_value == np.mean(np.isfinite(first_valid))


def test_the_predictor_sees_refined_samples_when_asked(
    run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    seen: list[list[CIFRecord]] = []

    def score(self: Predictor, records: Sequence[CIFRecord]) -> list[CIFRecord]:
        seen.append(list(records))
        return knowing({})(self, records)

    monkeypatch.setattr(Predictor, "score", score)
    for refine in (False, True):
        results = compare_rankings(RankingConfig(str(run[0]), refine=refine))
        assert ("of a refined sample" in ranking_table(results)) is refine
    assert [one.id for one in seen[0]] == [one.id for one in seen[1]]
    assert not any("refined" in one.provenance for one in seen[0])
    assert all("refined" in one.provenance for one in seen[1] if one.text)
    assert any(new.text != old.text for old, new in zip(*seen, strict=True))


def test_denoising_errors_choose_as_well(run: tuple[Path, dict[str, Any]]):
    results = compare_rankings(RankingConfig(str(run[0]), by="denoising_error"))
    assert list(results["answers"])[-2:] == ["denoising_error", "self-consistency, votes exp(-denoising_error / 0.2)"]
    assert results["predictor"] == load()[1]["model_hash"][:12]
    assert results["answers"]["denoising_error"]["match_rate"] > 0


def test_a_folder_without_a_run(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        compare_rankings(RankingConfig(str(tmp_path / "nothing")))
