"""What each search finds of real crystals, and at what cost: its answer's match rate beside that of all it drew."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crystallm.benchmark.datasets import Reference, load_references
from crystallm.matching import Reduced, distance_to, reduce_crystal
from crystallm.metrics.csp import score
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.sample.prompts import benchmark_prompt
from crystallm.sample.search import SearchConfig, SearchResult, search_from
from crystallm.sample.selection import select

TARGETS_AT_ONCE = 20


@dataclass(frozen=True)
class SearchRun:
    """One search with its settings. `answers`: other selections among what it drew, at the same cost."""

    search: SearchConfig
    num: int
    answers: tuple[str, ...] = ()


@dataclass(eq=False)
class SearchScore:
    run: SearchRun
    rms: dict[str, list[float]] = field(default_factory=dict)  # by selection, one a target read; nan: no match
    n_unread: int = 0
    n_structures: int = 0
    n_tokens: int = 0
    cpu_s: float = 0.0  # drawing, checking, selecting


def benchmark_searches(
    path: str,
    runs: Sequence[SearchRun],
    where: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    model: str | None = None,
) -> list[SearchScore]:
    """Each run on the same rows of a table, prompted as in bin/benchmark_csp.py. Unread rows are misses."""
    references, _ = load_references(path, where=where, limit=limit)
    generator = Generator.load(model)
    scores = [SearchScore(run) for run in runs]
    for start in range(0, len(references), TARGETS_AT_ONCE):
        part = references[start : start + TARGETS_AT_ONCE]
        for one in scores:
            _add(one, part, generator, seed)
    return scores


def _add(total: SearchScore, references: Sequence[Reference], generator: Generator, seed: int) -> None:
    crystals = [reference.crystal for reference in references if reference.crystal is not None]
    total.n_unread += len(references) - len(crystals)
    cpu = time.process_time()
    config = GenerateConfig(num=total.run.num, seed=seed)
    results = search_from(generator, [benchmark_prompt(crystal) for crystal in crystals], total.run.search, config)
    total.cpu_s += time.process_time() - cpu
    for crystal, result in zip(crystals, results, strict=True):
        _match(total, result, reduce_crystal(crystal))


def _match(total: SearchScore, result: SearchResult, reference: Reduced) -> None:
    total.n_structures += result.n_structures
    total.n_tokens += result.n_tokens
    known: dict[str, float] = {}

    def distance(index: int | None) -> float:
        if index is None:
            return np.nan
        text = result.records[index].text
        if text not in known:
            crystal = result.records[index].crystal
            known[text] = np.nan if crystal is None else distance_to(crystal, reference)
        return known[text]

    total.rms.setdefault(f"answer, by {result.selected_by}", []).append(distance(result.answer))
    for by in total.run.answers:
        total.rms.setdefault(f"by {by}", []).append(distance(select(result.records, by)))
    valid = [k for k, record in enumerate(result.records) if record.rejected_by is None]
    best = np.array([distance(k) for k in valid] or [np.nan])
    total.rms.setdefault("best of all", []).append(np.nan if np.isnan(best).all() else float(np.nanmin(best)))


def summary(scores: Sequence[SearchScore]) -> list[dict[str, Any]]:
    """A row for each search and selection."""
    rows = []
    for one in scores:
        for name, distances in one.rms.items():
            found = score(np.array([*distances, *[np.nan] * one.n_unread])[:, None])
            n = found.n_targets
            rows.append(
                {
                    **one.run.search.settings,
                    "num": one.run.num,
                    "selection": name,
                    "n_targets": n,
                    "n_matched": found.n_matched,
                    "match_rate": found.match_rate,
                    "match_rate_interval": found.match_rate_interval,
                    "rmse": found.rmse,
                    "structures_per_target": one.n_structures / n,
                    "tokens_per_target": one.n_tokens / n,
                    "cpu_s_per_target": one.cpu_s / n,
                }
            )
    return rows
