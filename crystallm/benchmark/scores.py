"""From what was judged to the figures of a benchmark: rows of a table, each over the same targets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystallm.benchmark.datasets import Reference
from crystallm.benchmark.judge import CDVAE_CHECKS, Judged
from crystallm.metrics.csp import MatchScore, best_of_references, score

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

FILTERS = {
    "unfiltered": "any sample that ended",
    "valid_by_default_rules": "valid by the default rules",
    "valid_by_cdvae_rules": "filtered by CDVAE's rules (0.5 Å, smact)",
}


@dataclass(frozen=True, eq=False)
class Samples:
    references: Sequence[Reference]
    judged: Sequence[Judged]  # a target each, in the same order
    num: int
    select: tuple[str, ...]
    matches: dict[str, NDArray[Any]] | None  # between rows of one formula: reference, row, sample, rms
    matched_kinds: str  # of samples that were compared so: all | first and selected | first | none

    @property
    def rms(self) -> Floats:
        """(n_targets, num)"""
        return np.array([one.rms for one in self.judged], dtype=np.float64)

    def passing(self, name: str) -> Bools:
        """(n_targets, num): samples that a filter of FILTERS lets through."""
        if name == "unfiltered":
            return np.ones((len(self.judged), self.num), dtype=bool)
        column = "rejected_by" if name == "valid_by_default_rules" else "cdvae_rejected_by"
        return np.array([[not by for by in getattr(one, column)] for one in self.judged])

    def answers(self) -> dict[str, tuple[int, Bools]]:
        """Row of the table: (samples looked at, which ones count (n_targets, num))."""
        first = np.arange(self.num)[None] == np.zeros((len(self.judged), 1))
        rows = {"n=1": (1, first)}
        if self.num > 1:
            rows[f"n={self.num}"] = (self.num, np.ones_like(first))
        for k, way in enumerate(self.select):
            chosen = np.array([[one.selected[k]] for one in self.judged])
            rows[f"{way} of {self.num}"] = (self.num, np.arange(self.num)[None] == chosen)
        return rows


def own_best(samples: Samples, counted: Bools) -> Floats:
    """(n_targets,): the smallest distance of a row's own samples; nan: none matches."""
    rms = np.where(counted & ~np.isnan(samples.rms), samples.rms, np.inf)
    best: Floats = rms.min(axis=1)
    return np.where(np.isfinite(best), best, np.nan)


def any_best(samples: Samples, counted: Bools) -> Floats:
    """(n_targets,): the smallest distance of all samples of the row's formula, whichever row they were drawn for."""
    best = own_best(samples, counted)
    references, rms = [np.arange(len(best))], [best]
    if samples.matches is not None and len(samples.matches["rms"]):
        table = samples.matches
        kept = counted[table["row"], table["sample"]]
        references.append(table["reference"][kept])
        rms.append(table["rms"][kept])
    return best_of_references(len(best), np.concatenate(references), np.concatenate(rms))


def compared_with_all(samples: Samples, row: str) -> bool:
    """Whether the samples of this row of the table were compared with the other structures of their formula."""
    reach = {"all": 3, "first and selected": 2, "first": 1, "none": 0}[samples.matched_kinds]
    return reach >= (1 if row == "n=1" else 3 if row == f"n={samples.num}" else 2)


def score_run(samples: Samples, abouts: Sequence[dict[str, Any]], cross: dict[str, Any]) -> dict[str, Any]:
    """`abouts`: of each chunk of samples, its time; `cross`: of the matches between rows, theirs."""
    judged = samples.judged
    scores: dict[str, dict[str, Any]] = {}
    for name in FILTERS:
        passing = samples.passing(name)
        scores[name] = {}
        for row, (n, counted) in samples.answers().items():
            metre = None
            if compared_with_all(samples, row):
                metre = _score(any_best(samples, counted & passing), n)
            scores[name][row] = vars(_score(own_best(samples, counted & passing), n)) | {
                "metre": None if metre is None else metre.match_rate,
                "metre_interval": None if metre is None else metre.match_rate_interval,
                "metre_crmse": None if metre is None else metre.crmse,
                "metre_crmse_interval": None if metre is None else metre.crmse_interval,
            }
    rejected_by = Counter(by for one in judged for by in one.rejected_by)
    n_drawn = sum(rejected_by.values())
    unended = ("dead_end", "unfinished", "error", "unread", "refused", "known")
    ended = [by not in unended for one in judged for by in one.rejected_by]
    restarts = np.array([n for one in judged for n in one.restarts])
    read = [one for one, reference in zip(judged, samples.references, strict=True) if reference.crystal is not None]
    by_cdvae = Counter(by for one in judged for by in one.cdvae_rejected_by)
    return {
        "n_targets": len(judged),
        "n_formulas": len({reference.formula for reference in samples.references if reference.crystal is not None}),
        "lost": {f"{row}: {one.id}": one.lost for row, one in enumerate(judged) if one.lost},
        "errors": [*(error for one in judged for error in one.errors), *cross["errors"]],
        "scores": scores,
        "metre_compares": {"samples": cross["kinds"], "pairs": cross["n_pairs"]},
        "ceiling": {
            "true_structures": len(read),
            "cdvae": _share([not one.reference_failed for one in read]),
            **{name: _share([name not in one.reference_failed for one in read]) for name in CDVAE_CHECKS},
        },
        "samples": {
            "finished": _share(ended),
            "finished_at_first_draw": float((np.array(ended) & (restarts == 0)).mean()),
            "restarts_per_sample": float(restarts.mean()),
            "known_drawn_again": sum(about.get("n_known", 0) for about in abouts),
            "valid_by_default_rules": rejected_by[""] / n_drawn,
            "valid_by_cdvae_rules": by_cdvae[""] / n_drawn,
            "rejected_by": {by: n for by, n in rejected_by.most_common() if by},
            "rejected_by_cdvae": {by: n for by, n in by_cdvae.most_common() if by},
        },
        "seconds_per_structure": _seconds(samples, abouts, cross),
    }


def _score(best: Floats, n: int) -> MatchScore:
    return replace(score(best[:, None]), n=n)


def _share(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _seconds(samples: Samples, abouts: Sequence[dict[str, Any]], cross: dict[str, Any]) -> dict[str, float]:
    """Per structure drawn. Wall seconds of checks are those of one worker; workers run beside each other."""
    judged = [one for one in samples.judged if not one.lost]
    n_drawn = max(1, len(judged) * samples.num)
    seconds = {
        "sampling_wall": sum(about["wall_s"] for about in abouts),
        "sampling_cpu": sum(about["cpu_s"] for about in abouts),
        "judging_worker_wall": sum(one.wall_s for one in judged),
        "checks_cpu": sum(one.checks_cpu_s for one in judged),
        "matching_cpu": sum(one.match_cpu_s for one in judged),
        "polymorphs_cpu": cross["cpu_s"],
    }
    for k, way in enumerate(samples.select):
        selecting = sum(one.select_cpu_s[k] for one in judged if one.select_cpu_s)
        seconds[f"select_{way}_cpu"] = selecting + sum(about.get("score_cpu_s", {}).get(way, 0.0) for about in abouts)
    return {name: value / n_drawn for name, value in seconds.items()}


# ---------------------------------------------------------------- tables


def target_columns(samples: Samples) -> dict[str, list[Any]]:
    """A row for each target, of what becomes of it unfiltered and filtered; for targets.parquet."""
    columns: dict[str, list[Any]] = {
        "row": list(range(len(samples.judged))),
        "id": [one.id for one in samples.judged],
        "formula": [one.formula for one in samples.references],
        "n_atoms": [None if one.crystal is None else one.crystal.n_atoms for one in samples.references],
        "lost": [one.lost or None for one in samples.judged],
        "true_structure_fails": [", ".join(one.reference_failed) for one in samples.judged],
        "rejected_by": [json.dumps(Counter(by for by in one.rejected_by if by)) for one in samples.judged],
        "rejected_by_cdvae": [json.dumps(Counter(by for by in one.cdvae_rejected_by if by)) for one in samples.judged],
    }
    for name in ("unfiltered", "valid_by_cdvae_rules"):
        passing = samples.passing(name)
        for row, (_, counted) in samples.answers().items():
            best = own_best(samples, counted & passing)
            columns[f"{row}, {name}: matched"] = (~np.isnan(best)).tolist()
            columns[f"{row}, {name}: rms"] = [None if np.isnan(rms) else float(rms) for rms in best]
            if name == "unfiltered" and compared_with_all(samples, row):
                columns[f"{row}, {name}: metre"] = (~np.isnan(any_best(samples, counted))).tolist()
    for k, way in enumerate(samples.select):
        columns[f"selected by {way}"] = [None if one.selected[k] < 0 else one.selected[k] for one in samples.judged]
    return columns


def results_table(results: dict[str, Any]) -> str:
    """Markdown, as the README shows it."""
    seconds, settings = results["seconds_per_structure"], results["settings"]
    lines = [
        f"{results['dataset']}, {results['rows']}: {results['n_targets']} targets, {results['n_formulas']} formulas; "
        f"prompt: {results['prompt']}; temperature {settings['temperature']:g}, seed {settings['seed']}, "
        f"model {results['model_hash'][:12]}",
        "",
        "| answer | match rate % | RMSE | cRMSE | METRe % | its cRMSE | samples, and CPU ms to select |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in FILTERS.items():
        if name == "valid_by_default_rules":
            continue  # in results.json; the published tables have the other two
        lines.append(f"| *{title}* | | | | | | |")
        for row, figures in results["scores"][name].items():
            cells = [
                row,
                f"**{100 * figures['match_rate']:.2f}** {_interval(figures['match_rate_interval'], 100, 1)}",
                "" if figures["rmse"] is None else f"{figures['rmse']:.4f}",
                f"{figures['crmse']:.4f}",
                "" if figures["metre"] is None else f"{100 * figures['metre']:.2f}",
                "" if figures["metre_crmse"] is None else f"{figures['metre_crmse']:.4f}",
                _cost(row, figures["n"], seconds),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    ceiling = results["ceiling"]
    lines += [
        "",
        "The true structures' own score by CDVAE's rules, the ceiling of a filtered match rate: "
        f"{_percent(ceiling['cdvae'])} (composition {_percent(ceiling['cdvae_composition'])}, structure "
        f"{_percent(ceiling['cdvae_structure'])}).",
        f"Samples: finished {_percent(results['samples']['finished'])}, valid by the default rules "
        f"{_percent(results['samples']['valid_by_default_rules'])}, by CDVAE's "
        f"{_percent(results['samples']['valid_by_cdvae_rules'])}. Targets lost: {len(results['lost'])}.",
        f"Per structure: sampling {1000 * seconds['sampling_wall']:.2f} ms wall, "
        f"{1000 * seconds['sampling_cpu']:.2f} ms CPU; "
        f"checks {1000 * seconds['checks_cpu']:.2f} ms CPU, matching {1000 * seconds['matching_cpu']:.2f} ms CPU; "
        f"both and selection {1000 * seconds['judging_worker_wall']:.2f} ms wall of a worker.",
    ]
    if "known" in results:
        lines.append(_known_line(results))
    if results["metre_compares"]["samples"] != "all":
        lines.append(f"METRe for {results['metre_compares']['samples']} samples only: all would be too many pairs.")
    return "\n".join(lines) + "\n"


def log_lines(results: dict[str, Any]) -> list[str]:
    """The figures in a few lines of text, for a log of experiments."""
    lines = [f"{results['n_targets']} targets, {len(results['lost'])} lost; prompt: {results['prompt']}"]
    for name, title in FILTERS.items():
        if name == "valid_by_default_rules":
            continue
        parts = []
        for row, figures in results["scores"][name].items():
            parts.append(f"{row} {100 * figures['match_rate']:.2f} {_interval(figures['match_rate_interval'], 100, 1)}")
            parts[-1] += "" if figures["rmse"] is None else f" RMSE {figures['rmse']:.4f}"
            parts[-1] += "" if figures["metre"] is None else f" METRe {100 * figures['metre']:.2f}"
        lines.append(f"match rate %, {title}: {'; '.join(parts)}")
    lines += [_known_line(results)] if "known" in results else []
    return [*lines, f"ceiling by CDVAE's rules: {_percent(results['ceiling']['cdvae'])}"]


def _known_line(results: dict[str, Any]) -> str:
    return f"Known crystals, {results['samples']['known_drawn_again']} samples drawn again: {results['known']}."


def _interval(bounds: Sequence[float], factor: float, digits: int) -> str:
    return f"[{factor * bounds[0]:.{digits}f}, {factor * bounds[1]:.{digits}f}]"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _cost(row: str, n: int, seconds: dict[str, float]) -> str:
    way = row.partition(" of ")[0]
    spent = seconds.get(f"select_{way}_cpu")
    return str(n) if spent is None else f"{n}, {1000 * n * spent:.0f}"
