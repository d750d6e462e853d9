"""What the sampler's constraints leave open along a text that exists already: for training on what is drawn from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crystallm.model.batch import Choices
from crystallm.sample.constraints import FORCED, DeadEnd, Full
from crystallm.sample.rules import Rules, rules_of
from tokenizer import CIFTokenizer


def constrained_choices(tokenizer: CIFTokenizer) -> Choices:
    """For model.batch.make_batch. ValueError for a vocabulary without a grammar, which nothing constrains."""
    if tokenizer.vocabulary.kind != "lexemes":
        raise ValueError(f"loss='constrained' needs a vocabulary with a grammar, got {tokenizer.name!r}")
    rules = rules_of(tokenizer.vocabulary)
    return lambda ids: choices_along(ids, rules)


def choices_along(ids: np.ndarray, rules: Rules) -> Mapping[int, np.ndarray | None]:
    """The places in ids (T,) where full constraints leave a choice, each with the tokens of its slot that they allow.

    From the first place on where a crystal does what the constraints forbid (one in a thousand real ones, mostly by
    a short distance), only the grammar is asked: every place with a slot, everything allowed.
    """
    constraint = Full(rules)
    slot_tokens = rules.grammar.slot_tokens
    found: dict[int, np.ndarray | None] = {}
    for place, token in enumerate(ids.tolist()):
        try:
            slot, only, mask = constraint.choice()
        except DeadEnd:
            break
        if only >= 0 and only != token:
            break
        if only < 0:
            if mask is not None and not mask[slot_tokens[slot] == token].any():
                break
            found[place] = None if mask is None else mask.copy()  # the constraint goes on using its own
        constraint.advance(token)
    else:
        return found
    slots = rules.grammar.slots(ids).tolist()
    return found | {later: None for later in range(place, len(ids)) if slots[later] != FORCED}
