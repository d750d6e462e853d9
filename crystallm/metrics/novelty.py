"""Uniqueness and novelty of canonical texts, on several processes. When two crystals are the same: checks/known.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from crystallm.checks.known import find_match, formula_of, head_of
from crystallm.parallel import Failure, map_processes

Texts = tuple[str, ...]


def unique_texts(texts: Sequence[str], workers: int | None = 0) -> dict[str, str]:
    """Each text → the first text that describes the same crystal, itself where it is the first.

    Only crystals of one formula, number of formula units and space group are compared.
    """
    buckets: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for text in dict.fromkeys(texts):
        buckets[head_of(text)].append(text)
    first = {text: text for bucket in buckets.values() for text in bucket}
    crowded = [tuple(bucket) for bucket in buckets.values() if len(bucket) > 1]
    for found in map_processes(_first_of_each, crowded, workers, chunk_size=1):
        if isinstance(found, Failure):
            raise RuntimeError(f"comparing crystals of one formula failed: {found}")
        first.update(found)
    return first


def _first_of_each(texts: Texts) -> dict[str, str]:
    kept: list[str] = []
    found = {}
    for text in texts:
        match = find_match(text, kept)
        if match is None:
            kept.append(text)
        else:
            found[text] = kept[match]
    return found


def known_texts(texts: Sequence[str], reference: Sequence[str], workers: int | None = 0) -> dict[str, str]:
    """Each text that describes a crystal of the reference → the reference's text; the others are novel."""
    by_formula: dict[str, list[str]] = defaultdict(list)
    for text in dict.fromkeys(reference):
        by_formula[formula_of(text)].append(text)
    wanted = [(text, tuple(by_formula[formula_of(text)])) for text in dict.fromkeys(texts)]
    wanted = [(text, candidates) for text, candidates in wanted if candidates]
    found = {}
    for (text, _), match in zip(wanted, map_processes(_find_known, wanted, workers), strict=True):
        if isinstance(match, Failure):
            raise RuntimeError(f"comparing with the reference failed: {match}")
        if match is not None:
            found[text] = match
    return found


def _find_known(item: tuple[str, Texts]) -> str | None:
    text, candidates = item
    row = find_match(text, candidates)
    return None if row is None else candidates[row]
