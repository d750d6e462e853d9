"""Whether predicted errors are calibrated: the share of true values inside an interval against what it promised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def draw_calibration(results: Sequence[dict[str, Any]]) -> Figure:
    """One line for each run and property of benchmark.properties; on the diagonal errors are as large as said."""
    figure = Figure(figsize=(5.2, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="calibrated")
    for one in results:
        for name, shares in one["coverage"].items():
            label = name if len(results) == 1 else f"{Path(one['run']).name}: {name}"
            axes.plot(one["levels"], shares, marker="o", markersize=4, label=label)
    axes.set(
        xlabel="share of values that the interval should hold",
        ylabel=f"share of {results[0]['split']} values that it holds",
        xlim=(0, 1),
        ylim=(0, 1),
        aspect="equal",
    )
    axes.legend(loc="upper left", frameon=False)
    return figure
