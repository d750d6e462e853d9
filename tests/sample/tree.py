"""A small tree of token sequences with everything that a search meets, and its leaves by plain enumeration."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from crystallm.model.gpt import GPT
from crystallm.sample.constraints import Choice, DeadEnd
from crystallm.sample.engine import Job
from crystallm.sample.prompts import begin, parse_prompt
from crystallm.sample.rules import Rules

DEPTH = 3


class Tree:
    """DEPTH choices of one slot: the k-th lets through tokens of the first `width`, fewer after the last token.

    After token 1, token 0 is forced by the constraint, not by the grammar; after 1, 0, 2 nothing can follow.
    """

    def __init__(self, slot: int, tokens: np.ndarray, width: int):
        self.slot, self.tokens, self.width = slot, tokens[: width + 1].tolist(), width
        self.size = len(tokens)
        self.path: list[int] = []

    @property
    def finished(self) -> bool:
        return len(self.path) == DEPTH

    def choice(self) -> Choice:
        if self.path == [1, 0]:
            raise DeadEnd("a wall")
        if self.path == [1]:
            return Choice(self.slot, self.tokens[0], None)
        mask = np.zeros(self.size, dtype=bool)
        mask[: self.width] = True
        if self.path:
            mask[self.path[-1]] = False
        return Choice(self.slot, -1, mask)

    def advance(self, token: int) -> None:
        self.path.append(self.tokens.index(token))


def tree_job(rules: Rules, width: int) -> Job:
    ids, _ = begin(parse_prompt("NaCl"), rules)
    slot = rules.grammar.slot_names.index("formula_units")
    return Job(0, ids, lambda: Tree(slot, rules.grammar.slot_tokens[slot], width))


def slots_of(rules: Rules) -> frozenset[int]:
    return frozenset({rules.grammar.slot_names.index("formula_units")})


@torch.no_grad()
def children(gpt: GPT, rules: Rules, job: Job, ids: tuple[int, ...]) -> list[tuple[tuple[int, ...], float]] | None:
    """One token longer, with its log-probability, by a full forward pass; None for a sequence that has ended."""
    (slot,) = slots_of(rules)
    tokens = rules.grammar.slot_tokens[slot]
    constraint = job.new_constraint()
    for token in ids[len(job.prompt) :]:
        constraint.advance(token)
    if constraint.finished:
        return None
    try:
        _, token, mask = constraint.choice()
    except DeadEnd:
        return []
    hidden = gpt(torch.tensor([ids]))[0, -1]
    log_probs = torch.log_softmax(gpt.table()[torch.from_numpy(tokens.astype(np.int64))] @ hidden, dim=0).tolist()
    return [
        ((*ids, one), log_probs[k])
        for k, one in enumerate(tokens.tolist())
        if one == token or (mask is not None and mask[k])
    ]


def leaves(gpt: GPT, rules: Rules, job: Job) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every sequence that ends, with its log-likelihood."""

    def go_on(ids: tuple[int, ...], total: float) -> Iterator[tuple[tuple[int, ...], float]]:
        longer = children(gpt, rules, job, ids)
        if longer is None:
            yield ids, total
        for more, log_prob in longer or ():
            yield from go_on(more, total + log_prob)

    yield from go_on(tuple(job.prompt), 0.0)
