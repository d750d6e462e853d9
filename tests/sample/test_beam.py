"""Beam search against enumeration of all sequences."""

from __future__ import annotations

import numpy as np
import pytest

from crystallm.model.gpt import GPT
from crystallm.sample.beam import BeamConfig, BeamResult, beam_search
from crystallm.sample.engine import Engine, Job
from crystallm.sample.logits import Draw
from crystallm.sample.prefixes import choice_slots
from crystallm.sample.prompts import begin, parse_prompt
from crystallm.sample.rules import Rules
from tests.sample.tree import DEPTH, children, leaves, slots_of, tree_job


def beam(gpt: GPT, rules: Rules, jobs: list[Job], **settings: object) -> list[BeamResult]:
    choices = choice_slots(rules.grammar)
    return list(beam_search(gpt, rules.grammar.slot_tokens, jobs, choices, BeamConfig(**settings), max_len=300))  # type: ignore[arg-type]


@pytest.mark.parametrize("branch", ["tokens", "choices"])
def test_full_width_is_exhaustive(branch: str, random_gpt: GPT, rules: Rules) -> None:
    """All 8 leaves of a tree of three tokens, by probability; both kinds of beam, as all its slots are choices."""
    job = tree_job(rules, 3)
    expected = sorted(leaves(random_gpt, rules, job), key=lambda leaf: -leaf[1])
    (result,) = beam(random_gpt, rules, [job], width=50, branch=branch)
    assert [tuple(one.sample.ids) for one in result.samples] == [ids for ids, _ in expected]
    np.testing.assert_allclose([one.score for one in result.samples], [total for _, total in expected], atol=1e-4)
    assert [one.sample.log_likelihood for one in result.samples] == pytest.approx([one.score for one in result.samples])
    assert len(expected) == 8 and result.n_hypotheses >= 8


def test_a_narrow_beam_is_the_plain_algorithm(random_gpt: GPT, rules: Rules) -> None:
    """Extend all, keep the two best of each length."""
    job = tree_job(rules, 6)
    beam_now = [(tuple(job.prompt), 0.0)]
    for _ in range(DEPTH):
        longer = [
            (ids, total + log_prob)
            for parent, total in beam_now
            for ids, log_prob in children(random_gpt, rules, job, parent) or ()
        ]
        beam_now = sorted(longer, key=lambda one: -one[1])[:2]
    (narrow,) = beam(random_gpt, rules, [job], width=2, branch="tokens")
    assert [tuple(one.sample.ids) for one in narrow.samples] == [ids for ids, _ in beam_now]
    np.testing.assert_allclose([one.score for one in narrow.samples], [total for _, total in beam_now], atol=1e-4)


def test_numbers_are_the_likeliest(random_gpt: GPT, rules: Rules) -> None:
    """With width 1 and one choice at each discrete slot, a beam is the greedy sample."""
    job = Job(0, *begin(parse_prompt("CaTiO3", "P4mm", 1), rules))
    (greedy,) = Engine(random_gpt, rules.grammar.slot_tokens, 1).run([job], 0, Draw(temperature=0))
    for branch in ("choices", "tokens"):
        (result,) = beam(random_gpt, rules, [job], width=1, branch=branch)
        (one,) = result.samples
        assert one.sample.ids == greedy.ids and one.sample.stopped == greedy.stopped
        np.testing.assert_allclose(one.sample.log_probs, greedy.log_probs, atol=1e-4)
        np.testing.assert_allclose(one.sample.log_masses, greedy.log_masses, atol=1e-4)
    slots = rules.grammar.slots(np.array(greedy.ids))
    wyckoff = slots == rules.grammar.slot_names.index("wyckoff")
    (choices,) = beam(random_gpt, rules, [job], width=1)
    assert choices.samples[0].score == pytest.approx(greedy.log_probs[wyckoff].sum(), abs=1e-3)


def test_beams_do_not_touch(random_gpt: GPT, rules: Rules) -> None:
    """Several at once give what each gives alone, however many rows the decoder has."""
    jobs = [
        Job(k, *begin(parse_prompt(*request), rules))
        for k, request in enumerate((("NaCl", "Fm-3m"), ("KMgF3", "Pm-3m")))
    ]
    alone = [beam(random_gpt, rules, [job], width=4)[0] for job in jobs]
    for rows in (4, 64):
        together = beam(random_gpt, rules, jobs, width=4, rows=rows)
        for one, other in zip(alone, together, strict=True):
            assert [s.sample.ids for s in one.samples] == [s.sample.ids for s in other.samples]
            assert (one.n_tokens, one.n_hypotheses) == (other.n_tokens, other.n_hypotheses)


def test_log_likelihood_is_that_of_the_model(random_gpt: GPT, rules: Rules) -> None:
    job = Job(0, *begin(parse_prompt("KMgF3", None, 1), rules))
    (result,) = beam(random_gpt, rules, [job], width=6)
    ended = [one.sample for one in result.samples if one.sample.stopped == "end"]
    assert len(ended) >= 3
    totals, _ = random_gpt.log_likelihood([np.array(s.ids) for s in ended], [s.n_prompt for s in ended])
    assert [s.log_likelihood for s in ended] == pytest.approx(totals.tolist(), abs=1e-3)


def test_where_nothing_ends_it_says_why(random_gpt: GPT, rules: Rules) -> None:
    job = Job(0, *begin(parse_prompt("CaTiO3", "P1", 3), rules))
    choices = choice_slots(rules.grammar)
    (result,) = beam_search(random_gpt, rules.grammar.slot_tokens, [job], choices, BeamConfig(3), max_len=40)
    assert result.samples and all(one.sample.stopped == "unfinished" for one in result.samples)
    assert "40 tokens" in result.samples[0].sample.reason


@pytest.mark.parametrize("settings", [{"width": 0}, {"branch": "letters"}])
def test_wrong_settings(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        BeamConfig(**settings)


def test_the_tree_has_what_it_promises(random_gpt: GPT, rules: Rules) -> None:
    """No token twice in a row; 1-0 is a wall, and 1 leads nowhere else."""
    (slot,) = slots_of(rules)
    tokens = rules.grammar.slot_tokens[slot].tolist()
    job = tree_job(rules, 3)
    paths = {tuple(tokens.index(t) for t in ids[len(job.prompt) :]) for ids, _ in leaves(random_gpt, rules, job)}
    assert paths == {(0, 1, 0), (0, 1, 2), (0, 2, 0), (0, 2, 1), (2, 0, 1), (2, 0, 2), (2, 1, 0), (2, 1, 2)}
