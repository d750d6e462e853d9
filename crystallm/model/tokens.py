"""What the model needs to know of a vocabulary: which ids are numbers and their values, and the slots of the grammar.

A *slot* is a place where the grammar leaves a choice (a length, a coordinate, an element or the end). Slots with the
same allowed tokens share one softmax, a *group*. Places without a choice have slot -1 and cost nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from tokenizer import CIFTokenizer

LossKind = Literal["grammar", "full", "constrained"]
FORCED = -1  # slot of a token that the grammar leaves no choice about
ELEMENT_CLASSES = ("formula_element", "site_element", "element")
NUMBER_CLASSES = ("integer", "length", "angle", "coordinate", "property_value")


@dataclass(frozen=True, eq=False)
class TokenSpec:
    """A vocabulary as the model sees it; `slots` maps a token sequence to the slot of each of its tokens."""

    vocab_size: int
    pad_id: int
    numbers: dict[str, tuple[np.ndarray, np.ndarray]]  # class -> (ids (n,), values (n,) float64), values ascending
    elements: tuple[np.ndarray, np.ndarray]  # ids (n,) of tokens that name an element, and its atomic numbers (n,)
    slot_names: tuple[str, ...]
    slot_group: np.ndarray  # (n_slots,) which softmax a slot uses
    group_tokens: tuple[np.ndarray, ...]  # per group: the ids it chooses among
    slots: Callable[[np.ndarray], np.ndarray]  # ids (T,) -> slots (T,) int16; structures may follow one another
    data_id: int  # `data_` ends the conditions: what stands up to here is given, not predicted; -1: there is none
    end_id: int  # last token of a complete structure; -1: there is none
    name: str = ""
    hash: str = ""
    # (n_groups, vocab_size): the place of a token among its group's, -1 where the group does not hold it
    index_in_group: np.ndarray = field(init=False, repr=False)
    class_of_token: np.ndarray = field(init=False, repr=False)  # (vocab_size,) index in `numbers`, -1 for plain tokens

    def __post_init__(self) -> None:
        index = np.full((len(self.group_tokens), self.vocab_size), -1, dtype=np.int32)
        for group, tokens in enumerate(self.group_tokens):
            index[group, tokens] = np.arange(len(tokens))
        object.__setattr__(self, "index_in_group", index)
        classes = np.full(self.vocab_size, -1, dtype=np.int8)
        for number, (ids, _) in enumerate(self.numbers.values()):
            classes[ids] = number
        object.__setattr__(self, "class_of_token", classes)

    def classes_among(self, ids: np.ndarray) -> frozenset[str]:
        """The number classes that occur among ids."""
        counts = np.bincount(self.class_of_token[ids.ravel()] + 1, minlength=len(self.numbers) + 1)
        return frozenset(name for name, count in zip(self.numbers, counts[1:], strict=True) if count)


def token_spec(tokenizer: CIFTokenizer, loss: LossKind = "grammar") -> TokenSpec:
    """The spec of a tokenizer. `full`: one softmax over the whole vocabulary, forced tokens included."""
    classes, values = tokenizer.vocabulary.classes, tokenizer.vocabulary.values
    numbers = {}
    for name in NUMBER_CLASSES:
        ids = np.asarray(classes.get(name, ()), dtype=np.int64)
        if len(ids):
            numbers[name] = (ids, np.asarray(values[ids], dtype=np.float64))
    has_grammar = tokenizer.vocabulary.kind == "lexemes"
    names, groups, tokens, slots = _grammar_slots(tokenizer, loss) if has_grammar else _one_slot(tokenizer)

    def single(name: str) -> int:
        return int(classes[name][0]) if len(classes.get(name, ())) else -1

    return TokenSpec(
        vocab_size=tokenizer.vocab_size,
        pad_id=max(single("pad"), 0),  # without a pad token any id will do: what pads is never looked at
        numbers=numbers,
        elements=_elements(tokenizer),
        slot_names=names,
        slot_group=groups,
        group_tokens=tokens,
        slots=slots,
        data_id=single("data"),
        end_id=single("end"),
        name=tokenizer.name,
        hash=tokenizer.hash,
    )


def _elements(tokenizer: CIFTokenizer) -> tuple[np.ndarray, np.ndarray]:
    from tokenizer.elements import ATOMIC_NUMBERS

    classes = tokenizer.vocabulary.classes
    ids = [id_ for name in ELEMENT_CLASSES for id_ in np.asarray(classes.get(name, ()), dtype=np.int64).tolist()]
    return np.array(ids, dtype=np.int64), np.array([ATOMIC_NUMBERS[tokenizer.token(id_).strip()] for id_ in ids])


Slots = tuple[tuple[str, ...], np.ndarray, tuple[np.ndarray, ...], Callable[[np.ndarray], np.ndarray]]


def _one_slot(tokenizer: CIFTokenizer) -> Slots:
    """Without a grammar every token is chosen among all."""

    def all_zero(ids: np.ndarray) -> np.ndarray:
        return np.zeros(len(ids), dtype=np.int16)

    return ("token",), np.zeros(1, np.int64), (np.arange(tokenizer.vocab_size),), all_zero


def _grammar_slots(tokenizer: CIFTokenizer, loss: LossKind) -> Slots:
    from tokenizer import Grammar

    grammar = Grammar(tokenizer)
    names = tuple(grammar.slot_names)
    if loss == "full":
        n_named = len(names)

        def slots_with_forced(ids: np.ndarray) -> np.ndarray:
            slots = grammar.slots(ids, many=True)
            return np.where(slots == FORCED, n_named, slots).astype(np.int16)

        everything = (np.arange(tokenizer.vocab_size),)
        return (*names, "forced"), np.zeros(n_named + 1, np.int64), everything, slots_with_forced
    groups, tokens = share_groups([np.asarray(t, dtype=np.int64) for t in grammar.slot_tokens])
    return names, groups, tokens, functools.partial(grammar.slots, many=True)


def share_groups(slot_tokens: Sequence[np.ndarray]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Slots that allow the same tokens in one group: (group of each slot, tokens of each group)."""
    seen: dict[bytes, int] = {}
    tokens: list[np.ndarray] = []
    group = np.zeros(len(slot_tokens), dtype=np.int64)
    for slot, allowed in enumerate(slot_tokens):
        key = allowed.tobytes()
        if key not in seen:
            seen[key] = len(tokens)
            tokens.append(allowed)
        group[slot] = seen[key]
    return group, tuple(tokens)
