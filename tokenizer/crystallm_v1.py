"""The published CrystaLLM vocabulary (Antunes et al., Nat. Commun. 2024): 371 tokens, digits one by one, not lossless.

Longest match first. The value of `_symmetry_space_group_name_H-M` is one token where a newline follows it, and decodes
to the symbol without its `_sg`. A run of blanks and tabs is one blank. What the vocabulary lacks becomes `<unk>`: a run
of word characters, or any other character by itself. The published tokenizer drops the latter in silence; this one
says so.
"""

from __future__ import annotations

import re
from itertools import groupby

from tokenizer.elements import SYMBOLS
from tokenizer.space_group_symbols import SPACE_GROUP_SYMBOLS
from tokenizer.vocabulary import Vocabulary

SPACE_GROUP_LINE = "_symmetry_space_group_name_H-M "


class UnknownTokenWarning(UserWarning):
    """Text that the vocabulary has no token for was encoded all the same."""


def normalize_v1(cif: str) -> str:
    """The text as the published models read it: what must be done to a CIF before it is encoded.

    Runs of blanks become one blank and lines are stripped; blank lines, `#` comments and lines that name pymatgen are
    dropped; the structure ends with two newlines.
    """
    lines = [re.sub(r"[ \t]+", " ", line).strip() for line in cif.split("\n")]
    kept = [line for line in lines if line and not line.startswith("#") and "pymatgen" not in line]
    return "\n".join(kept) + "\n\n"


def missing(vocabulary: Vocabulary) -> dict[str, tuple[str, ...]]:
    """Elements (by atomic number) and space groups (by number) that have no token."""
    return {
        "elements": tuple(symbol for symbol in SYMBOLS if symbol.encode() not in vocabulary.ids),
        "space_groups": tuple(s for s in SPACE_GROUP_SYMBOLS if f"{s}_sg".encode() not in vocabulary.ids),
    }


class CrystaLLMCodec:
    """Text to ids and back. `encode` also tells what it had no token for."""

    def __init__(self, vocabulary: Vocabulary):
        texts = [token.decode() for token in vocabulary.tokens]
        self._text = [text.removesuffix("_sg") for text in texts]
        self._groups = {text.removesuffix("_sg"): id_ for id_, text in enumerate(texts) if text.endswith("_sg")}
        self._unknown = texts.index("<unk>")
        self._ids = {text: id_ for id_, text in enumerate(texts) if not text.endswith("_sg") and id_ != self._unknown}
        self._missing = missing(vocabulary)
        symbols = "|".join(map(re.escape, self._groups))
        self._split_groups = re.compile(rf"({SPACE_GROUP_LINE})({symbols})(?=\n)").split
        self._find_pieces = re.compile(rf"{_longest_first(self._ids)}|\w+|(?s:.)").findall

    def encode(self, text: str) -> tuple[list[int], str]:
        """The ids, and "" or a sentence on what the vocabulary lacks."""
        text = re.sub(r"[ \t]+", " ", text)
        parts = self._split_groups(text)  # text, keyword and blank, symbol, text, keyword and blank, symbol, …, text
        ids: list[int] = []
        for position, part in enumerate(parts):
            if position % 3 == 2:
                ids.append(self._groups[part])
            else:
                ids += [self._ids.get(piece, self._unknown) for piece in self._find_pieces(part)]
        lacking_groups = [s for s in self._missing["space_groups"] if f"{SPACE_GROUP_LINE}{s}\n" in text]
        if self._unknown not in ids and not lacking_groups:
            return ids, ""
        return ids, self._describe(parts, lacking_groups)

    def decode(self, ids: list[int]) -> str:
        return "".join([self._text[id_] for id_ in ids])

    def _describe(self, parts: list[str], lacking_groups: list[str]) -> str:
        pieces = [p for i, part in enumerate(parts) for p in ([part] if i % 3 == 2 else self._find_pieces(part))]
        known = self._ids.keys() | self._groups.keys()
        unknown = [position for position, piece in enumerate(pieces) if piece not in known]
        sentences = []
        if unknown:
            line = 1 + "".join(pieces[: unknown[0]]).count("\n")
            shown = ", ".join(repr(piece) for piece in list(dict.fromkeys(pieces[i] for i in unknown))[:5])
            sentences.append(f"no token for {shown} (first in line {line}): {len(unknown)} pieces became <unk>")
            # "Po" is cut into the element P and the unknown "o".
            around = {text for i in unknown for text in (pieces[i][:2], "".join(pieces[max(i - 1, 0) : i + 1])[:2])}
            if elements := [symbol for symbol in self._missing["elements"] if symbol in around]:
                sentences.append(f"the vocabulary lacks the elements {', '.join(elements)}")
        if lacking_groups:
            names = ", ".join(lacking_groups)
            sentences.append(f"the vocabulary lacks the space groups {names}: they were cut into other tokens")
        return "crystallm_v1: " + "; ".join(sentences)


def _longest_first(texts: dict[str, int]) -> str:
    """A pattern of all texts, longest first, grouped by first character so that few alternatives are tried."""
    alternatives = []
    for first, members in groupby(sorted(texts), key=lambda text: text[0]):
        tails = sorted((re.escape(text[1:]) for text in members), key=len, reverse=True)
        alternatives.append(f"{re.escape(first)}(?:{'|'.join(tails)})")
    return "|".join(alternatives)
