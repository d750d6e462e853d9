"""Uniqueness and novelty of canonical texts, on several processes. When two crystals are the same: checks/known.py.

No two crystals of different formula or number of formula units are ever compared: these stand in the first lines of a
text, and are the keys of a table. Within one, checks/match_index.py finds the first match without trying every pair.
"""

from __future__ import annotations

import logging
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystallm.checks.known import formula_of, head_of
from crystallm.checks.match_index import MatchIndex, composition_of
from crystallm.metrics.spill import SpilledList
from crystallm.parallel import Failure, map_processes

logger = logging.getLogger(__name__)

Texts = tuple[str, ...]
TIMEOUT_S = 600.0  # for the crystals of one task; kept where there are workers to end
WANTED_AT_ONCE = 256  # texts of one composition that are looked for in one task
UNKNOWN = -1
BUCKET_ROWS = 50_000  # whose texts, some 25 MB, are in memory together


class Comparison(NamedTuple):
    """Of each row; UNKNOWN where it has no canonical text or could not be compared."""

    first: NDArray[np.int64]  # (n,) the first row with the same crystal
    novel: NDArray[np.int8] | None  # (n,) 1 where the reference does not hold it; None without a reference


def compare_rows(
    texts: Iterable[str], reference: Iterable[str] | None, n_rows: int, workers: int | None = 0
) -> Comparison:
    """Uniqueness and novelty of `n_rows` texts ("" for a row without), in memory that does not grow with them.

    They are laid down on disk in buckets by a hash of the formula, and a bucket is compared at a time.
    """
    n_buckets = 1 + n_rows // BUCKET_ROWS
    first = np.full(n_rows, UNKNOWN, dtype=np.int64)
    novel = np.full(n_rows, UNKNOWN, dtype=np.int8)
    known = None if reference is None else _by_formula(reference, n_buckets)
    for number, bucket in enumerate(_by_formula(texts, n_buckets)):
        row_of: dict[str, int] = {}
        for row, text in bucket:
            row_of.setdefault(text, row)
        same_as = unique_texts(row_of, workers)
        matches = {} if known is None else known_texts(row_of, (text for _, text in known[number]), workers)
        for row, text in bucket:
            if text in same_as:
                first[row] = row_of[same_as[text]]
            if text in matches:
                novel[row] = matches[text] is None
    return Comparison(first, None if reference is None else novel)


def _by_formula(texts: Iterable[str], n_buckets: int) -> list[SpilledList[tuple[int, str]]]:
    """(row, text) of the rows that have one."""
    buckets = [SpilledList[tuple[int, str]](chunk=512) for _ in range(n_buckets)]
    for row, text in enumerate(texts):
        if text:
            buckets[zlib.crc32(text.partition("\n")[0].encode()) % n_buckets].append((row, text))
    return buckets


class Found(NamedTuple):
    match_of: dict[str, str]  # text → the first that is the same crystal; without those that match none
    n_pairs: int  # comparisons, were each tried
    n_compared: int  # tried


def unique_texts(texts: Iterable[str], workers: int | None = 0) -> dict[str, str]:
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
    results = map_processes(first_of_each, crowded, workers, chunk_size=1, timeout_s=timeout_s)
    for bucket, found in zip(crowded, results, strict=True):
        if isinstance(found, Failure):
            logger.warning("%d crystals of %s could not be compared: %s", len(bucket), formula_of(bucket[0]), found)
            for text in bucket:
                del first[text]
        else:
            first.update(found.match_of)
    return first


def first_of_each(texts: Texts) -> Found:
    """Of crystals of one formula, number of formula units and space group. The first of each kind stands for it."""
    kept = MatchIndex()
    found = {}
    for text in texts:
        match = kept.find(text)
        if match is None:
            kept.add(text)
        else:
            found[text] = kept.texts[match]
    return Found(found, kept.n_pairs, kept.n_compared)


def known_texts(texts: Iterable[str], reference: Iterable[str], workers: int | None = 0) -> dict[str, str | None]:
    """Each text → the reference's text of the same crystal; None: it is novel. Failed comparisons are left out."""
    found: dict[str, str | None] = dict.fromkeys(texts)
    wanted: dict[str, list[str]] = defaultdict(list)
    for text in found:
        wanted[composition_of(text)].append(text)
    candidates: dict[str, list[str]] = defaultdict(list)
    for text in dict.fromkeys(reference):
        if text in found:  # equal texts need no comparison
            found[text] = text
        if composition_of(text) in wanted:
            candidates[composition_of(text)].append(text)
    tasks: list[tuple[Texts, Texts]] = []
    for composition, known in candidates.items():
        open_ones = [text for text in wanted[composition] if found[text] is None]
        parts = (open_ones[k : k + WANTED_AT_ONCE] for k in range(0, len(open_ones), WANTED_AT_ONCE))
        tasks += ((tuple(part), tuple(known)) for part in parts)
    timeout_s = TIMEOUT_S if workers != 0 else None
    results = map_processes(find_known, tasks, workers, chunk_size=1, timeout_s=timeout_s)
    for (part, _), result in zip(tasks, results, strict=True):
        if isinstance(result, Failure):
            what = f"{len(part)} crystals of {formula_of(part[0])}"
            logger.warning("%s could not be compared with the reference: %s", what, result)
            for text in part:
                del found[text]
        else:
            found.update(result.match_of)
    return found


def find_known(task: tuple[Sequence[str], Sequence[str]]) -> Found:
    """(texts, reference), all of one formula and number of formula units."""
    texts, reference = task
    index = MatchIndex(reference)
    places = {text: index.find(text) for text in texts}
    found = {text: reference[place] for text, place in places.items() if place is not None}
    return Found(found, index.n_pairs, index.n_compared)
