"""Tables and figures show the numbers that an evaluation holds."""

from __future__ import annotations

import pytest

from crystallm.metrics.evaluate import EvaluateConfig, evaluate_records
from crystallm.records import CIFRecord
from crystallm.report.pictures import LABELS, histogram_figure, rates_figure, save_pictures
from crystallm.report.tables import evaluation_table, percent
from crystallm.text_table import text_table


@pytest.fixture(scope="module")
def evaluation(root):
    def records(*names: str) -> list[CIFRecord]:
        return [CIFRecord(name, (root / f"tests/cifs/{name}.cif").read_text(encoding="utf-8")) for name in names]

    generated = records("NaCl", "rutile", "failing/distance", "Po")
    return evaluate_records(generated, records("Si", "rutile"), EvaluateConfig(("-",), workers=0))


def test_text_table():
    table = text_table(("name", "n"), [("a", 1), ("longer", 20), ("none", None), ("real", 0.123456)])
    assert table.splitlines() == [
        "name         n",
        "------  ------",
        "a            1",
        "longer      20",
        "none",
        "real    0.1235",
    ]


def test_percent():
    assert [percent(x) for x in (1.0, 0.9949, None)] == ["100.0%", "99.5%", ""]


def test_the_table_names_rates_causes_and_shares(evaluation):
    table = evaluation_table(evaluation)
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert "3 of 4 valid by the rules 'default' (75.0%)" in lines
    assert "distance 75.0% 100.0%" in lines
    assert "bonds (reported) 100.0% 100.0%" in lines
    assert "1 distance: H-H 0.40 Å apart, at least 0.50 Å wanted (failing/distance)" in lines
    assert "novel among the valid: 2 of 3 (66.7%)" in lines
    assert "valid, unique and novel among all: 2 of 4 (50.0%)" in lines


def test_the_bars_are_the_rates(evaluation):
    axes = rates_figure(evaluation).axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    generated, reference = evaluation.generated.rates, evaluation.reference.rates
    assert widths == pytest.approx([100 * rate for rate in (*generated.values(), *reference.values())])
    assert [label.get_text().split("\n")[0] for label in axes.get_yticklabels()] == list(generated)


@pytest.mark.parametrize("feature", LABELS)
def test_histograms_show_every_crystal(evaluation, feature):
    figure = histogram_figure(evaluation, feature)
    axes = figure.axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    assert sum(heights) == pytest.approx(200)  # two sets of 100 %
    assert axes.get_xlabel() == LABELS[feature]
    assert "Wasserstein distance" in axes.get_title()


def test_pictures_are_written_without_a_reference_and_without_a_valid_crystal(tmp_path):
    evaluation = evaluate_records([CIFRecord("x", "data_")], None, EvaluateConfig(("-",), workers=0))
    paths = save_pictures(evaluation, tmp_path / "deep/pictures")
    assert sorted(path.name for path in paths) == sorted(f"{name}.png" for name in ("rates", *LABELS))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert "0 of 1 valid" in evaluation_table(evaluation)
