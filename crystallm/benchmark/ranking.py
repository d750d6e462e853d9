"""Whether a predicted property finds the right crystal among samples: the answers of a benchmark's run, ranked.

Each target's valid samples are ranked by the value; its first is matched as the run matched it, beside the first
sample drawn and what the run's own selections took. Besides, self-consistency with votes that count exp(-value / w):
what most samples agree on, unless its value speaks against it. Values may be those of the refined samples; the match
rate is that of the samples as drawn all the same, so that only the choice differs.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crystallm.benchmark.run_folder import RunFolder
from crystallm.metrics.csp import score
from crystallm.records import CIFRecord
from crystallm.refine.records import RefineConfig, refine_records
from crystallm.sample.refined import load
from crystallm.sample.scorers import find_scorer
from crystallm.sample.selection import DENOISING, DENOISING_WIDTH, ENERGY_WIDTH_EV, boltzmann, by_cluster


@dataclass(frozen=True)
class RankingConfig:
    run: str  # folder of a run of bin/benchmark_csp.py
    by: str = "formation_energy"  # property of the predictor, or denoising_error; the lowest wins
    model: str | None = None  # predictor; None: the bundled one
    votes: tuple[float, ...] | None = None  # widths w, in the value's unit: each sample votes with exp(-value / w)
    limit: int | None = None  # the first so many chunks of the run
    refine: bool = False  # predict for the samples as the bundled refiner mends them
    device: str = "cpu"


@dataclass(frozen=True)
class Way:
    """How an answer is chosen: the lowest value, or with `width` the heaviest cluster of votes exp(-value / width)."""

    width: float | None = None

    def choose(self, records: Sequence[CIFRecord], score: str) -> int:
        """Among the valid records of one target"""
        if self.width is None:
            return int(np.argmin([record.scores[score] for record in records]))
        return by_cluster(records, functools.partial(boltzmann, score=score, width=self.width))


def compare_rankings(config: RankingConfig) -> dict[str, Any]:
    """Match rates of the answers by each way. Raises FileNotFoundError, ValueError for an unknown property.

    Without `votes`, the width is that of `energy_votes` or `denoising_votes`.
    """
    run = Path(config.run)
    identity = json.loads((run / "config.json").read_text(encoding="utf-8"))
    settings = identity["settings"]
    folder = RunFolder(run, identity)
    scorer = find_scorer(config.by, config.model, config.device)
    refiner = load(device=config.device)[0] if config.refine else None
    name, ways = scorer.name, _ways(config, scorer.name)
    rms: dict[str, list[float]] = {way: [] for way in ("first", *settings["select"], *ways)}
    n_predicted, cpu_s, chunk = 0, 0.0, 0
    while folder.has_judged(chunk) and (config.limit is None or chunk < config.limit):
        judged, drawn = folder.read_judged(chunk), folder.read_samples(chunk)[0]
        cpu = time.process_time()
        seen = list(refine_records(drawn, refiner, RefineConfig())) if refiner else drawn
        scored = scorer.apply(seen)[0]
        cpu_s += time.process_time() - cpu
        n_predicted += len(scored)
        by_id = {record.id: record for record in scored if name in record.scores}
        for one in judged:
            rms["first"].append(one.rms[0])
            for way, place in zip(settings["select"], one.selected or [-1] * len(settings["select"]), strict=True):
                rms[way].append(one.rms[place] if place >= 0 else np.nan)
            valid = [k for k, reason in enumerate(one.rejected_by) if not reason and f"{one.id}/{k:03d}" in by_id]
            own = [by_id[f"{one.id}/{k:03d}"] for k in valid]
            for title, how in ways.items():
                rms[title].append(one.rms[valid[how.choose(own, name)]] if own else np.nan)
        chunk += 1
    if not chunk:
        raise FileNotFoundError(f"{run}: no judged samples; wanted a folder of bin/benchmark_csp.py")
    return {
        "run": str(run),
        "dataset": settings["dataset"],
        "split": settings["split"],
        "num": settings["num"],
        "n_targets": len(rms["first"]),
        "by": config.by,
        "refined": config.refine,
        "predictor": (scorer.model_hash or "")[:12],
        "predict_cpu_ms": 1000 * cpu_s / max(1, n_predicted),
        "answers": {way: vars(score(np.array(own)[:, None])) for way, own in rms.items()},
    }


def _ways(config: RankingConfig, score: str) -> dict[str, Way]:
    widths = config.votes
    if widths is None:
        widths = (DENOISING_WIDTH if score == DENOISING else ENERGY_WIDTH_EV,)
    voting = {f"self-consistency, votes exp(-{config.by} / {width:g})": Way(width) for width in widths}
    return {config.by: Way(), **voting}


def ranking_table(results: dict[str, Any]) -> str:
    what = "one prediction of a refined sample, refining included" if results["refined"] else "one prediction"
    lines = [
        f"{results['dataset']} {results['split'] or ''}: {results['n_targets']} targets × {results['num']} samples; "
        f"{what}: {results['predict_cpu_ms']:.1f} ms of CPU",
        "",
        "| answer | match rate % | RMSE |",
        "|---|---|---|",
    ]
    for way, one in results["answers"].items():
        low, high = one["match_rate_interval"]
        lines.append(
            f"| {way} | {100 * one['match_rate']:.1f} [{100 * low:.1f}, {100 * high:.1f}] | {one['rmse']:.4f} |"
        )
    return "\n".join(lines)
