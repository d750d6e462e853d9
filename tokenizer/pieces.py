"""Vocabularies to compare ours with: the same texts in digits, in characters, or in byte pairs merged by count.

They know no grammar: every token is chosen among all, and the newline that ends a text is a token of its own, the end
token. `data_` is one token in each, as it begins every text and is given: so the sum of a structure's nats means the
same in all vocabularies. The nats of a token do not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizer.vocabulary import LOOP_HEADER, Vocabulary, load_vocabulary

START = "data_"
# How byte pairs are kept from growing over words: with the white space before each, as SentencePiece cuts …
WORDS = r"\s?\S+|\s+"
# … and as GPT-2 does, which cuts `_cell_length_a` in six and 0.250 in three.
GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def pieces_spec(name: str, pattern: str, classes: Sequence[dict[str, Any]] = ()) -> str:
    """JSON text of a vocabulary: the 256 bytes, `data_`, and the tokens of `classes`; of two that overlap in a piece of
    the pattern, the earlier one is taken.
    """
    fields = {"format": 1, "name": name, "kind": "pieces", "end": "<|end|>", "pad": "<|pad|>"}
    fields |= {"pattern": pattern_of(pattern), "classes": [{"name": "data", "tokens": [START]}, *classes]}
    return json.dumps(fields, ensure_ascii=True, separators=(",", ":")) + "\n"


def pattern_of(words: str) -> str:
    """`words` with the start of a text cut off from what follows it."""
    return f"{START}|{words}"


def characters_spec(name: str = "characters") -> str:
    """Bytes, which are the characters of a canonical text."""
    return pieces_spec(name, r"(?s:.)")


def digits_spec(name: str = "digits", vocabulary: Vocabulary | None = None) -> str:
    """As `vocabulary` (default: cif), but numbers are spelled: each digit, point, sign and blank is a token."""
    source = vocabulary or load_vocabulary("cif")
    left_out = {*source.decimals, "data", "end", "byte", "pad"}
    classes = [
        {"name": name, "tokens": [source.tokens[id_].decode() for id_ in ids]}
        for name, ids in source.classes.items()
        if name not in left_out
    ]
    lexemes = [
        LOOP_HEADER.replace("\n", r"\n"),
        r"\n_symmetry_space_group_name_H-M",
        r"\n_[a-z_]{1,60} ",
        r"\n?[A-Z][a-z]?",
        r" [ABCFIPR][-0-9a-z_/]{1,9}",
        r" [a-zA]",
        r"# [a-z0-9_]{1,60} ",
        r"(?s:.)",
    ]
    return pieces_spec(name, "|".join(lexemes), classes)
