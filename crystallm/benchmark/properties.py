"""How well trained predictors do on the test rows of their runs: errors by branch, their calibration, and speed.

Labels can belong to an older relaxation of a structure than the one at hand. Where tables with the structures as they
were labelled are given (`volumes`), the rows whose volume per atom agrees are scored besides: what is left between the
two is the floor that the labels set, not the model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from crystallm.config import from_dict
from crystallm.properties.calibration import LEVELS, coverage
from crystallm.properties.prediction import Predictor
from crystallm.properties.samples import SampleSet
from crystallm.properties.tables import PropertyDataConfig, property_samples, sample_splits

AGREES = 0.02  # relative difference of volumes per atom


@dataclass(frozen=True)
class PropertyBenchmarkConfig:
    run: str  # folder of a training run, or a checkpoint
    split: str = "test"
    volumes: tuple[str, ...] = ()  # tables with material_id, volume, n_sites of the structures as they were labelled
    path: tuple[str, ...] | None = None  # where the run's tables are now
    device: str = "cpu"


def benchmark_properties(config: PropertyBenchmarkConfig) -> dict[str, Any]:
    """Mean absolute errors. Raises ValueError where the split has no row."""
    predictor = Predictor.load(config.run, config.device)
    data = from_dict(PropertyDataConfig, predictor.info["run"]["data"])
    data = data if config.path is None else replace(data, path=config.path)
    samples, _ = property_samples(data, predictor.texts)
    places = np.flatnonzero(sample_splits(samples, data) == config.split)
    places = places[samples.n_atoms[places] <= predictor.most_atoms]
    if not len(places):
        raise ValueError(f"{config.run}: no row of the split {config.split!r}")
    part = samples.some(places)
    agree = volumes_agree(part, config.volumes)
    labels = part.labels(predictor.targets)
    wall, cpu = time.perf_counter(), time.process_time()
    usual = predictor.predict(part)
    seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    branches = {}
    for branch in predictor.model.branches:
        found = predictor.predict(part, branch=branch)
        branches[branch] = {
            name: _errors(found.values[:, k], found.errors[:, k], labels[:, k], agree)
            for k, name in enumerate(predictor.targets)
        }
    fused = predictor.model.branches[0]
    return {
        "run": str(config.run),
        "split": config.split,
        "model_hash": predictor.info["model_hash"][:12],
        "n_train": predictor.info["data"]["train"] if data.max_train is None else data.max_train,
        "n_test": len(part),
        "n_agree": int(agree.sum()),
        "minutes": predictor.info.get("training", {}).get("elapsed_s", float("nan")) / 60,
        "structures_per_s": {"wall": len(part) / seconds["wall_s"], "cpu": len(part) / seconds["cpu_s"]},
        "branches": branches,
        "answering": fused,
        "coverage": {
            name: coverage(*_known(usual.values[:, k], usual.errors[:, k], labels[:, k])).tolist()
            for k, name in enumerate(predictor.targets)
        },
        "levels": list(LEVELS),
        "spread": {name: float(np.nanstd(labels[:, k])) for k, name in enumerate(predictor.targets)},
    }


def _known(values: np.ndarray, widths: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = np.isfinite(labels)
    return np.abs(values - labels)[known], widths[known]


def _errors(values: np.ndarray, widths: np.ndarray, labels: np.ndarray, agree: np.ndarray) -> dict[str, float]:
    known = np.isfinite(labels)
    errors = np.abs(values - labels)
    both = known & agree
    return {
        "mae": float(errors[known].mean()),
        "mae_agree": float(errors[both].mean()) if both.any() else float("nan"),
        "median": float(np.median(errors[known])),
        "expected": float(widths[known].mean()),
        "n": int(known.sum()),
        "n_agree": int(both.sum()),
    }


def volumes_agree(samples: SampleSet, tables: Sequence[str]) -> np.ndarray:
    """(n,) bool: the volume per atom is known to be that of the structure that was labelled, within 2 %"""
    known: dict[str, float] = {}
    for table in tables:
        columns = pq.read_table(table, columns=["material_id", "volume", "n_sites"]).to_pydict()
        rows = zip(columns["material_id"], columns["volume"], columns["n_sites"], strict=True)
        known |= {name: volume / n for name, volume, n in rows}
    own = np.abs(np.linalg.det(samples.lattices)) / samples.n_atoms
    then = np.array([known.get(name, np.nan) for name in samples.ids])
    return np.abs(own / then - 1) <= AGREES


def property_table(results: Sequence[dict[str, Any]]) -> str:
    """One row a run, branch and target."""
    lines = [
        "| run | train rows | CPU min | branch | property | MAE | rows whose volume agrees | expected error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        for branch, targets in one["branches"].items():
            for name, errors in targets.items():
                agree = f"{errors['mae_agree']:.4f} ({errors['n_agree']:,})" if errors["n_agree"] else "–"
                lines.append(
                    f"| {Path(one['run']).name} | {one['n_train']:,} | {one['minutes']:.0f} | {branch} | {name} "
                    f"| {errors['mae']:.4f} ({errors['n']:,}) | {agree} "
                    f"| {errors['expected']:.4f} |"
                )
    speeds = [f"{Path(one['run']).name} {one['structures_per_s']['cpu']:.0f}" for one in results]
    lines += ["", f"Structures a CPU-second, texts at hand: {', '.join(speeds)}"]
    return "\n".join(lines)
