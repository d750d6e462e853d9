"""Sampling on a CUDA device; `pytest -m gpu`."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from crystallm.model.checkpoint import load_checkpoint
from crystallm.model.gpt import GPT
from crystallm.resources import resource_path
from crystallm.sample.decoder import PackedDecoder
from crystallm.sample.engine import Engine, Job, Sample
from crystallm.sample.prompts import begin, parse_prompt
from crystallm.sample.rules import rules_of

FORMULAS = ("SrTiO3", "NaCl", "Fe2O3", "LiCoO2", "CsPbI3")


def draw(gpt: GPT, n: int, batch: int, dtype: torch.dtype) -> list[Sample]:
    rules = rules_of(load_checkpoint(resource_path("resources/model"))[1].vocabulary)
    begun = [begin(parse_prompt(formula), rules) for formula in FORMULAS]
    jobs = [Job(k, *begun[k % len(begun)], restarts=20) for k in range(n)]
    engine = Engine(gpt, rules.grammar.slot_tokens, batch, dtype=dtype)
    return sorted(engine.run(jobs, 0), key=lambda sample: sample.index)


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return load_checkpoint(resource_path("resources/model"), "cuda")[0]


@pytest.mark.gpu
def test_states_as_on_the_cpu(gpt: GPT) -> None:
    on_cpu = load_checkpoint(resource_path("resources/model"))[0]
    sequences = np.random.default_rng(0).integers(0, 1000, (5, 120))
    with torch.no_grad():
        full = on_cpu(torch.from_numpy(sequences))
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.3)):
        decoder = PackedDecoder(gpt, 5, dtype=dtype)
        for begin_at, end in ((0, 7), (7, 8), (8, 60), (60, 120)):  # one token, few and many
            positions = np.tile(np.arange(begin_at, end), 5)
            rows = np.repeat(np.arange(5), end - begin_at)
            hidden = decoder.forward(sequences[rows, positions].tolist(), rows.tolist(), positions.tolist()).cpu()
            torch.testing.assert_close(hidden, full[rows, positions], atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
def test_samples_are_scored_as_the_cpu_scores_them(gpt: GPT) -> None:
    on_cpu = load_checkpoint(resource_path("resources/model"))[0]
    for dtype, tolerance in ((torch.float32, 0.01), (torch.bfloat16, 0.5)):
        samples = draw(gpt, 100, 32, dtype)
        assert all(sample.stopped == "end" for sample in samples)
        totals, _ = on_cpu.log_likelihood([np.array(s.ids) for s in samples], [s.n_prompt for s in samples])
        np.testing.assert_allclose([s.log_likelihood for s in samples], totals, atol=tolerance)


@pytest.mark.gpu
def test_neither_batch_nor_row_show(gpt: GPT) -> None:
    """In float32 a difference in the last bit hardly ever decides a draw."""
    few, many = draw(gpt, 200, 16, torch.float32), draw(gpt, 200, 200, torch.float32)
    assert sum(a.ids != b.ids for a, b in zip(few, many, strict=True)) <= 2


@pytest.mark.gpu
def test_speed(gpt: GPT) -> None:
    """Printed (`-s`), not asserted: structures per second of one process, and the share that waits for the device."""
    draw(gpt, 512, 512, torch.bfloat16)
    start, cpu = time.perf_counter(), time.process_time()
    n = len(draw(gpt, 4096, 1024, torch.bfloat16))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{n / wall:.0f} structures/s, {1000 * cpu / n:.2f} ms of CPU each")
