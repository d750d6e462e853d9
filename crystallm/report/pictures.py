"""Figures of an evaluation. Each function returns a matplotlib Figure; none touches pyplot's global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crystallm.metrics.evaluate import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GENERATED, REFERENCE = "#0072b2", "#e69f00"  # told apart by colour-blind readers and in print
LABELS = {
    "density_g_per_cm3": "density (g/cm³)",
    "volume_per_atom_ang3": "volume per atom (Å³)",
    "n_elements": "number of elements",
}


def rates_figure(evaluation: Evaluation) -> Figure:
    """Share of records that pass each check; checks that only report are hatched."""
    figure = _figure(7, 0.5 * len(evaluation.generated.rates) + 1.4)
    axes = figure.add_subplot()
    names = list(evaluation.generated.rates)
    sets = [("generated", GENERATED, evaluation.generated)]
    if evaluation.reference:
        sets.append(("reference", REFERENCE, evaluation.reference))
    height = 0.8 / len(sets)
    for k, (label, color, result) in enumerate(sets):
        places = np.arange(len(names)) + (k - (len(sets) - 1) / 2) * height
        values = [100 * result.rates[name] for name in names]
        hatches = ["//" if name in evaluation.reporting else "" for name in names]
        bars = axes.barh(
            places, values, height, color=color, label=f"{label} ({result.counts.n_read:,})", hatch=hatches
        )
        axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=2, fontsize=8)
    axes.set_yticks(range(len(names)), [f"{n}\n(reported)" if n in evaluation.reporting else n for n in names])
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("records that pass (%)")
    axes.set_title(f"Checks, rules '{evaluation.rules}'")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def histogram_figure(evaluation: Evaluation, feature: str) -> Figure:
    """Valid generated crystals against the reference's parsed ones, each as shares of its own set."""
    figure = _figure(6, 4)
    axes = figure.add_subplot()
    sets = [("generated", GENERATED, evaluation.generated.feature(feature, valid_only=True))]
    if evaluation.reference:
        sets.append(("reference", REFERENCE, evaluation.reference.feature(feature, valid_only=False)))
    everything = np.concatenate([values for _, _, values in sets])
    if len(everything):
        edges = _edges(everything, whole_numbers=feature == "n_elements")
        for label, color, values in sets:
            if len(values):
                weights = np.full(len(values), 100 / len(values))
                inside = np.clip(values, edges[0], edges[-1])  # the last bin holds the tail as well
                axes.hist(
                    inside, edges.tolist(), weights=weights, color=color, alpha=0.55, label=f"{label} ({len(values):,})"
                )
        axes.legend()
    distance = (evaluation.distances or {}).get(feature)
    if distance is not None:
        axes.set_title(f"Wasserstein distance {distance:.3g}")
    axes.set_xlabel(LABELS[feature])
    axes.set_ylabel("crystals (%)")
    return figure


def _edges(values: np.ndarray, whole_numbers: bool) -> np.ndarray:
    if whole_numbers:
        return np.arange(values.min(), values.max() + 2) - 0.5
    low, high = values.min(), np.quantile(values, 0.97)
    return np.linspace(low, high if high > low else low + 1, 41)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def picture_paths(folder: str | Path) -> list[Path]:
    """rates.png and one histogram for each feature"""
    return [Path(folder, f"{name}.png") for name in ("rates", *LABELS)]


def save_pictures(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Writes all `picture_paths`, and returns them."""
    figures = [rates_figure(evaluation), *(histogram_figure(evaluation, name) for name in LABELS)]
    paths = picture_paths(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, figure in zip(paths, figures, strict=True):
        figure.savefig(path)
    return paths
