"""What a search over token sequences needs besides the engine: which slots it branches on, and what may come next.

Knows token ids only, as the engine does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crystallm.model.gpt import GPT
from crystallm.sample.constraints import Constraint
from crystallm.sample.decoder import PackedDecoder
from tokenizer import Grammar

# Where two choices are two different crystals. One step of a cell length or a coordinate is not: a search that
# branches on numbers fills itself with neighbours of one structure.
CHOICE_SLOTS = ("formula", "formula_next", "formula_after_count", "formula_units", "space_group", "wyckoff")


def choice_slots(grammar: Grammar) -> frozenset[int]:
    return frozenset(grammar.slot_names.index(name) for name in CHOICE_SLOTS)


class Options(NamedTuple):
    """What a constraint lets through at a slot, the most likely first."""

    tokens: np.ndarray  # (n,) ids
    log_probs: np.ndarray  # (n,) nats, under the softmax over the whole slot
    log_mass: float  # log of their share of it


class NextToken:
    """The softmax over a slot's tokens, from hidden states or from whole sequences."""

    def __init__(self, model: GPT, slot_tokens: Sequence[np.ndarray]):
        self.model = model.eval()
        self.slot_tokens = [np.asarray(tokens, dtype=np.int64) for tokens in slot_tokens]
        self._vectors: dict[int, Tensor] = {}

    @torch.no_grad()
    def log_probs(self, hidden: Tensor, slot: int) -> np.ndarray:
        """(n, C) -> (n, tokens of the slot) nats"""
        if slot not in self._vectors:
            tokens = torch.from_numpy(self.slot_tokens[slot]).to(hidden.device)
            self._vectors[slot] = self.model.table()[tokens]
        logits = (hidden @ self._vectors[slot].T).float()
        return torch.log_softmax(logits, dim=-1).cpu().numpy()

    def options(self, log_probs: np.ndarray, slot: int, mask: np.ndarray | None) -> Options:
        """(tokens of the slot,) nats -> those that the mask lets through; tokens of equal probability by id."""
        allowed = np.arange(len(log_probs)) if mask is None else np.flatnonzero(mask)
        kept = log_probs[allowed].astype(np.float64)
        order = np.argsort(-kept, kind="stable")
        log_mass = 0.0 if mask is None else float(np.logaddexp.reduce(kept))
        return Options(self.slot_tokens[slot][allowed[order]], kept[order], log_mass)

    def after(self, sequences: Sequence[Sequence[int]], slots: Sequence[int]) -> list[np.ndarray]:
        """For each sequence (tokens of its slot,) nats of what comes next. Reads them whole, all in one pass."""
        decoder = PackedDecoder(self.model, len(sequences))
        ids = [token for sequence in sequences for token in sequence]
        lengths = [len(sequence) for sequence in sequences]
        rows = np.repeat(np.arange(len(sequences)), lengths).tolist()
        positions = np.concatenate([np.arange(length) for length in lengths]).tolist()
        hidden = decoder.forward(ids, rows, positions)[(np.cumsum(lengths) - 1).tolist()]  # (n, C)
        return [self.log_probs(hidden[k : k + 1], slot)[0] for k, slot in enumerate(slots)]


def replay(new_constraint: Callable[[], Constraint], tokens: Sequence[int]) -> Constraint:
    """A constraint that has read the prompt and these tokens. Constraints cannot be copied; 43 tokens take 0.2 ms."""
    constraint = new_constraint()
    for token in tokens:
        constraint.advance(token)
    return constraint


def replaying(new_constraint: Callable[[], Constraint], tokens: Sequence[int]) -> Callable[[], Constraint]:
    return functools.partial(replay, new_constraint, tuple(tokens))
