"""Does the search for equal crystals lose any? Its answer beside that of comparing every pair, and what it saved.

compare(texts, max_cpu_seconds=600)  # {"index_alone": {...}, "beside_all_pairs": {"n_different": 0, ...}}
"""

from __future__ import annotations

import functools
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from crystallm.checks.known import head_of
from crystallm.checks.match_index import niggli_cell, primitive_crystal
from crystallm.interop import to_structure
from crystallm.metrics.novelty import first_of_each

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure


def compare(texts: Iterable[str], max_cpu_seconds: float = 600.0, seed: int = 0) -> dict[str, Any]:
    """The index over all buckets (one formula, number of formula units and group); all pairs over buckets in random
    order, until their time is over.
    """
    buckets: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for text in dict.fromkeys(texts):
        buckets[head_of(text)].append(text)
    crowded = [bucket for bucket in buckets.values() if len(bucket) > 1]
    start = time.process_time()
    found = [first_of_each(tuple(bucket)) for bucket in crowded]
    whole = {
        "n_texts": sum(map(len, buckets.values())),
        "n_buckets": len(crowded),
        "largest_bucket": max(map(len, crowded), default=0),
        "n_duplicates": sum(len(one.match_of) for one in found),
        "n_compared": sum(one.n_compared for one in found),
        "n_pairs": sum(one.n_pairs for one in found),
        "cpu_seconds": round(time.process_time() - start, 2),
    }
    _structure.cache_clear()
    totals = dict.fromkeys(("n_buckets", "n_texts", "n_duplicates", "n_pairs", "n_compared", "n_different"), 0)
    index_seconds = pair_seconds = 0.0
    order = list(range(len(crowded)))
    random.Random(seed).shuffle(order)
    for k in order:
        if pair_seconds > max_cpu_seconds:
            break
        bucket = crowded[k]
        niggli_cell.cache_clear()
        start = time.process_time()
        first_of_each(tuple(bucket))
        middle = time.process_time()
        plain, n_pairs = first_by_all_pairs(bucket)
        pair_seconds += time.process_time() - middle
        index_seconds += middle - start
        totals["n_buckets"] += 1
        totals["n_texts"] += len(bucket)
        totals["n_duplicates"] += len(plain)
        totals["n_pairs"] += n_pairs
        totals["n_compared"] += found[k].n_compared
        totals["n_different"] += sum(found[k].match_of.get(text) != plain.get(text) for text in bucket)
    return {
        "index_alone": whole,
        "beside_all_pairs": {
            **totals,
            "share_saved": round(1 - totals["n_compared"] / max(1, totals["n_pairs"]), 4),
            "index_cpu_seconds": round(index_seconds, 2),
            "all_pairs_cpu_seconds": round(pair_seconds, 2),
            "ratio": round(pair_seconds / max(1e-9, index_seconds), 2),
        },
    }


def first_by_all_pairs(texts: Sequence[str]) -> tuple[dict[str, str], int]:
    """As first_of_each, every crystal held against each one kept before it until one matches; and how many pairs."""
    kept: list[str] = []
    found, n_pairs = {}, 0
    for text in texts:
        for other in kept:
            n_pairs += 1
            if _matcher().fit(_structure(text), _structure(other)):
                found[text] = other
                break
        else:
            kept.append(text)
    return found, n_pairs


@functools.lru_cache(1024)
def _structure(text: str) -> Structure:
    return to_structure(primitive_crystal(text))


@functools.cache
def _matcher() -> StructureMatcher:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(primitive_cell=False)
