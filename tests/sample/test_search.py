"""Searches by name, with an untrained model: what is asked for is drawn, pooled, weighed, written."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crystallm.asymmetric_unit import AsymmetricUnit, Site
from crystallm.cif_write import write_cif
from crystallm.crystal import Crystal
from crystallm.model.gpt import GPT
from crystallm.records import CIFRecord, read_records
from crystallm.refine.checkpoint import load_refiner
from crystallm.resources import resource_path
from crystallm.sample.composition import Request
from crystallm.sample.formulas import PromptError
from crystallm.sample.generate import SAMPLE_SCORES, GenerateConfig, Generator
from crystallm.sample.prefixes import NextToken
from crystallm.sample.prompts import begin, benchmark_prompt, parse_prompt
from crystallm.sample.report import run, search_summary
from crystallm.sample.rules import Rules
from crystallm.sample.scorers import Scorer, find_scorer
from crystallm.sample.search import (
    SEARCHES,
    SearchConfig,
    SearchResult,
    group_probabilities,
    search_from,
    searches_with,
)
from crystallm.sample.selection import polymorphs, select
from tokenizer import CIFTokenizer

SETTINGS = {"width": 3, "leaves": 4, "groups": 3, "max_formula_units": 2}


@pytest.fixture(scope="module")
def generator(random_gpt: GPT, tokenizer: CIFTokenizer) -> Generator:
    return Generator(random_gpt, tokenizer)


def search(generator: Generator, name: str, prompt: str = "NaCl", num: int = 4, **settings: object) -> SearchResult:
    """Without checks, which an untrained model's samples would hardly pass, and which cost most of the time."""
    given = {key: settings.pop(key) for key in ("seed", "space_group", "temperature") if key in settings}
    config = GenerateConfig(num=num, rules="none", restarts=3, **{"seed": 0, **given})  # type: ignore[arg-type]
    asked = parse_prompt(prompt, config.space_group, 1 if name == "mcts" else None)
    if prompt == "NaCl" and config.space_group is None:
        asked = replace(asked, request=Request(given_units=2))  # an untrained model would make huge cells
    return search_from(generator, [asked], SearchConfig(name, **SETTINGS | settings), config)[0]  # type: ignore[arg-type]


def units(result: SearchResult) -> list[AsymmetricUnit]:
    return [AsymmetricUnit.from_text(record.text) for record in result.records if record.rejected_by is None]


@pytest.mark.parametrize(
    "name",
    [
        "best_of_n",
        "self_consistency",
        "energy_votes",
        "denoising_votes",
        "formula_units",
        "space_groups",
        "beam",
        "mcts",
    ],
)
def test_every_search(name: str, generator: Generator) -> None:
    """Numbered records, one of them the answer; provenance and cost; the same again with the same seed."""
    result = search(generator, name, "KMgF3" if name == "mcts" else "NaCl", 5 if name == "mcts" else 2)
    assert [record.id for record in result.records] == [f"gen-{k:06d}" for k in range(len(result.records))]
    assert result.answer is not None and result.records[result.answer].rejected_by is None
    for k, record in enumerate(result.records):
        stated = record.provenance["search"]
        assert stated["name"] == name and stated["answer"] == (k == result.answer)
        assert stated["cost"] == {"structures": result.n_structures, "tokens": result.n_tokens}
        assert stated["selected_by"] == result.selected_by and json.dumps(record.provenance)
    assert result.n_structures >= len(result.records) and result.n_tokens > 10
    valid = sum(record.rejected_by is None for record in result.records)
    assert sum(row.n for row in result.polymorphs) == valid
    assert sum(row.share for row in result.polymorphs) == pytest.approx(1)
    again = search(generator, name, "KMgF3" if name == "mcts" else "NaCl", 5 if name == "mcts" else 2)
    assert [record.text for record in again.records] == [record.text for record in result.records]
    assert again.answer == result.answer


def test_best_of_n_is_the_likeliest_of_the_same_draws(generator: Generator) -> None:
    best, consistent = search(generator, "best_of_n"), search(generator, "self_consistency")
    assert [record.text for record in best.records] == [record.text for record in consistent.records]
    valid = [record for record in best.records if record.rejected_by is None]
    likeliest = max(valid, key=lambda record: record.scores["log_likelihood_nats"])
    assert best.answer is not None and best.records[best.answer].id == likeliest.id


def test_votes_by_energy_are_of_the_same_draws_and_keep_the_energies(generator: Generator) -> None:
    weighed, consistent = search(generator, "energy_votes"), search(generator, "self_consistency")
    assert [record.text for record in weighed.records] == [record.text for record in consistent.records]
    for record in weighed.records:
        assert ("predicted_formation_energy_ev_per_atom" in record.scores) == (record.rejected_by is None)


def test_other_searches_can_be_answered_by_energies(generator: Generator) -> None:
    result = search(generator, "formula_units", num=2, select="energy_votes")
    assert result.selected_by == "energy_votes" and result.answer is not None
    assert "predicted_formation_energy_ev_per_atom" in result.records[result.answer].scores


def test_strata_of_formula_units(generator: Generator) -> None:
    """Each number that the limit, and the cell of a benchmark's prompt, allow; its probability stays in the scores."""
    result = search(generator, "formula_units", num=2)
    assert [record.provenance["search"]["stratum"] for record in result.records] == [
        {"formula_units": 1}, {"formula_units": 1}, {"formula_units": 2}, {"formula_units": 2},
    ]  # fmt: skip
    for record in result.records:
        stated = f"\n_crystallm_primitive_formula_units {record.provenance['search']['stratum']['formula_units']}\n"
        assert stated in record.text
    crystal = AsymmetricUnit.from_text(units(result)[-1].to_text()).to_crystal()
    n_units = crystal.n_atoms // 2
    config = GenerateConfig(num=1, rules="none", seed=0)
    settings = SearchConfig("formula_units", max_formula_units=n_units + 3)
    (benchmark,) = search_from(generator, [benchmark_prompt(crystal)], settings, config)
    strata = [record.provenance["search"]["stratum"]["formula_units"] for record in benchmark.records]
    assert strata == [n for n in range(1, n_units + 1) if n_units % n == 0]


def test_formula_units_that_the_group_cannot_hold_are_left_out(generator: Generator) -> None:
    """Sites of Ia-3d's primitive cell are 8, 12, 16, ...: with less than 4 units all counts have a common divisor."""
    config = GenerateConfig(num=1, seed=0, rules="none", space_group="230", restarts=0)
    prompts = generator.prompts(config)
    (result,) = search_from(generator, prompts, SearchConfig("formula_units", max_formula_units=5), config)
    assert [record.provenance["search"]["stratum"] for record in result.records] == [{"formula_units": 4}]
    with pytest.raises(PromptError, match="an empty prompt: no number of formula units up to 3 is left"):
        search_from(generator, prompts, SearchConfig("formula_units", max_formula_units=3), config)


def test_strata_of_space_groups(generator: Generator) -> None:
    result = search(generator, "space_groups", num=2)
    drawn = Counter(record.provenance["search"]["stratum"]["space_group"] for record in result.records)
    assert list(drawn.values()) == [2, 2, 2] and [str(number) for number in drawn] == list(result.strata)
    for unit, record in zip(units(result), (r for r in result.records if r.rejected_by is None), strict=True):
        assert unit.space_group_number == record.provenance["search"]["stratum"]["space_group"]
    assert result.selected_by == "weighted_self_consistency"


@torch.no_grad()
def test_group_probabilities(generator: Generator, rules: Rules, random_gpt: GPT) -> None:
    """With the formula units given, the softmax at the group's slot by a full pass; else a mean over units."""
    prompt = parse_prompt("CaTiO3", None, 2)
    found = group_probabilities(generator, prompt)
    ids, new_constraint = begin(prompt, rules)
    slot, _, mask = new_constraint().choice()
    tokens = rules.grammar.slot_tokens[slot].astype(np.int64)
    logits = random_gpt.table()[torch.from_numpy(tokens)] @ random_gpt(torch.tensor([ids]))[0, -1]
    expected = torch.softmax(logits, dim=0)
    assert mask is not None and set(found) <= {rules.group_of[t] for t in tokens[mask].tolist()} and len(found) > 50
    kept = sum(p for t, p in zip(tokens.tolist(), expected.tolist(), strict=True) if rules.group_of[t] in found)
    for token, probability in zip(tokens.tolist(), expected.tolist(), strict=True):
        if rules.group_of[token] in found:
            assert found[rules.group_of[token]] == pytest.approx(probability / kept, rel=1e-4)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_stratum_s_probability_is_in_the_weights(generator: Generator) -> None:
    """What the request forces counts as mass that was cut: so importance weights undo the stratification."""
    prompt = parse_prompt("NaCl", None, 1)
    config = GenerateConfig(num=2, rules="none", seed=1)
    likely = group_probabilities(generator, prompt)
    (result,) = search_from(generator, [prompt], SearchConfig("space_groups", groups=4), config)
    ids, new_constraint = begin(prompt, generator.rules)
    constraint = new_constraint()
    groups = constraint.choice()
    options = NextToken(generator.model, generator.form.slot_tokens)
    scored = options.options(options.after([ids], [groups.slot])[0], groups.slot, None)
    p = {generator.rules.group_of[int(t)]: lp for t, lp in zip(scored.tokens, scored.log_probs, strict=True)}
    for record in result.records:
        number = record.provenance["search"]["stratum"]["space_group"]
        # What later masks cut comes on top of the group's own probability, and can only lower it.
        assert record.scores["log_mask_mass_nats"] <= p[number] + 1e-4
    assert {r.provenance["search"]["stratum"]["space_group"] for r in result.records} == set(list(likely)[:4])


@pytest.mark.parametrize(
    ("name", "prompt", "settings", "error", "message"),
    [
        ("space_groups", "Na-Cl", {}, PromptError, "with a formula"),
        ("space_groups", "NaCl", {"space_group": "Fm-3m"}, PromptError, "without a space group"),
        ("formula_units", "data_NaCl\n_crystallm_primitive_formula_units 2", {}, PromptError, "already"),
        ("deepest", "NaCl", {}, ValueError, "best_of_n, self_consistency.*got 'deepest'"),
        ("beam", "NaCl", {"width": 0}, ValueError, "width"),
        ("mcts", "NaCl", {"scorer": "hardness"}, ValueError, "no scorer 'hardness'.*density"),
        ("mcts", "NaCl", {"scorer": "math:nothing"}, ValueError, "math:nothing.*module:function"),
    ],
)
def test_what_cannot_be_searched(
    name: str, prompt: str, settings: dict, error: type[Exception], message: str, generator: Generator
) -> None:
    with pytest.raises(error, match=message):
        search(generator, name, prompt, **settings)


def test_searches_need_constraints(generator: Generator) -> None:
    for config, message in (
        (GenerateConfig(constraints="syntax"), "constraints=full"),
        (GenerateConfig(until_valid=True), "until_valid"),
        (GenerateConfig(refine=True), "a search goes without refine"),
    ):
        with pytest.raises(ValueError, match=message):
            search_from(generator, [parse_prompt("NaCl")], SearchConfig("beam"), config)


def test_weighted_shares_are_of_draws_at_temperature_1(generator: Generator) -> None:
    """Elsewhere they are no probability of the model: not at another temperature, nor of a beam."""
    shares = {
        case: [row.weighted_share for row in search(generator, name, temperature=temperature).polymorphs]
        for case, name, temperature in (("1", "best_of_n", 1.0), ("0.7", "best_of_n", 0.7), ("beam", "beam", 1.0))
    }
    assert sum(shares["1"]) == pytest.approx(1)
    assert np.isnan(shares["0.7"]).all() and np.isnan(shares["beam"]).all()


def fcc(symbol: str, a: float, name: str) -> CIFRecord:
    unit = AsymmetricUnit(((symbol, 1),), 1, 225, (a, a, a, 90.0, 90.0, 90.0), (Site(symbol, "a", (0.0, 0.0, 0.0)),))
    return CIFRecord(name, write_cif(unit, {}), text=unit.to_text(), scores=dict.fromkeys(SAMPLE_SCORES, -a))


def test_a_summary_tells_of_agreement_and_of_other_formulas() -> None:
    def summary(*records: CIFRecord) -> str:
        rows = polymorphs(records, "self_consistency")
        answer = select(records, "self_consistency")
        return search_summary(SearchResult("", list(records), answer, "self_consistency", rows, 3, 30))

    aluminium, copper = fcc("Al", 4.05, "gen-000000"), fcc("Cu", 3.61, "gen-000001")
    alike = summary(aluminium, replace(aluminium, id="gen-000002"))
    assert "answer, by self_consistency (2 of 2 samples):" in alike
    assert "formulas" not in alike and "no two" not in alike
    other = summary(aluminium, copper)
    assert "the samples are of 2 different formulas: these crystals are not polymorphs" in other
    assert "no two of the 2 samples agree\nanswer, by self_consistency (1 of 2 samples):" in other
    assert "no two" not in summary(aluminium)
    sites = (Site("Na", "a", (0.0, 0.0, 0.0)), Site("Cl", "c", (0.25, 0.25, 0.25)))
    blende = AsymmetricUnit((("Na", 1), ("Cl", 1)), 1, 216, (6.0, 6.0, 6.0, 90.0, 90.0, 90.0), sites)
    salt = replace(blende, space_group_number=225, sites=(sites[0], Site("Cl", "b", (0.5, 0.5, 0.5))))
    of_two_rows = summary(
        *(
            replace(copper, id=unit.group.symbol, cif=write_cif(unit, {}), text=unit.to_text())
            for unit in (blende, salt)
        )
    )
    assert "(2 of 2 samples; the vote takes 1 of other rows for this crystal):" in of_two_rows
    assert "no answer" in summary(replace(aluminium, rejected_by="distance"))


@pytest.mark.parametrize(
    ("name", "by", "there"),
    [
        ("self_consistency", "nonsense", "first, likelihood.* as scores, log_likelihood_nats"),
        ("beam", "min:nonsense", "log_mask_mass_nats, beam_score_nats"),
        ("mcts", "nonsense", "log_mask_mass_nats, density_g_per_cm3"),
    ],
)
def test_an_unknown_selection_is_told_before_anything_is_drawn(
    name: str, by: str, there: str, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = SEARCHES[name]
    monkeypatch.setitem(SEARCHES, name, replace(kind, run=lambda *_: pytest.fail("it was drawn first")))
    with pytest.raises(ValueError, match=f"no way to select '{by}'; there are .*{there}"):
        search(generator, name, select=by, scorer="density")


def test_a_search_s_own_scores_select(generator: Generator) -> None:
    beam = search(generator, "beam", select="beam_score_nats")
    assert beam.selected_by == "beam_score_nats" and beam.answer is not None
    mcts = search(generator, "mcts", "KMgF3", 4, scorer="density", select="min:density_g_per_cm3")
    assert mcts.selected_by == "min:density_g_per_cm3" and mcts.answer is not None


# ---------------------------------------------------------------- scorers


def shortest_text(records: list[CIFRecord]) -> list[float]:
    """A user's own scorer, found by `module:function`."""
    return [-float(len(record.text)) for record in records]


def test_a_function_of_one_s_own_leads_the_tree(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("my_scorers")
    module.shortest_text = shortest_text  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_scorers", module)
    result = search(generator, "mcts", "KMgF3", 8, scorer="my_scorers:shortest_text")
    valid = [record for record in result.records if record.rejected_by is None]
    assert result.selected_by == "shortest_text" and result.answer is not None
    assert all(record.scores["shortest_text"] == -len(record.text) for record in valid)
    assert len(result.records[result.answer].text) == min(len(record.text) for record in valid)


def test_the_refiner_knows_a_crystal_from_a_mess() -> None:
    salt = [("Na", (0.0, 0.0, 0.0)), ("Cl", (0.5, 0.5, 0.5))]
    mess = [("Na", (0.0, 0.0, 0.0)), ("Cl", (0.35, 0.3, 0.4))]
    records = []
    for name, sites in (("salt", salt), ("mess", mess)):
        frac, symbols = [place for _, place in sites], [symbol for symbol, _ in sites]
        records.append(CIFRecord(name, write_cif(Crystal.from_parameters((3.99,) * 3 + (60.0,) * 3, frac, symbols))))
    scorer = find_scorer("denoising_error")
    scored, values = scorer.apply([*records, CIFRecord("broken", "", rejected_by="parse")])
    errors = [record.scores.get("denoising_error") for record in scored]
    assert errors[0] < 0.3 * errors[1] and errors[2] is None  # type: ignore[operator]
    assert values == [-errors[0], -errors[1], None] and scorer.selection == "min:denoising_error"  # type: ignore[operator]
    assert scorer.model_hash == load_refiner(resource_path("resources/refiner"))[1]["model_hash"]
    assert find_scorer("denoising_error").apply(records)[0] == scored[:2]  # the same noise each time


def test_scorers_by_hand(root: Path) -> None:
    records = [
        CIFRecord("salt", (root / "tests" / "cifs" / "NaCl.cif").read_text()),
        CIFRecord("broken", "", rejected_by="parse"),
        CIFRecord("silicon", (root / "tests" / "cifs" / "Si.cif").read_text()),
    ]
    scored, values = find_scorer("density").apply(records)
    assert [record.scores.get("density_g_per_cm3") for record in scored] == [values[0], None, values[2]]
    assert values[0] == pytest.approx(2.16, abs=0.03) and values[2] == pytest.approx(2.33, abs=0.03)
    assert find_scorer("min:density").apply(records)[1] == [-values[0], None, -values[2]]  # type: ignore[operator]
    volume = find_scorer("volume_per_atom")
    assert volume.selection == "min:volume_per_atom_ang3" and find_scorer("max:volume_per_atom").higher_is_better
    nan = Scorer("energy", lambda valid: [float("nan"), 1.0])
    scored, values = nan.apply(records)
    assert [record.rejected_by for record in scored] == ["score", "parse", None] and values == [None, None, 1.0]
    with pytest.raises(ValueError, match="energy gave 1 scores for 2"):
        Scorer("energy", lambda valid: [1.0]).apply(records)


# ---------------------------------------------------------------- the command


def test_what_is_printed_and_written(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = GenerateConfig(
        prompt="NaCl",
        space_group="225",
        formula_units=1,
        num=3,
        seed=0,
        model=checkpoint,
        rules="none",
        out=str(tmp_path / "nacl"),
    )
    tally = run(config, SearchConfig("self_consistency"))
    printed = capsys.readouterr().out
    assert "distinct crystals" in printed and "cost: " in printed
    assert re.search(r"^answer, by self_consistency \([123] of 3 samples\):$", printed, re.M)
    assert "Fm-3m (225)" in printed and "weighted %" in printed and "  votes  " in printed
    lines = (tmp_path / "nacl.polymorphs.csv").read_text().splitlines()
    assert lines[0].startswith("prompt,formula,n,share") and lines[1].startswith("NaCl,NaCl,")
    read = list(read_records(tmp_path / "nacl"))
    asked = parse_prompt("NaCl", "225", 1)
    [result] = search_from(Generator.load(checkpoint), [asked], SearchConfig("self_consistency"), config)
    assert tally.counts.n_read == len(result.records) and len(read) == tally.counts.n_valid
    assert [record.provenance["search"] for record in read] == [
        record.provenance["search"] for record in result.records if record.rejected_by is None
    ]


def test_arguments(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--policy", "uct"], "--policy goes with --search mcts"),
        (["--search", "beam", "--scorer", "density"], "--scorer goes with --search mcts; beam does not look at it"),
        (["--search", "beam", "--num", "4"], "space_groups, mcts; beam does not look at it"),
        (["--search", "beam", "--temperature", "0.7"], "--temperature goes with --search best_of_n"),
        (["--search", "self_consistency", "--groups", "4"], "--groups goes with --search space_groups; self_"),
        (["--search", "energy_votes", "--width", "4"], "--width goes with --search beam, mcts; energy_votes"),
        (["--search", "mcts", "--branch", "tokens"], "--branch goes with --search beam; mcts does not look at it"),
        (["--search", "best_of_n", "--prompt", "NaCl", "--refine"], "a search goes without refine"),
        (["--search", "mcts", "--workers", "2"], "--workers goes with --search best_of_n"),
        (["--refiner", "mine"], "refiner goes with refine, got refiner='mine' alone"),
        (["--search", "beam", "--width", "0"], "width must be at least 1"),
        (["--search", "space_groups", "--prompt", "Na-Cl"], "wants a prompt with a formula"),
    ):
        monkeypatch.setattr(sys, "argv", ["sample.py", *arguments])
        with pytest.raises(SystemExit):
            runpy.run_path(str(root / "bin" / "sample.py"), run_name="__main__")
        assert message in capsys.readouterr().err


def test_every_setting_belongs_to_a_search() -> None:
    for one in fields(SearchConfig):
        assert searches_with(one.name), one.name
    assert searches_with("width") == ["beam", "mcts"] and searches_with("select") == list(SEARCHES)
    assert "beam" not in searches_with("num") and searches_with("prompt") == list(SEARCHES)
    drawing = {one.name for one in fields(GenerateConfig)}
    assert all(drawing.issuperset(kind.unused) for kind in SEARCHES.values())


def test_beam_does_not_look_at_what_it_says(generator: Generator) -> None:
    plain = GenerateConfig(num=2, rules="none", seed=0)
    asked = replace(parse_prompt("NaCl"), request=Request(given_units=2))
    other = {"num": 5, "temperature": 0.3, "top_k": 2, "top_p": 0.5, "restarts": 1}
    other |= {"dtype": "bfloat16", "workers": 2}
    assert set(other) == set(SEARCHES["beam"].unused)
    texts = [
        [record.text for record in search_from(generator, [asked], SearchConfig("beam", width=3), config)[0].records]
        for config in (plain, replace(plain, **other))  # type: ignore[arg-type]
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["beam", "mcts"])
def test_no_processes_are_started_for_what_is_drawn_here(
    name: str, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checked_here(function, records, workers, *args, **kwargs):  # type: ignore[no-untyped-def]
        assert workers == 0
        return map(function, records)

    monkeypatch.setattr("crystallm.checks.filter.map_processes", checked_here)
    settings, config = SearchConfig(name, width=2, leaves=2), GenerateConfig(num=2, seed=0, workers=2)
    [result] = search_from(generator, [parse_prompt("NaCl", 225, 1)], settings, config)
    assert result.records and name not in searches_with("workers")


def test_help_states_the_defaults(root: Path) -> None:
    shown = subprocess.run(
        [sys.executable, str(root / "bin/sample.py"), "--help"], capture_output=True, text=True
    ).stdout
    shown = " ".join(shown.split())
    for name in ("num", "temperature", "restarts", "batch", "guidance", "device", "dtype", "rules"):
        assert re.search(rf"--{name} \S+ [^(]*\(default: {GenerateConfig.__dict__[name]}\b", shown), name
    for name in ("width", "groups", "leaves", "policy", "scorer"):
        assert re.search(rf"--{name} \S+ [^(]*\(default: {SearchConfig.__dict__[name]}\)", shown), name
