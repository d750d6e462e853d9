"""Picture of a steering benchmark: values obtained against values asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystallm.report.pictures import GENERATED, REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "density_g_per_cm3": "density (g/cm³)",
    "volume_per_atom_ang3": "volume per atom (Å³)",
    "band_gap_ev": "band gap (eV)",
    "formation_energy_ev_per_atom": "formation energy (eV/atom)",
    "e_above_hull_ev_per_atom": "energy above the hull (eV/atom)",
}


def steering_figure(results: dict[str, Any]) -> Figure:
    """`results` of benchmark.steering: on the left the free compositions, on the right the fixed systems."""
    from matplotlib.figure import Figure

    free, fixed = results["free"], results["fixed"]
    n_panels = bool(free) + bool(fixed)
    figure = Figure(figsize=(5.5 * n_panels, 4.4), layout="constrained", dpi=150)
    panels = figure.subplots(1, n_panels, squeeze=False)[0].tolist()
    if free:
        _draw_free(panels.pop(0), free, LABELS[results["property"]])
    if fixed:
        _draw_fixed(panels.pop(0), fixed, LABELS[results["property"]])
    return figure


def _draw_free(axes: Axes, free: dict[str, Any], label: str) -> None:
    values = [one for one in free["values"] if one["obtained"]]
    asked = [one["asked"] for one in values]
    step = float(np.diff(sorted(asked)).min()) if len(asked) > 1 else 1.0
    boxes = axes.boxplot(
        [one["obtained"] for one in values],
        positions=asked,
        widths=0.6 * step,
        manage_ticks=False,
        patch_artist=True,
        flierprops={"markersize": 2},
    )
    for box in boxes["boxes"]:
        box.set(facecolor=GENERATED, alpha=0.5)
    if asked:
        axes.plot([min(asked), max(asked)], [min(asked), max(asked)], color="black", lw=1, label="asked = obtained")
    low, high = free["unasked"]["quartiles"]
    if low is not None:
        axes.axhspan(low, high, color=REFERENCE, alpha=0.25, label="middle half, unasked")
    axes.set_xlabel(f"asked: {label}")
    axes.set_ylabel(f"obtained: {label}")
    if free["correlation"] is not None:
        axes.set_title(f"free composition, correlation {free['correlation']:.2f}")
    axes.legend(fontsize=8)


def _draw_fixed(axes: Axes, fixed: list[dict[str, Any]], label: str) -> None:
    places = np.arange(len(fixed))
    for shift, name, color, text in (
        (-0.2, "error", GENERATED, "asked for"),
        (0.2, "unasked_error", REFERENCE, "unasked, to the same values"),
    ):
        heights = [one[name] or 0.0 for one in fixed]
        axes.barh(places + shift, heights, 0.4, color=color, label=text)
    axes.set_yticks(places, [one["prompt"] for one in fixed])
    axes.invert_yaxis()
    axes.set_xlabel(f"mean error: {label}")
    axes.set_title("fixed composition")
    axes.legend(fontsize=8)


def save_steering(results: dict[str, Any], path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    steering_figure(results).savefig(path)
    return path
