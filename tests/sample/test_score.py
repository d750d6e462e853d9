"""Scores of CIFs against the sampler's own, and against sums by hand."""

from __future__ import annotations

import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from crystallm.canonical import canonicalize
from crystallm.cif import parse_cif
from crystallm.data.readers import read_sources
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.records import CIFRecord
from crystallm.sample import score as score_module
from crystallm.sample.engine import Engine, Job
from crystallm.sample.generate import Generator
from crystallm.sample.prompts import begin, parse_prompt
from crystallm.sample.score import Score, score_records, score_table, write_scores
from tokenizer import CIFTokenizer

NAMES = ("NaCl", "rutile", "SrTiO3", "hematite", "quartz", "Si")


@pytest.fixture(scope="module")
def generator(random_gpt: GPT, tokenizer: CIFTokenizer) -> Generator:
    return Generator(random_gpt, tokenizer)


@pytest.fixture(scope="module")
def records(root: Path) -> list[CIFRecord]:
    good = [CIFRecord(name, (root / "tests" / "cifs" / f"{name}.cif").read_text()) for name in NAMES]
    bad = [CIFRecord("words", "no CIF at all"), CIFRecord("old", "", rejected_by="empty", reason="it was empty")]
    return [*good[:3], *bad, *good[3:]]


@torch.no_grad()
def by_hand(generator: Generator, text: str) -> list[tuple[str, float]]:
    """(token, nats) of what the grammar left open, from one forward pass over this text alone."""
    ids = generator.tokenizer.encode(text)
    grammar, table = generator.rules.grammar, generator.model.table()
    hidden = generator.model(torch.tensor([ids]))[0]  # (T, C)
    found = []
    for position, slot in enumerate(grammar.slots(np.array(ids)).tolist()):
        if slot >= 0 and position > 0:
            tokens = torch.from_numpy(grammar.slot_tokens[slot].astype(np.int64))
            log_probs = torch.log_softmax(table[tokens] @ hidden[position - 1], dim=0)
            found.append((generator.tokenizer.token(ids[position]), float(log_probs[tokens == ids[position]])))
    return found


def test_scores_by_hand(generator: Generator, records: list[CIFRecord]) -> None:
    scores = {one.id: one for one in score_records(records, generator)}
    assert list(scores) == [record.id for record in records], "as many as came in, in their order"
    for name in NAMES:
        record = next(record for record in records if record.id == name)
        text = canonicalize(parse_cif(record.cif)[0]).to_text()
        chosen, one = by_hand(generator, text), scores[name]
        assert one.log_likelihood_nats == pytest.approx(sum(nats for _, nats in chosen), abs=1e-3)
        # The formula ends with the keyword of the formula units, which is chosen as well.
        keyword = [token for token, _ in chosen].index("\n_crystallm_primitive_formula_units ")
        after = sum(nats for _, nats in chosen[keyword + 1 :])
        assert one.log_likelihood_given_formula_nats == pytest.approx(after, abs=1e-3)
        assert one.n_tokens == len(generator.tokenizer.encode(text)) - 1
        assert one.perplexity == pytest.approx(math.exp(-one.log_likelihood_nats / one.n_tokens))
    assert (scores["SrTiO3"].formula, scores["SrTiO3"].space_group_number) == ("SrTiO3", 221)
    ranked = sorted(NAMES, key=lambda name: scores[name].perplexity)
    assert [scores[name].rank for name in ranked] == list(range(1, len(NAMES) + 1))


def test_what_has_no_score_says_why(generator: Generator, records: list[CIFRecord]) -> None:
    scores = {one.id: one for one in score_records(records, generator)}
    for name, by in (("words", "syntax"), ("old", "empty")):
        assert scores[name].rejected_by == by and scores[name].reason and scores[name].rank == 0
        assert math.isnan(scores[name].perplexity)
    assert score_table(list(scores.values()), limit=0).startswith("scored ")
    table = score_table(list(scores.values()), limit=2)
    assert f"scored {len(NAMES)} of {len(records)}" in table and "1 empty: it was empty (old)" in table
    assert "… and 4 more" in table


def test_a_structure_that_is_too_long(tokenizer: CIFTokenizer, records: list[CIFRecord]) -> None:
    torch.manual_seed(0)
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=35, number_hidden=8)
    small = Generator(GPT(config, token_spec(tokenizer)).eval(), tokenizer)
    scores = {one.id: one for one in score_records(records, small)}
    assert scores["SrTiO3"].rejected_by == "too_long" and "at most 35" in scores["SrTiO3"].reason
    assert scores["NaCl"].rank == 1 or scores["Si"].rank == 1


def test_given_the_formula(generator: Generator, records: list[CIFRecord]) -> None:
    """Perplexity of what follows it, and the rank by that."""
    whole, given = (score_records(records, generator, given_formula=flag) for flag in (False, True))
    for one, other in zip(whole, given, strict=True):
        if one.rank:
            assert one.log_likelihood_nats == pytest.approx(other.log_likelihood_nats)
            formula = generator.tokenizer.encode(f"data_{one.formula}\n_crystallm_primitive_formula_units ")
            n_after = one.n_tokens + 1 - len(formula)
            assert other.log_likelihood_per_token == pytest.approx(one.log_likelihood_given_formula_nats / n_after)


def test_as_the_sampler_scores_its_own(generator: Generator) -> None:
    """What the engine adds up while it draws is what scoring the finished text after the formula gives."""
    jobs = [Job(k, *begin(parse_prompt("CaTiO3", "Pnma", 4), generator.rules)) for k in range(6)]
    jobs += [Job(k, *begin(parse_prompt("NaCl", "Fm-3m", 1), generator.rules)) for k in range(6, 8)]
    ended = [s for s in Engine(generator.model, generator.form.slot_tokens).run(jobs, 0) if s.stopped == "end"]
    assert len(ended) >= 2
    for sample in ended:
        text = generator.tokenizer.decode(sample.ids)
        open_nats = dict(enumerate(by_hand(generator, text)))
        n_given = sum(s >= 0 for s in generator.rules.grammar.slots(np.array(sample.ids))[1 : sample.n_prompt])
        nats = [value for _, value in open_nats.values()][int(n_given) :]
        assert sample.log_likelihood == pytest.approx(sum(nats), abs=2e-3)


def test_batches_do_not_show(generator: Generator, records: list[CIFRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score_records(records, generator)
    monkeypatch.setattr(score_module, "TOKENS_AT_ONCE", 1)
    monkeypatch.setattr(score_module, "RECORDS_AT_ONCE", 3)
    alone = score_records(records, generator)
    for one, other in zip(whole, alone, strict=True):
        assert (one.id, one.rank, one.rejected_by) == (other.id, other.rank, other.rejected_by)
        assert one.perplexity == pytest.approx(other.perplexity, rel=1e-4, nan_ok=True)


def test_an_id_may_hold_a_line_break(generator: Generator, root: Path) -> None:
    [score] = score_records([CIFRecord("two\nlines", (root / "tests/cifs/NaCl.cif").read_text())], generator)
    assert score.id == "two\nlines" and score.rank == 1


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_files(ending: str, generator: Generator, root: Path, tmp_path: Path) -> None:
    paths = [root / "tests" / "cifs" / "NaCl.cif", root / "tests" / "cifs" / "rutile.cif"]
    (tmp_path / "empty.cif").write_text("data_x\n")
    scores = score_records(read_sources([*paths, tmp_path / "empty.cif"]), generator)
    write_scores(tmp_path / f"scores.{ending}", scores)
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet}[ending](tmp_path / f"scores.{ending}")
    assert read["id"].tolist() == ["NaCl", "rutile", "empty"]
    assert read["rank"].tolist()[:2] == [one.rank for one in scores[:2]]
    assert read["perplexity"].tolist() == pytest.approx([one.perplexity for one in scores], nan_ok=True)
    numbers = ["space_group_number", "formula_units", "n_tokens", "rank", "perplexity"]
    assert read[numbers].iloc[2].isna().all(), "what is not known is missing, not 0"
    with pytest.raises(ValueError, match=r"\.csv or \.parquet, got '\.xlsx'"):
        write_scores(tmp_path / "scores.xlsx", [Score("a")])


def test_the_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.csv"
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["score_cifs.py", "tests/cifs/NaCl.cif", "--workers", "0", "--out", str(out)])
    runpy.run_path("bin/score_cifs.py", run_name="__main__")
    assert "scored 1 of 1" in capsys.readouterr().out and out.read_text().startswith("id,formula,")
    for arguments, message in (
        (["nowhere/"], "nowhere does not exist"),
        (["a", "--out", "b.xlsx"], "wanted .csv"),
        (["tests/cifs/NaCl.cif", "--out", str(out)], r"scores\.csv exists; --overwrite replaces it"),
        ([str(out), "--out", str(out), "--overwrite"], r"scores\.csv is an input"),
    ):
        monkeypatch.setattr(sys, "argv", ["score_cifs.py", *arguments])
        with pytest.raises(SystemExit, match=message):
            runpy.run_path("bin/score_cifs.py", run_name="__main__")
