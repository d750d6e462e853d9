"""Whether a predicted property finds the right crystal among samples: the answers of a benchmark's run, ranked.

Each target's valid samples are ranked by the predicted value; its first is matched as the run matched it, beside the
first sample drawn and what the run's own selections took, which cost no prediction. Besides, self-consistency with
votes that count exp(-value / w): what most samples agree on, unless its value speaks against it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crystallm.benchmark.run_folder import RunFolder
from crystallm.metrics.csp import score
from crystallm.properties.prediction import Predictor, score_name
from crystallm.records import CIFRecord
from crystallm.sample.selection import by_cluster


@dataclass(frozen=True)
class RankingConfig:
    run: str  # folder of a run of bin/benchmark_csp.py
    by: str = "formation_energy"  # property of the predictor; the lowest wins
    model: str | None = None  # predictor; None: the bundled one
    caution: tuple[float, ...] = (1.0,)  # besides, by value + c times the expected error
    votes: tuple[float, ...] = (0.1,)  # widths w, in the property's unit: each sample votes with exp(-value / w)
    limit: int | None = None  # the first so many chunks of the run
    device: str = "cpu"


def compare_rankings(config: RankingConfig) -> dict[str, Any]:
    """Match rates of the answers by each way. Raises FileNotFoundError, ValueError for an unknown property."""
    run = Path(config.run)
    identity = json.loads((run / "config.json").read_text(encoding="utf-8"))
    settings = identity["settings"]
    folder = RunFolder(run, identity)
    predictor = Predictor.load(config.model, config.device)
    name = score_name(predictor.target(config.by).name)
    careful = {f"{config.by} + {c:g} × its expected error": c for c in config.caution}
    voting = {f"self_consistency, votes exp(-{config.by} / {width:g})": width for width in config.votes}
    ways = ("first", *settings["select"], config.by, *careful, *voting)
    rms: dict[str, list[float]] = {way: [] for way in ways}
    n_predicted, cpu_s = 0, 0.0
    chunk = 0
    while folder.has_judged(chunk) and (config.limit is None or chunk < config.limit):
        records, _ = folder.read_samples(chunk)
        judged = folder.read_judged(chunk)
        by_id: dict[str, list[CIFRecord]] = {}
        for record in records:
            by_id.setdefault(record.id.rpartition("/")[0], []).append(record)
        cpu = time.process_time()
        scored = predictor.score([r for one in judged for r in by_id.get(one.id, [])])
        cpu_s += time.process_time() - cpu
        by_name = {record.id: record for record in scored}
        values = {record.id: record.scores.get(name, np.nan) for record in scored}
        widths = {record.id: record.scores.get(f"{name}_error", np.nan) for record in scored}
        n_predicted += len(scored)
        for one in judged:
            rms["first"].append(one.rms[0])
            for way, place in zip(settings["select"], one.selected or [-1] * len(settings["select"]), strict=True):
                rms[way].append(one.rms[place] if place >= 0 else np.nan)
            own = np.array([values.get(f"{one.id}/{k:03d}", np.nan) for k in range(len(one.rms))])
            own[[bool(reason) for reason in one.rejected_by]] = np.nan
            usable = np.flatnonzero(np.isfinite(own))
            errors = np.array([widths.get(f"{one.id}/{k:03d}", np.nan) for k in range(len(one.rms))])
            for way, factor in {config.by: 0.0, **careful}.items():
                bound = own + factor * errors
                rms[way].append(one.rms[int(np.nanargmin(bound))] if len(usable) else np.nan)
            drawn = [by_name[f"{one.id}/{k:03d}"] for k in usable]
            for way, width in voting.items():
                weights = np.exp(-(own[usable] - own[usable].min(initial=np.inf)) / width)
                rms[way].append(one.rms[usable[_heaviest(drawn, weights)]] if drawn else np.nan)
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
        "predictor": predictor.info.get("model_hash", "")[:12],
        "predict_cpu_ms": 1000 * cpu_s / max(1, n_predicted),
        "answers": {way: vars(score(np.array(own)[:, None])) for way, own in rms.items()},
    }


def _heaviest(records: Sequence[CIFRecord], weights: np.ndarray) -> int:
    return by_cluster(records, lambda _: weights)


def ranking_table(results: dict[str, Any]) -> str:
    lines = [
        f"{results['dataset']} {results['split'] or ''}: {results['n_targets']} targets × {results['num']} samples; "
        f"one prediction: {results['predict_cpu_ms']:.1f} ms of CPU",
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
