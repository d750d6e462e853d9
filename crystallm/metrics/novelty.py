"""Uniqueness and novelty of canonical texts, on several processes. When two crystals are the same: checks/known.py."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence

from crystallm.checks.known import find_match, formula_of, head_of
from crystallm.parallel import Failure, map_processes

logger = logging.getLogger(__name__)

Texts = tuple[str, ...]
TIMEOUT_S = 600.0  # for the crystals of one formula; kept where there are workers to end


def unique_texts(texts: Sequence[str], workers: int | None = 0) -> dict[str, str]:
    """Each text → the first text that describes the same crystal, itself where it is the first.

    Only crystals of one formula, number of formula units and space group are compared. Texts whose comparison failed
    are left out.
    """
    buckets: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for text in dict.fromkeys(texts):
        buckets[head_of(text)].append(text)
    first = {text: text for bucket in buckets.values() for text in bucket}
    crowded = [tuple(bucket) for bucket in buckets.values() if len(bucket) > 1]
    timeout_s = TIMEOUT_S if workers != 0 else None
    results = map_processes(_first_of_each, crowded, workers, chunk_size=1, timeout_s=timeout_s)
    for bucket, found in zip(crowded, results, strict=True):
        if isinstance(found, Failure):
            logger.warning("%d crystals of %s could not be compared: %s", len(bucket), formula_of(bucket[0]), found)
            first = {text: kept for text, kept in first.items() if text not in bucket}
        else:
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


def known_texts(texts: Sequence[str], reference: Sequence[str], workers: int | None = 0) -> dict[str, str | None]:
    """Each text → the reference's text of the same crystal; None: it is novel. Failed comparisons are left out."""
    by_formula: dict[str, list[str]] = defaultdict(list)
    for text in dict.fromkeys(reference):
        by_formula[formula_of(text)].append(text)
    found: dict[str, str | None] = dict.fromkeys(texts)
    wanted = [(text, tuple(by_formula[formula_of(text)])) for text in found if formula_of(text) in by_formula]
    timeout_s = TIMEOUT_S if workers != 0 else None
    results = map_processes(_find_known, wanted, workers, chunk_size=4, timeout_s=timeout_s)
    for (text, _), match in zip(wanted, results, strict=True):
        if isinstance(match, Failure):
            logger.warning("%s could not be compared with the reference: %s", formula_of(text), match)
            del found[text]
        else:
            found[text] = match
    return found


def _find_known(item: tuple[str, Texts]) -> str | None:
    text, candidates = item
    row = find_match(text, candidates)
    return None if row is None else candidates[row]
