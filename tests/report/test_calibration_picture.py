"""The picture of calibration: what stands in which panel."""

from __future__ import annotations

from typing import Any

import pytest

from crystallm.report.calibration_picture import draw_calibration

LEVELS = [0.2, 0.5, 0.9]


def result(run: str, **coverage: list[float]) -> dict[str, Any]:
    return {"run": run, "split": "test", "levels": LEVELS, "coverage": coverage}


def test_a_panel_for_each_property_and_a_line_for_each_run() -> None:
    first = result("runs/first", band_gap_ev=[0.3, 0.6, 0.9], bulk_modulus_gpa=[0.2, 0.4, 0.8])
    second = result("runs/second", band_gap_ev=[0.1, 0.5, 0.9])
    figure = draw_calibration([first, second])
    gap, modulus = figure.axes
    assert [axes.get_title() for axes in (gap, modulus)] == ["band gap (eV)", "bulk modulus (GPa)"]
    drawn = [list(line.get_ydata()) for line in gap.lines[1:]]  # after the diagonal
    assert drawn == [[0.3, 0.6, 0.9], [0.1, 0.5, 0.9]] and len(modulus.lines) == 2
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["first", "second"]


@pytest.mark.parametrize(("n_targets", "n_panels"), [(1, 1), (3, 3), (4, 6)])
def test_panels_without_a_property_stay_empty(n_targets: int, n_panels: int) -> None:
    figure = draw_calibration([result("runs/first", **{f"gap{k}_ev": LEVELS for k in range(n_targets)})])
    assert len(figure.axes) == n_panels
    assert sum(axes.axison for axes in figure.axes) == n_targets
