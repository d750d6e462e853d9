"""What refinement gives: the samples of a benchmark's run, as they were and refined, against the same references.

    compare_refined(RefinementConfig("runs/csp", data="data/"))

A refined record that fails a check which it passed before counts as it was, as users get it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystallm.benchmark.datasets import Reference, load_references
from crystallm.benchmark.judge import sample_crystal
from crystallm.checks.bonds import BondError, check_bonds
from crystallm.checks.filter import FilterConfig, filter_records, parse_record
from crystallm.matching import distance_to, reduce_crystal
from crystallm.records import CIFRecord, read_records
from crystallm.refine.records import RefineConfig
from crystallm.sample.refined import load, refine_checked

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RefinementConfig:
    run: str  # folder of a run of bin/benchmark_csp.py
    data: str | None = None  # folder of the data sets
    model: str | None = None  # refiner; None: the bundled one
    num: int | None = None  # the first so many samples of each target; None: all
    limit: int | None = None  # the first so many targets
    refine: RefineConfig = field(default_factory=RefineConfig)
    device: str = "auto"


@dataclass(eq=False)
class Sampled:
    """Of the samples, in order: (n_targets, num), nan where there is no match."""

    rms: Floats
    volume_error: Floats  # |ln(V / V of the reference)| an atom; nan where there is no crystal
    valid: NDArray[np.bool_]
    bonds: NDArray[np.bool_]


def compare_refined(config: RefinementConfig) -> dict[str, Any]:
    """Match rates, RMSE, valid shares and costs before and after. Raises FileNotFoundError, DatasetError."""
    settings = json.loads((Path(config.run) / "config.json").read_text(encoding="utf-8"))["settings"]
    source = (settings["dataset"], settings["split"], config.data, settings["where"], settings["limit"])
    references, rows = load_references(*source)
    references = references[: config.limit]
    num = min(config.num or settings["num"], settings["num"])
    samples = dict(_samples(Path(config.run), num))
    before = [samples.get(f"{one.id}/{k:03d}") or _missing(one, k) for one in references for k in range(num)]
    model, info = load(config.model, config.device)
    checks = FilterConfig()
    before = list(filter_records(before, checks))
    cpu = time.process_time()
    after = list(refine_checked(before, model, config.refine, checks, info["model_hash"]))
    refine_cpu_s = time.process_time() - cpu
    shape = (len(references), num)
    old, new = (_judged(records, references, shape) for records in (before, after))
    refined = [record for record in after if "refined" in record.provenance]
    taken = [pair for pair in zip(before, after, strict=True) if _is_taken(pair[1])]
    both = old.rms + new.rms
    scores = {f"n={n}": compare_distances(old.rms[:, :n], new.rms[:, :n]) for n in sorted({1, num})}
    return {
        "run": str(config.run),
        "dataset": settings["dataset"],
        "rows": rows.rows,
        "n_targets": len(references),
        "num": num,
        "model_hash": info["model_hash"],
        "settings": vars(config.refine),
        "scores": scores,
        "volume_error": [float(one.volume_error[np.isfinite(both)].mean()) for one in (old, new)],
        "valid": [float(old.valid.mean()), float(new.valid.mean())],
        "good_bonds": [float(old.bonds.mean()), float(new.bonds.mean())],
        "n_refined": len(refined),
        "n_kept_as_drawn": sum("failed" in one.provenance["refined"] for one in refined),
        "kept_group": float(np.mean([_group(a) == _group(b) for a, b in taken])) if taken else math.nan,
        "refine_cpu_ms": 1000 * refine_cpu_s / max(1, len(before)),
        "sample_cpu_ms": _sampling_cpu_ms(Path(config.run), settings["num"]),
    }


def _samples(run: Path, num: int) -> Iterator[tuple[str, CIFRecord]]:
    for record in read_records(*sorted((run / "samples").glob("*.parquet"))):
        if int(record.id.rpartition("/")[2]) < num:
            yield record.id, record


def _missing(reference: Reference, k: int) -> CIFRecord:
    """A target whose prompt was refused or whose row was not read has no samples: misses."""
    return CIFRecord(f"{reference.id}/{k:03d}", "", rejected_by="refused", reason="the run has no sample of it")


def _judged(records: Sequence[CIFRecord], references: Sequence[Reference], shape: tuple[int, int]) -> Sampled:
    rms, volume_error = np.full(shape, np.nan), np.full(shape, np.nan)
    bonds = np.zeros(shape, dtype=bool)
    valid = np.array([record.rejected_by is None for record in records]).reshape(shape)
    for row, reference in enumerate(references):
        reduced = None if reference.crystal is None else reduce_crystal(reference.crystal)
        for k in range(shape[1]):
            record = records[row * shape[1] + k]
            ended = replace(record, rejected_by=None) if record.text else record
            crystal = sample_crystal(ended)
            if crystal is not None and reference.crystal is not None and reduced is not None:
                rms[row, k] = distance_to(crystal, reduced)
                volumes = [one.volume_ang3 / one.n_atoms for one in (crystal, reference.crystal)]
                volume_error[row, k] = abs(math.log(volumes[0] / volumes[1]))
            bonds[row, k] = crystal is not None and _has_good_bonds(ended)
    return Sampled(rms, volume_error, valid, bonds)


def _has_good_bonds(record: CIFRecord) -> bool:
    try:
        parsed = parse_record(record)
        return parsed.rejected_by is None and check_bonds(parsed) is None
    except BondError:
        return False


def _is_taken(record: CIFRecord) -> bool:
    return "refined" in record.provenance and "failed" not in record.provenance["refined"]


def _group(record: CIFRecord) -> str:
    """What the text states: of a sample as it was drawn, of a refined one as it was found."""
    return record.text.partition("_symmetry_space_group_name_H-M ")[2].partition("\n")[0]


def compare_distances(before: Floats, after: Floats) -> dict[str, Any]:
    """(n_targets, n) distances each: the best of n."""
    old, new = (np.where(np.isnan(rms), np.inf, rms).min(axis=1) for rms in (before, after))
    both = np.isfinite(old) & np.isfinite(new)
    is_off = bool(old[both].any())  # where all sites are special, no distance can shrink
    return {
        "match_rate": [float(np.isfinite(old).mean()), float(np.isfinite(new).mean())],
        "rmse": [float(rms[np.isfinite(rms)].mean()) if np.isfinite(rms).any() else math.nan for rms in (old, new)],
        "n_matched_both": int(both.sum()),
        "rmse_both": [float(rms[both].mean()) if both.any() else math.nan for rms in (old, new)],
        "rmse_ratio": float(new[both].mean() / old[both].mean()) if is_off else math.nan,
        "rmse_ratio_interval": bootstrap_ratio(new[both], old[both]) if is_off else [math.nan, math.nan],
    }


def bootstrap_ratio(above: Floats, below: Floats, n_bootstrap: int = 1000, seed: int = 0) -> list[float]:
    """95 % interval of mean(above) / mean(below) over the pairs."""
    draws = np.random.default_rng(seed).integers(0, len(above), (n_bootstrap, len(above)))
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw of zeros alone
        ratios = above[draws].mean(axis=1) / below[draws].mean(axis=1)
    return [float(edge) for edge in np.nanquantile(ratios, [0.025, 0.975])]


def _sampling_cpu_ms(run: Path, num: int) -> float:
    abouts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((run / "samples").glob("*.json"))]
    n_samples = sum(len(about["asked"]) * num for about in abouts)
    return 1000 * float(sum(about["cpu_s"] for about in abouts)) / max(1, n_samples)


def refinement_table(results: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [
        f"{results['dataset']}, {results['rows']}: {results['n_targets']} targets × {results['num']}; refiner "
        f"{results['model_hash'][:12]}, {', '.join(f'{key} {value}' for key, value in results['settings'].items())}",
        "",
        "| | as drawn | refined | |",
        "|---|---|---|---|",
    ]
    for name, score in results["scores"].items():
        (old, new), (low, high) = score["match_rate"], score["rmse_ratio_interval"]
        lines.append(f"| match rate %, {name} | {100 * old:.2f} | {100 * new:.2f} | {100 * (new - old):+.2f} |")
        old, new = score["rmse_both"]
        lines.append(
            f"| RMSE where both match ({score['n_matched_both']}), {name} | {old:.4f} | {new:.4f} | "
            f"{100 * (score['rmse_ratio'] - 1):+.1f} % [{100 * (low - 1):+.1f}, {100 * (high - 1):+.1f}] |"
        )
    old, new = results["volume_error"]
    lines.append(
        f"| error of the volume, mean of ln(V/V₀), of all that match % | {100 * old:.2f} | {100 * new:.2f} | "
        f"{100 * (new / old - 1) if old else math.nan:+.1f} % |"
    )
    for name, (old, new) in (("valid by the default rules", results["valid"]), ("good bonds", results["good_bonds"])):
        lines.append(f"| {name} % | {100 * old:.2f} | {100 * new:.2f} | {100 * (new - old):+.2f} |")
    cost, drawing = results["refine_cpu_ms"], results["sample_cpu_ms"]
    lines += [
        "",
        f"Refined {results['n_refined']}, of these kept as drawn {results['n_kept_as_drawn']}; the space group as "
        f"drawn in {100 * results['kept_group']:.2f} % of what was taken. {cost:.1f} ms CPU a sample, checks included; "
        f"the language model took {drawing:.1f} ({cost / drawing if drawing else math.nan:.1f} ×).",
    ]
    return "\n".join(lines) + "\n"
