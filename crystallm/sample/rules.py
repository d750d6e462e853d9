"""A vocabulary's tokens as the numbers, letters and groups that constraints reckon with. Built once, shared by all."""

from __future__ import annotations

import functools

import numpy as np

from crystallm.space_groups import space_group_number
from tokenizer import CIFTokenizer, Grammar, Vocabulary
from tokenizer.elements import ELEMENT_ORDER, ELEMENT_RANK

FORMULA_SLOTS = ("formula", "formula_next", "formula_after_count")


class Rules:
    def __init__(self, tokenizer: CIFTokenizer):
        self.tokenizer, self.grammar = tokenizer, Grammar(tokenizer)
        grammar, classes = self.grammar, tokenizer.vocabulary.classes
        # Plain lists: they are read once a token, and an array's item costs ten times as much.
        self.forced_token = grammar.forced_token.tolist()
        self.slot_of_state = grammar.slot_of_state.tolist()
        self.places = [_place(name) for name in grammar.state_names]

        self.rank_of = {token: ELEMENT_RANK[tokenizer.token(token)] for token in classes["formula_element"].tolist()}
        self.integer_of = {token: int(value) for token, value in self._numbers("integer").items()}
        self.units_keyword = int(classes["units_keyword"][0])
        # By formula slot, for each token: the rank of an element (-1: none), a count (0: none), the end of the formula
        self.slot_ranks, self.slot_counts, self.slot_ends = {}, {}, {}
        for name in FORMULA_SLOTS:
            tokens = grammar.slot_tokens[grammar.slot_names.index(name)].tolist()
            self.slot_ranks[name] = np.array([self.rank_of.get(t, -1) for t in tokens])
            self.slot_counts[name] = np.array([self.integer_of.get(t, 0) for t in tokens])
            self.slot_ends[name] = np.array([t == self.units_keyword for t in tokens])

        self.unit_counts = np.array(list(self.integer_of.values()))
        self.group_of = {t: space_group_number(tokenizer.token(t).strip()) for t in classes["space_group"].tolist()}
        self.groups = np.array(list(self.group_of.values()))  # by index in the slot
        self.length_of, self.angle_of = self._numbers("length"), self._numbers("angle")
        self.angle_token = {value: token for token, value in self.angle_of.items()}
        self.lengths = np.array(list(self.length_of.values()))
        self.angles = np.array(list(self.angle_of.values()))
        self.cosines = np.where(self.angles == 90, 0.0, np.cos(np.radians(self.angles)))

        self.site_token = [tokenizer.id("\n" + symbol) for symbol in ELEMENT_ORDER]  # by rank
        self.end_token = tokenizer.end_id
        self.letter_tokens = classes["wyckoff"].tolist()
        self.letter_of = {token: letter for letter, token in enumerate(self.letter_tokens)}
        self.coordinate_tokens = classes["coordinate"].tolist()
        self.coordinate_of = {token: k for k, token in enumerate(self.coordinate_tokens)}
        self.n_values = len(self.coordinate_tokens)  # steps of a coordinate's grid

    def _numbers(self, name: str) -> dict[int, float]:
        """Value by token, as written: as float32 3.89 would be 3.8900001."""
        return {t: float(self.tokenizer.token(t)) for t in self.tokenizer.vocabulary.classes[name].tolist()}


def _place(state_name: str) -> tuple[str, int]:
    """What is chosen in a state, and which of the three where there are three: "length_b" -> ("length", 1)."""
    kind, _, axis = state_name.rpartition("_")
    for names in (("a", "b", "c"), ("alpha", "beta", "gamma"), ("x", "y", "z")):
        if axis in names and kind in ("length", "angle", "coordinate"):
            return kind, names.index(axis)
    if state_name in FORMULA_SLOTS:
        return "formula", 0
    return state_name.removesuffix("_or_end"), 0


@functools.lru_cache(maxsize=8)
def rules_of(vocabulary: Vocabulary) -> Rules:
    return Rules(CIFTokenizer(vocabulary))
