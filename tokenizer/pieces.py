"""Vocabularies to compare ours with: the same texts in digits, in characters, in byte pairs merged by count, in numbers
of one token or two, on a finer grid or with the cell behind the sites.

They know no grammar: every token is chosen among all, and the newline that ends a text is a token of its own, the end
token. `data_` is one token in each, as it begins every text and is given: so the sum of a structure's nats means the
same in all vocabularies. The nats of a token do not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizer.vocabulary import LOOP_HEADER, Vocabulary, cif_spec, load_vocabulary, vocabulary_from_spec

START = "data_"
# How byte pairs are kept from growing over words: with the white space before each, as SentencePiece cuts …
WORDS = r"\s?\S+|\s+"
# … and as GPT-2 does, which cuts `_cell_length_a` in six and 0.250 in three.
GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


# What canonical texts are cut into where numbers are not whole.
LEXEMES = (
    LOOP_HEADER.replace("\n", r"\n"),
    r"\n_symmetry_space_group_name_H-M",
    r"\n_[a-z_]{1,60} ",
    r"\n?[A-Z][a-z]?",
    r" [ABCFIPR][-0-9a-z_/]{1,9}",
    r" [a-zA]",
    r"# [a-z0-9_]{1,60} ",
)
ANY = r"(?s:.)"


def pieces_spec(name: str, pattern: str, classes: Sequence[dict[str, Any]] = (), order: str = "canonical") -> str:
    """JSON text of a vocabulary: the 256 bytes, `data_`, and the tokens of `classes`; of two that overlap in a piece of
    the pattern, the earlier one is taken. `order`: of the texts it is for.
    """
    fields: dict[str, Any] = {"format": 1, "name": name, "kind": "pieces", "end": "<|end|>", "pad": "<|pad|>"}
    if order != "canonical":
        fields["order"] = order
    fields |= {"pattern": pattern_of(pattern), "classes": [{"name": "data", "tokens": [START]}, *classes]}
    return json.dumps(fields, ensure_ascii=True, separators=(",", ":")) + "\n"


def pattern_of(words: str) -> str:
    """`words` with the start of a text cut off from what follows it."""
    return f"{START}|{words}"


def characters_spec(name: str = "characters") -> str:
    """Bytes, which are the characters of a canonical text."""
    return pieces_spec(name, ANY)


def digits_spec(name: str = "digits", vocabulary: Vocabulary | None = None) -> str:
    """As `vocabulary` (default: cif), but numbers are spelled: each digit, point, sign and blank is a token."""
    source = vocabulary or load_vocabulary("cif")
    classes = [entry for entry in _classes(source) if entry["name"] not in source.decimals]
    return pieces_spec(name, "|".join([*LEXEMES, ANY]), classes)


def whole_spec(name: str = "whole", vocabulary: Vocabulary | None = None, order: str = "canonical") -> str:
    """All tokens of `vocabulary` (default: cif): a number is one. So it is ours without the grammar."""
    source = vocabulary or load_vocabulary("cif")
    return pieces_spec(name, source.pattern, _classes(source), order)


def cell_last_spec(name: str = "cell_last") -> str:
    """As `whole_spec`, for texts with the cell behind the sites."""
    return whole_spec(name, order="cell_last")


def fine_grid_spec(name: str = "fine_grid") -> str:
    """As `whole_spec`, for texts whose coordinates have four decimals."""
    return whole_spec(name, vocabulary_from_spec(cif_spec("fine", coordinate=("0.0000", "0.9999"))))


def bin_offset_spec(name: str = "bin_offset") -> str:
    """As cif, but a number with decimals is two tokens: a bin, all but its last two digits, and the offset in it.

    ` 0.125` is ` 0.1`, `25`; `12.34` is `12.`, `34`; `90.0` is `9`, `0.0`. Counts stay whole, and as a token is its
    text, the offset 25 is the token of the count 25.
    """
    source = load_vocabulary("cif")
    numbers = set(source.decimals) - {"integer"}
    bins = [
        {"name": "coordinate_bin", "tokens": [f" 0.{digit}" for digit in range(10)]},
        {"name": "length_bin", "tokens": [f"{ang}." for ang in range(1, 100)]},
        {"name": "angle_bin", "tokens": [f"{tens}" for tens in range(1, 18)]},
        {"name": "property_bin", "tokens": [*(f"-{n}." for n in range(10, -1, -1)), *(f"+{n}." for n in range(100))]},
        {"name": "offset", "tokens": [f"{n:02d}" for n in range(100)]},
        {"name": "angle_offset", "tokens": [f"{n / 10:.1f}" for n in range(100)]},
        {"name": "property_offset", "tokens": [f"{n:02d}\n" for n in range(100)]},
    ]
    pieces = [
        r" 0\.[0-9]",
        r"[0-9]{1,2}\.(?=[0-9]{2})",  # a length; an angle has one decimal
        r"[0-9]{1,2}(?=[0-9]\.[0-9])",
        r"[0-9]\.[0-9]",
        r"[-+][0-9]{1,2}\.",
        r"[0-9]{2}\n(?=data_|# )",
        r"[1-9][0-9]{0,2}",
        r"0[0-9]",
    ]
    kept = [entry for entry in _classes(source) if entry["name"] not in numbers]
    return pieces_spec(name, "|".join([*LEXEMES, *pieces, ANY]), [*kept, *bins])


def _classes(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """As in its file, but what each vocabulary of pieces has by itself."""
    return [entry for entry in json.loads(vocabulary.spec)["classes"] if entry["name"] not in ("data", "end")]
