"""Tree search against enumeration, its formulas by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from crystallm.model.gpt import GPT
from crystallm.sample.engine import Job, Sample
from crystallm.sample.mcts import INVALID_REWARD, Edge, MCTSConfig, Node, Rewards, Rollout, mcts, puct, uct
from crystallm.sample.prefixes import choice_slots
from crystallm.sample.prompts import begin, parse_prompt
from crystallm.sample.rules import Rules
from tests.sample.tree import leaves, slots_of, tree_job


def run(gpt: GPT, rules: Rules, job: Job, judge, seed: int = 0, **settings: object) -> list[Rollout]:  # type: ignore[no-untyped-def]
    choices = slots_of(rules) | choice_slots(rules.grammar)
    return mcts(gpt, rules.grammar.slot_tokens, job, choices, judge, MCTSConfig(**settings), seed)  # type: ignore[arg-type]


def likelihood(samples: Sequence[Sample]) -> list[float | None]:
    return [sample.log_likelihood if sample.stopped == "end" else None for sample in samples]


@pytest.mark.parametrize("policy", ["puct", "uct", "greedy"])
def test_a_small_tree_is_exhausted(policy: str, random_gpt: GPT, rules: Rules) -> None:
    """Where nothing is drawn between choices, no leaf is looked at twice more than the leaves of one round."""
    job = tree_job(rules, 3)
    expected = dict(leaves(random_gpt, rules, job))
    rollouts = run(random_gpt, rules, job, likelihood, rollouts=500, policy=policy, leaves=2, epsilon=0.3)
    found = {tuple(one.sample.ids): one for one in rollouts if one.sample.stopped == "end"}
    assert found.keys() == expected.keys()
    for ids, one in found.items():
        assert one.score == pytest.approx(expected[ids], abs=1e-4), "scored from the prompt on, not from the leaf"
        assert 0 < one.reward < 1
    assert all(one.reward == INVALID_REWARD for one in rollouts if one.sample.stopped == "dead_end")
    assert len(rollouts) < 60, "the tree knows when it has seen everything"


@pytest.mark.parametrize(("policy", "c"), [("puct", 2.0), ("uct", 0.5)])
def test_it_finds_the_best_of_many(policy: str, c: float, random_gpt: GPT, rules: Rules) -> None:
    """One leaf of 12 x 11 x 11, less the walls; each right token is rewarded. Random draws need some 700."""
    job = tree_job(rules, 12)
    (slot,) = slots_of(rules)
    wanted = rules.grammar.slot_tokens[slot][[7, 3, 9]].tolist()

    def judge(samples: Sequence[Sample]) -> list[float]:
        scores = []
        for sample in samples:
            path = sample.ids[len(job.prompt) :]
            right = [a == b for a, b in zip(path, wanted, strict=False)]
            scores.append(float(right.index(False) if False in right else len(right)))
        return scores

    rollouts = run(random_gpt, rules, job, judge, rollouts=150, policy=policy, width=12, leaves=4, exploration=c)
    assert any(one.sample.ids[len(job.prompt) :] == wanted for one in rollouts)


def test_formulas_by_hand() -> None:
    edge = Edge(token=5, prior=0.25, log_prob=-1.4, n=3, total=1.2)
    assert puct(edge, 16, 5.0) == pytest.approx(0.4 + 5 * 0.25 * 4 / 4)
    assert puct(Edge(5, 0.25, -1.4), 16, 5.0) == pytest.approx(5 * 0.25 * 4)
    assert uct(edge, 16, 1.5) == pytest.approx(0.4 + 1.5 * math.sqrt(math.log(16) / 3))
    assert uct(Edge(5, 0.25, -1.4), 16, 1.5) == math.inf


def test_rewards_by_hand() -> None:
    rewards = Rewards(2.0)
    assert rewards([None]) == [-1.0]
    assert rewards([-70.0]) == [0.5], "one score has no deviation"
    # Now -70, -80, -90: mean -80, deviation sqrt(200 / 3) = 8.165, so z of -90 is -1.2247.
    assert rewards([-80.0, -90.0]) == pytest.approx([0.5, 1 / (1 + math.exp(2 * 1.224745))], abs=1e-6)


def test_progressive_widening() -> None:
    """One child until the fourth visit, two until the ninth; an edge that leads to one place only keeps one."""
    edge, node = Edge(1, 1.0, 0.0), Node([], [], [], 0.0, [])
    rooms = []
    for edge.n in range(10):
        rooms.append(edge.has_room)
        if edge.has_room:
            edge.children[edge.n,] = node
    assert [n for n, room in enumerate(rooms) if room] == [0, 4, 9]
    sure = Edge(1, 1.0, 0.0, n=100, children={(0,): node}, is_sure=True)
    assert not sure.has_room


def test_crystals(random_gpt: GPT, rules: Rules) -> None:
    """Numbers between choices are drawn; same seed, same rollouts; tree's and engine's scores add up to the model's."""
    job = Job(3, *begin(parse_prompt("KMgF3", None, 1), rules), restarts=5)
    rollouts = run(random_gpt, rules, job, likelihood, seed=4, rollouts=24, leaves=8)
    again = run(random_gpt, rules, job, likelihood, seed=4, rollouts=24, leaves=8)
    other = run(random_gpt, rules, job, likelihood, seed=5, rollouts=8, leaves=8)
    assert [one.sample.ids for one in rollouts] == [one.sample.ids for one in again]
    assert [one.sample.ids for one in rollouts[:8]] != [one.sample.ids for one in other]
    ended = [one.sample for one in rollouts if one.sample.stopped == "end"]
    assert len(ended) >= 12 and max(one.depth for one in rollouts) >= 2
    totals, per_token = random_gpt.log_likelihood([np.array(s.ids) for s in ended], [s.n_prompt for s in ended])
    np.testing.assert_allclose([s.log_likelihood for s in ended], totals.numpy(), atol=2e-3)
    np.testing.assert_allclose(ended[-1].log_probs, per_token.numpy()[-1][: len(ended[-1].ids)], atol=1e-3)
    assert all((s.log_masses <= 1e-6).all() for s in ended)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"policy": "best"}, "policy"), ({"rollouts": 0}, "rollouts"), ({"epsilon": 2.0}, "epsilon")],
)
def test_wrong_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MCTSConfig(**settings)


def test_a_scorer_that_miscounts(random_gpt: GPT, rules: Rules) -> None:
    with pytest.raises(ValueError, match="3 scores for 1 samples"):
        run(random_gpt, rules, tree_job(rules, 3), lambda samples: [1.0, 2.0, 3.0])
