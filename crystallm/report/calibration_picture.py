"""Whether predicted errors are calibrated: the share of true values inside an interval against what it promised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from crystallm.report.explanation_pictures import target_label

PANELS_A_ROW, PANEL_INCHES = 3, 3.4


def draw_calibration(results: Sequence[dict[str, Any]]) -> Figure:
    """A panel for each property of benchmark.properties, a line for each run; on the diagonal errors are as large as
    said, above it smaller."""
    targets = list(dict.fromkeys(name for one in results for name in one["coverage"]))
    columns = min(len(targets), PANELS_A_ROW)
    rows = -(-len(targets) // columns)
    figure = Figure(figsize=(PANEL_INCHES * columns, PANEL_INCHES * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    lines = {}  # by run, for one legend
    for target, axes in zip(targets, panels, strict=False):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for k, one in enumerate(results):
            if target in one["coverage"]:
                style = {"color": f"C{k}", "marker": "o", "markersize": 4}
                (lines[one["run"]],) = axes.plot(one["levels"], one["coverage"][target], **style)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_title(target_label(target), fontsize="medium")
    for axes in panels[len(targets) :]:
        axes.set_axis_off()
    figure.supxlabel("share of values that the interval should hold", fontsize="medium")
    figure.supylabel(f"share of {results[0]['split']} values that it holds", fontsize="medium")
    names = [Path(run).name for run in lines]
    figure.legend(list(lines.values()), names, loc="outside upper center", ncols=3, frameon=False)
    return figure
