"""The engine against a plain loop over full forward passes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from crystallm.model.gpt import GPT, GPTConfig
from crystallm.model.tokens import token_spec
from crystallm.sample.constraints import FORCED, Choice, Constraint, DeadEnd
from crystallm.sample.decoder import PackedDecoder
from crystallm.sample.engine import Engine, Head, Job, Sample
from crystallm.sample.logits import Draw
from crystallm.sample.prompts import Mode, begin, parse_prompt
from crystallm.sample.rules import Rules
from tokenizer import CIFTokenizer

REQUESTS = (("NaCl", "Fm-3m", 1), ("CaTiO3", "Pnma", 4), ("Fe2O3", "R-3c", 2), ("Si", "P-1", 2), ("KMgF3", "P4/mmm", 1))


def make_jobs(rules: Rules, n: int, mode: Mode = "full", requests: Sequence[tuple] = REQUESTS) -> list[Job]:
    begun = [begin(parse_prompt(*request), rules, mode) for request in requests]
    return [Job(k, *begun[k % len(begun)]) for k in range(n)]


def run(gpt: GPT, rules: Rules, jobs: Sequence[Job], batch: int = 8, seed: int = 0, **settings: float) -> list[Sample]:
    engine = Engine(gpt, rules.grammar.slot_tokens, batch)
    return sorted(engine.run(jobs, seed, Draw(**settings)), key=lambda sample: sample.index)  # type: ignore[arg-type]


@torch.no_grad()
def plain_loop(gpt: GPT, rules: Rules, job: Job, seed: int, max_len: int) -> tuple[list[int], str, float, float]:
    """One token at a time, the whole sequence each time, the distribution in float64 by numpy."""
    random = np.random.Generator(np.random.Philox(key=seed + (job.index << 64)))
    ids, constraint, total, mass = list(job.prompt), job.new_constraint(), 0.0, 0.0
    while not constraint.finished:
        try:
            slot, token, mask = constraint.choice()
        except DeadEnd:
            return ids, "dead_end", total, mass
        if len(ids) == max_len:
            return ids, "unfinished", total, mass
        if slot != FORCED:
            tokens = rules.grammar.slot_tokens[slot]
            hidden = gpt(torch.tensor([ids]))[0, -1]  # (C,)
            logits = (gpt.table()[torch.from_numpy(tokens.astype(np.int64))] @ hidden).double().numpy()
            probs = np.exp(logits - logits.max())
            probs /= probs.sum()
            if token < 0:
                allowed = probs if mask is None else np.where(mask, probs, 0)
                mass += np.log(allowed.sum())
                cumulative = allowed.cumsum()
                token = int(tokens[np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")])
            else:
                mass += float(np.log(probs[tokens == token][0]))
            total += float(np.log(probs[tokens == token][0]))
        constraint.advance(token)
        ids.append(token)
    return ids, "end", total, mass


@pytest.mark.parametrize(("mode", "n"), [("full", 10), ("syntax", 4)])
def test_as_the_plain_loop(mode: Mode, n: int, random_gpt: GPT, rules: Rules) -> None:
    """Without crystallography a random model hardly ends, so that what is unfinished is compared as well."""
    engine = Engine(random_gpt, rules.grammar.slot_tokens, 4, max_len=120)
    samples = sorted(engine.run(make_jobs(rules, n, mode), 5), key=lambda sample: sample.index)
    for sample, job in zip(samples, make_jobs(rules, n, mode), strict=True):
        ids, stopped, total, mass = plain_loop(random_gpt, rules, job, 5, 120)
        assert (sample.ids, sample.stopped) == (ids, stopped)
        assert sample.log_likelihood == pytest.approx(total, abs=1e-3)
        assert sample.log_mass == pytest.approx(mass, abs=1e-3)
        assert sample.n_prompt == len(job.prompt)
    assert {sample.stopped for sample in samples} & {"end" if mode == "full" else "unfinished"}


def test_gpt2_shaped_models_too(tokenizer: CIFTokenizer, rules: Rules) -> None:
    torch.manual_seed(1)
    shape = {"norm": "layernorm", "position": "learned", "mlp": "gelu", "bias": True, "qk_norm": True}
    config = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=200, **shape)  # type: ignore[arg-type]
    gpt = GPT(config, token_spec(tokenizer)).eval()
    (sample,) = run(gpt, rules, make_jobs(rules, 1), seed=1)
    ids, stopped, total, _ = plain_loop(gpt, rules, make_jobs(rules, 1)[0], 1, 200)
    assert (sample.ids, sample.stopped) == (ids, stopped)
    assert sample.log_likelihood == pytest.approx(total, abs=1e-3)


def test_neither_batch_nor_row_show(random_gpt: GPT, rules: Rules) -> None:
    whole = run(random_gpt, rules, make_jobs(rules, 24), batch=24)
    for batch in (1, 5, 16):
        part = run(random_gpt, rules, make_jobs(rules, 24), batch)
        assert [s.ids for s in part] == [s.ids for s in whole]
        np.testing.assert_allclose([s.log_likelihood for s in part], [s.log_likelihood for s in whole], atol=1e-3)
    backwards = run(random_gpt, rules, make_jobs(rules, 24)[::-1], 7)
    assert [s.ids for s in backwards] == [s.ids for s in whole]


def test_bfloat16_is_close_and_shows_no_batch_either(random_gpt: GPT, rules: Rules) -> None:
    """Rounded to 8 bits, a state that hung on the batch in its last bit would soon draw other tokens."""

    def half(batch: int) -> list[Sample]:
        engine = Engine(random_gpt, rules.grammar.slot_tokens, batch, dtype=torch.bfloat16)
        return sorted(engine.run(make_jobs(rules, 24), 0), key=lambda sample: sample.index)

    whole = half(24)
    for batch in (1, 7):
        assert [s.ids for s in half(batch)] == [s.ids for s in whole]
    totals, _ = random_gpt.log_likelihood([np.array(s.ids) for s in whole], [s.n_prompt for s in whole])
    np.testing.assert_allclose([s.log_likelihood for s in whole], totals, rtol=2e-3)


def test_heads_equal_the_table_up_to_a_constant(random_gpt: GPT, rules: Rules) -> None:
    hidden = torch.randn(3, random_gpt.config.n_embd)
    factored = []
    for name, tokens in zip(rules.grammar.slot_names, rules.grammar.slot_tokens, strict=True):
        head = Head(random_gpt, tokens)
        with torch.no_grad():
            logits, expected = head(hidden), hidden @ random_gpt.table()[torch.from_numpy(tokens).long()].T
        torch.testing.assert_close(logits.log_softmax(-1), expected.log_softmax(-1), atol=1e-5, rtol=1e-5)
        factored += [name] * (head.factor is not None)
    assert "length" in factored and "coordinate" not in factored


def test_seeds(random_gpt: GPT, rules: Rules) -> None:
    first, again, other = (run(random_gpt, rules, make_jobs(rules, 5), seed=seed) for seed in (3, 3, 4))
    assert [s.ids for s in first] == [s.ids for s in again]
    assert all(a.ids != b.ids for a, b in zip(first, other, strict=True))


def test_log_likelihood_is_that_of_the_model(random_gpt: GPT, rules: Rules) -> None:
    """GPT.log_likelihood scores whole sequences without a cache; temperature and masks do not enter it."""
    samples = [s for s in run(random_gpt, rules, make_jobs(rules, 10), temperature=0.5, top_k=50) if s.stopped == "end"]
    assert len(samples) >= 5
    totals, tokens = random_gpt.log_likelihood(
        [np.array(sample.ids) for sample in samples], [sample.n_prompt for sample in samples]
    )
    for sample, total, per_token in zip(samples, totals.tolist(), tokens.numpy(), strict=True):
        assert sample.log_likelihood == pytest.approx(total, abs=1e-3)
        np.testing.assert_allclose(sample.log_probs, per_token[: len(sample.ids)], atol=1e-4)


def test_drawn_tokens_follow_the_softmax(random_gpt: GPT, rules: Rules) -> None:
    """The first free choice of 3,000 samples: the formula units of a request for two, four or six."""
    ids, _ = begin(parse_prompt("NaCl"), rules)
    slot = rules.grammar.slot_names.index("formula_units")
    mask = np.isin(np.arange(len(rules.unit_counts)), (1, 3, 5))
    tokens = rules.grammar.slot_tokens[slot]
    with torch.no_grad():
        logits = (random_gpt(torch.tensor([ids]))[0, -1] @ random_gpt.table()[tokens[mask]].T).double()
    expected = 3000 * torch.softmax(logits / 0.1, dim=0).numpy()
    assert expected.max() < 2900 and expected.min() > 10, "otherwise the test is blunt"
    jobs = [Job(k, ids, lambda: Once(Choice(slot, -1, mask))) for k in range(3000)]
    drawn = [sample.ids[-1] for sample in run(random_gpt, rules, jobs, batch=512, temperature=0.1)]
    counts = np.array([drawn.count(int(token)) for token in tokens[mask]])
    assert counts.sum() == 3000
    assert ((counts - expected) ** 2 / expected).sum() < 13.8, "2 degrees of freedom, probability 0.001"


class Once:
    """One choice, then the end."""

    def __init__(self, choice: Choice):
        self.finished, self._choice = False, choice

    def choice(self) -> Choice:
        return self._choice

    def advance(self, token: int) -> None:
        self.finished = True


def test_greedy_draws_the_most_likely(random_gpt: GPT, rules: Rules) -> None:
    first = run(random_gpt, rules, make_jobs(rules, 5), seed=0, temperature=0)
    assert [s.ids for s in first] == [s.ids for s in run(random_gpt, rules, make_jobs(rules, 5), seed=1, top_k=1)]


def test_what_is_too_long_is_unfinished(random_gpt: GPT, rules: Rules) -> None:
    engine = Engine(random_gpt, rules.grammar.slot_tokens, 4, max_len=40)
    samples = list(engine.run(make_jobs(rules, 6, requests=[("CaTiO3", "P1", 3)]), 0))
    assert all(s.stopped == "unfinished" and len(s.ids) == 40 and "40 tokens" in s.reason for s in samples)
    assert all((s.log_probs[s.n_prompt :] < 0).sum() >= 10 for s in samples), "scored as far as they go"


class Wall:
    """A choice, then nothing can follow."""

    def __init__(self, choice: Choice):
        self.finished, self._choices = False, [choice]

    def choice(self) -> Choice:
        if not self._choices:
            raise DeadEnd("a wall")
        return self._choices.pop()

    def advance(self, token: int) -> None:
        pass


def test_dead_ends_end_the_row_only(random_gpt: GPT, rules: Rules) -> None:
    ids, _ = begin(parse_prompt("NaCl"), rules)
    slot = rules.grammar.slot_names.index("formula_units")
    kinds: list[Callable[[Choice], Constraint]] = [Wall, Once]
    jobs = [Job(k, ids, functools.partial(kinds[k % 2], Choice(slot, -1, None))) for k in range(9)]
    samples = run(random_gpt, rules, jobs, batch=2)
    assert [s.stopped for s in samples] == ["dead_end", "end"] * 4 + ["dead_end"]
    assert all(s.reason == ("a wall" if s.stopped == "dead_end" else "") for s in samples)
    assert all(len(s.ids) == len(ids) + 1 and s.log_likelihood < 0 for s in samples)


def test_restarts_draw_dead_ends_again(random_gpt: GPT, rules: Rules) -> None:
    """From the prompt on, with the next random numbers; what comes out is the first that does not end there."""
    ids, _ = begin(parse_prompt("NaCl"), rules)
    slot = rules.grammar.slot_names.index("formula_units")

    def new() -> Constraint:
        kinds.append(Wall if len(kinds) < 3 else Once)
        return kinds[-1](Choice(slot, -1, None))

    for restarts, stopped, n_restarts in ((2, "dead_end", 2), (3, "end", 3), (9, "end", 3)):
        kinds: list[Callable[[Choice], Constraint]] = []
        (sample,) = run(random_gpt, rules, [Job(0, ids, new, restarts)])
        assert (sample.stopped, sample.n_restarts) == (stopped, n_restarts)
        assert len(sample.ids) == len(sample.log_probs) == len(ids) + 1
        totals, _ = random_gpt.log_likelihood([np.array(sample.ids)], [len(ids)])
        assert sample.log_likelihood == pytest.approx(float(totals[0]), abs=1e-4), "the last draw's alone"


def test_prompts_that_are_whole_structures(random_gpt: GPT, rules: Rules) -> None:
    (sample,) = run(random_gpt, rules, make_jobs(rules, 1))
    text = rules.tokenizer.decode(sample.ids)
    ids, make = begin(parse_prompt(text), rules)
    (again,) = run(random_gpt, rules, [Job(0, ids, make)])
    assert again.ids == sample.ids and again.stopped == "end"


def test_bad_arguments(random_gpt: GPT, rules: Rules) -> None:
    slots = rules.grammar.slot_tokens
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        Engine(random_gpt, slots, 0)
    with pytest.raises(ValueError, match="max_len must be from 1 to block_size=400, got 401"):
        Engine(random_gpt, slots, 1, 401)
    with pytest.raises(ValueError, match="sample 3: a prompt has 1 to 400 tokens, got 0"):
        list(Engine(random_gpt, slots).run([Job(3, [], lambda: Once(Choice(0, -1, None)))], 0))
    assert list(Engine(random_gpt, slots).run([], 0)) == []


def test_packed_decoder_equals_full_forward(random_gpt: GPT) -> None:
    """Rows of different lengths take different numbers of tokens at a time; then all but two rows go."""
    random = np.random.default_rng(0)
    sequences = random.integers(0, 1000, (5, 90))
    with torch.no_grad():
        full = random_gpt(torch.from_numpy(sequences))  # (5, 90, C)
    decoder, places = PackedDecoder(random_gpt, 5, n_positions=8), list(range(5))
    read = [0] * 5
    for step in range(60):
        if step == 30:
            decoder.keep([3, 1])
            places = [3, 1]
        ids: list[int] = []
        rows: list[int] = []
        positions: list[int] = []
        for row, sequence in enumerate(places):
            n = int(random.integers(0, min(5, 91 - read[sequence])))
            ids += sequences[sequence, read[sequence] : read[sequence] + n].tolist()
            rows += [row] * n
            positions += range(read[sequence], read[sequence] + n)
            read[sequence] += n
        if ids:
            hidden = decoder.forward(ids, rows, positions)
            expected = full[[places[row] for row in rows], positions]
            torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
    assert max(read) > 80
