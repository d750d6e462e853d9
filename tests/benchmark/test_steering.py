"""On a model that knows two crystals by heart, with their densities: what is asked for is what comes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from crystallm.asymmetric_unit import AsymmetricUnit, Site
from crystallm.benchmark.steering import Drawn, SteeringConfig, benchmark_steering, correlation, steering_table
from crystallm.model.batch import make_batch
from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.report.steering_pictures import save_steering
from crystallm.sample.formulas import PromptError
from crystallm.sample.generate import Generator
from tokenizer import CIFTokenizer

DENSITY, GAP = "density_g_per_cm3", "band_gap_ev"
REAL = {"Al": 2.70, "Cu": 8.94}


@pytest.fixture(scope="module")
def steerable() -> Generator:
    tokenizer = CIFTokenizer()
    texts = []
    for symbol, a in (("Al", 4.05), ("Cu", 3.61)):
        site = Site(symbol, "a", (0.0, 0.0, 0.0))
        texts.append(AsymmetricUnit(((symbol, 1),), 1, 225, (a, a, a, 90.0, 90.0, 90.0), (site,)).to_text())
    asked = [f"# {DENSITY} +2.70\n{texts[0]}", f"# {DENSITY} +8.94\n{texts[1]}", *texts]
    torch.manual_seed(0)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=80, number_hidden=16)
    model = GPT(config, token_spec(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batch = make_batch([np.array(tokenizer.encode(text)) for text in asked], model.spec)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.loss(batch)
        (loss.total / loss.weight).backward()
        optimizer.step()
    return Generator(model.eval(), tokenizer, {"run": {"data": {"properties": [DENSITY, GAP]}}})


@pytest.fixture(scope="module")
def results(steerable: Generator) -> dict:
    config = SteeringConfig(
        values=(2.7, 8.94), prompts=("Al", "Al-Cu"), quantiles=(0.5,), num=12, guidance=3.0, device="cpu"
    )
    return benchmark_steering(config, steerable)


def test_what_is_asked_for_comes(results: dict) -> None:
    low, high = results["free"]["values"]
    assert (low["asked"], high["asked"]) == (2.7, 8.94) and low["n_drawn"] == high["n_drawn"] == 12
    assert low["median"] == pytest.approx(REAL["Al"], rel=0.1) and high["median"] == pytest.approx(REAL["Cu"], rel=0.1)
    assert results["free"]["correlation"] > 0.9 and results["free"]["unasked"]["n_drawn"] == 24
    unasked = np.array(results["free"]["unasked"]["obtained"])
    assert (unasked < 4).any() and (unasked > 7).any(), "without a wish both come"


def test_fixed_compositions_are_asked_for_what_they_give(results: dict) -> None:
    aluminium = results["fixed"][0]
    assert aluminium["prompt"] == "Al" and aluminium["unasked"]["n_drawn"] == 12
    (value,) = aluminium["values"]
    assert value["asked"] == round(float(np.median(aluminium["unasked"]["obtained"])), 2)
    asked, got = value["asked"], np.array(value["obtained"])
    assert aluminium["error"] == pytest.approx(np.abs(got - asked).mean(), abs=1e-3)
    assert aluminium["unasked_error"] == pytest.approx(
        np.abs(np.array(aluminium["unasked"]["obtained"]) - asked).mean(), abs=1e-3
    )


def test_table_json_and_picture(results: dict, tmp_path: Path) -> None:
    table = steering_table(results)
    assert "| 2.7 | " in table and "| unasked | " in table and "| Al | " in table
    assert "correlation of asked and obtained 0.9" in table or "correlation of asked and obtained 1.0" in table
    assert json.loads(json.dumps(results, allow_nan=False))["property"] == DENSITY
    assert save_steering(results, tmp_path / "new/steering.png").stat().st_size > 10_000


def test_correlation_by_hand() -> None:
    drawn = [Drawn(1.0, 2, 2, (1.0, 2.0)), Drawn(3.0, 3, 1, (4.0,))]
    expected = np.corrcoef([1, 1, 3], [1, 2, 4])[0, 1]
    assert correlation(drawn) == pytest.approx(expected)
    assert correlation([Drawn(1.0, 2, 2, (1.0, 2.0))]) is None and correlation([]) is None
    assert correlation([Drawn(1.0, 2, 2, (3.0,)), Drawn(2.0, 2, 2, (3.0,))]) is None
    assert Drawn(1.0, 2, 0, ()).n_valid == 0 and np.isnan(Drawn(1.0, 2, 0, ()).quantile(0.5))
    assert Drawn(1.0, 2, 2, (1.0, 4.0)).error(2.0) == 1.5


def test_a_scorer_gives_what_is_not_computed(steerable: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SteeringConfig(property="band_gap", values=(1.0,), num=2, device="cpu")
    with pytest.raises(ValueError, match="band_gap_ev is not computed from a structure: give a scorer"):
        benchmark_steering(config, steerable)
    predictor = ModuleType("predictor_of_a_test")
    predictor.gap = lambda records: [1.25] * len(records)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "predictor_of_a_test", predictor)
    config = SteeringConfig(property="band_gap", values=(1.0,), num=4, device="cpu", scorer="predictor_of_a_test:gap")
    results = benchmark_steering(config, steerable)
    (value,) = results["free"]["values"]
    assert set(value["obtained"]) <= {1.25} and results["obtained_by"] == "predictor_of_a_test:gap"
    assert results["free"]["correlation"] is None and "correlation of asked and obtained –" in steering_table(results)


def test_settings_that_cannot_be(steerable: Generator) -> None:
    with pytest.raises(ValueError, match="at least one value, or one prompt, got neither"):
        SteeringConfig(values=())
    with pytest.raises(ValueError, match="quantiles must be from 0 to 1"):
        SteeringConfig(quantiles=(1.5,))
    with pytest.raises(PromptError, match="not trained with volume_per_atom_ang3"):
        benchmark_steering(SteeringConfig(property="volume_per_atom", device="cpu"), steerable)
