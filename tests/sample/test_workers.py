"""Several processes draw what one draws, and what a process loses is accounted for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.records import CIFRecord
from crystallm.sample import workers
from crystallm.sample.generate import GenerateConfig, Generator
from tokenizer import CIFTokenizer

PROMPTS = ("NaCl", "Ca Ti O3", "NaCl")
CONFIG = GenerateConfig(prompt=PROMPTS, num=7, seed=3, batch=8, device="cpu")


def seen(records: list[CIFRecord]) -> list[tuple[object, ...]]:
    return [(r.id, r.text, r.rejected_by, r.prompt, r.provenance["index"], r.provenance["seed"]) for r in records]


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LEAST_PORTION", 3)


def test_the_same_records_in_the_same_order(checkpoint: str, small_portions: None) -> None:
    generator = Generator.load(checkpoint, "cpu")
    here = generator.generate(CONFIG)
    there = generator.generate(replace(CONFIG, workers=2))
    assert len(here) == 21 and seen(there) == seen(here)
    assert there[0].crystal is not None  # they come back checked
    likelihoods = [[r.scores["log_likelihood_nats"] for r in records] for records in (here, there)]
    assert likelihoods[0] == pytest.approx(likelihoods[1], abs=1e-3)


def test_until_valid_goes_on_when_results_have_come(checkpoint: str, small_portions: None) -> None:
    generator = Generator.load(checkpoint, "cpu")
    asked = replace(CONFIG, prompt=("NaCl", "Ca Ti O3"), num=5, until_valid=True, unique=True, max_draws=40)
    assert seen(generator.generate(replace(asked, workers=2))) == seen(generator.generate(asked))


def test_only_a_model_on_disk_can_be_read_by_others(checkpoint: str, tmp_path: Path) -> None:
    tokenizer = CIFTokenizer()
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=32), token_spec(tokenizer))
    with pytest.raises(ValueError, match="read the model from its checkpoint, and this one has none"):
        Generator(model, tokenizer).generate(replace(CONFIG, workers=2))
    shutil.copytree(checkpoint, tmp_path / "model")
    generator = Generator.load(tmp_path / "model", "cpu")
    generator.info = generator.info | {"model_hash": "of other weights"}
    records = generator.generate(replace(CONFIG, workers=1))
    assert {record.rejected_by for record in records} == {"error"}
    assert "has changed since it was loaded" in records[0].reason


def test_a_number_of_processes_is_not_negative() -> None:
    with pytest.raises(ValueError, match=r"workers must be 0 \(this process\) or more, got -1"):
        GenerateConfig(workers=-1)


def die_on_perovskites(
    path: str, model_hash: str, config: GenerateConfig, tickets: list[workers.Ticket]
) -> list[CIFRecord]:
    if any(ticket.number == 1 and ticket.k == 2 for ticket in tickets):
        os._exit(1)
    return workers._draw_portion(path, model_hash, config, tickets)


def test_a_process_that_dies_costs_one_record(
    checkpoint: str, small_portions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator.load(checkpoint, "cpu")
    here = generator.generate(CONFIG)
    real = workers.map_processes

    def mapped(function: object, *args: object, **kwargs: object) -> Iterator[object]:
        broken = workers.functools.partial(die_on_perovskites, *function.args)  # type: ignore[attr-defined]
        return real(broken, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "map_processes", mapped)
    there = generator.generate(replace(CONFIG, workers=2))
    [lost] = [k for k, (one, other) in enumerate(zip(here, there, strict=True)) if one.text != other.text]
    assert there[lost].id == "gen-0001-000002" and there[lost].rejected_by == "error"
    assert "exit code 1" in there[lost].reason and there[lost].prompt == "Ca Ti O3"
    assert there[lost].provenance == here[lost].provenance | {"restarts": 0, "tokens": 0}, "searches count them"
    assert seen(there[:lost] + there[lost + 1 :]) == seen(here[:lost] + here[lost + 1 :])
