"""The data in the axes are what was given: lines, bars, points and texts are read back from the figures."""

from __future__ import annotations

import json
from datetime import datetime

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from crystallm.cif import parse_cif
from crystallm.crystal import Crystal
from crystallm.records import CIFRecord
from crystallm.refine.diffusion import CrystalDiffusionModel
from crystallm.refine.schedule import make_schedule
from crystallm.report.crystal_drawing import element_styles, radial_distribution
from crystallm.report.diffusion_pictures import (
    BATCH_LABELS,
    PICTURES,
    BatchProperties,
    Frame,
    batch_analysis,
    batch_file_name,
    comparison_rows,
    diffusion_schedule_analysis,
    forward_diffusion_process,
    forward_frames,
    from_first_atom,
    laid_on,
    pictures_of_model,
    properties_of,
    recorder,
    reverse_diffusion_process,
    save_figures,
    structure_comparison,
    training_curve,
)

CORNERS = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


def cubic(a: float, frac_coords: list, elements: list[str]) -> Crystal:
    return Crystal.from_parameters((a, a, a, 90, 90, 90), frac_coords, elements)


ALUMINIUM = cubic(4.05, CORNERS, ["Al"] * 4)
IRON = cubic(2.87, [[0, 0, 0], [0.5, 0.5, 0.5]], ["Fe"] * 2)
DIAMOND = cubic(3.567, [*CORNERS, *(np.array(CORNERS) + 0.25).tolist()], ["C"] * 8)


@pytest.fixture(scope="module")
def quartz(root) -> Crystal:
    return parse_cif((root / "tests/cifs/quartz.cif").read_text(encoding="utf-8"))[0]


def line(axes, label: str) -> np.ndarray:
    """(2, n) of the line whose label begins so"""
    [found] = [one for one in axes.lines if str(one.get_label()).startswith(label)]
    return np.array(found.get_data(), dtype=float)


def three_dimensional(figure) -> list:
    return [axes for axes in figure.axes if axes.name == "3d"]


def balls(axes) -> np.ndarray:
    """(n_atoms, 3) Å"""
    return np.concatenate([np.stack(c._offsets3d, axis=1) for c in axes.collections])


# ---------------------------------------------------------------- training and schedule


def test_training_curve_shows_every_step_and_the_best(tmp_path):
    rows = [{"step": s, "kind": "train", "error_per_structure": 2 / s, "cell": 1.0} for s in (1, 2, 3)]
    rows += [
        {"step": s, "kind": "val", "error_per_structure": e, "coordinates": e / 2, "cell": None}
        for s, e in ((2, 0.9), (4, 0.7), (6, 0.8))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    figure = training_curve(tmp_path)
    left, right = figure.axes
    np.testing.assert_allclose(line(left, "training"), [[1, 2, 3], [2, 1, 2 / 3]])
    np.testing.assert_allclose(line(left, "validation"), [[2, 4, 6], [0.9, 0.7, 0.8]])
    np.testing.assert_allclose(line(left, "best: 0.700 at step 4"), [[4], [0.7]])
    np.testing.assert_allclose(line(right, "coordinates"), [[2, 4, 6], [0.45, 0.35, 0.4]])
    assert not [one for one in right.lines if one.get_label() == "cell"]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "nats_per_token": 1}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="no line has 'error_per_structure'"):
        training_curve(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("name", ["geometric", "linear"])
def test_schedule_lines_are_the_schedules(name):
    schedule = make_schedule(name, 50)
    figure = diffusion_schedule_analysis(schedule)
    for axes, what in zip(figure.axes, ("beta", "alpha_bar", "snr", "sigma_ang"), strict=True):
        np.testing.assert_allclose(line(axes, f"{name} (this model)"), [np.arange(1, 51), getattr(schedule, what)])
        np.testing.assert_allclose(line(axes, "cosine")[1], getattr(make_schedule("cosine", 50), what))
        assert len(axes.lines) == 4 and axes.get_xlabel() and axes.get_ylabel()


# ---------------------------------------------------------------- processes


def histograms(figure) -> list[list[np.ndarray]]:
    """Heights of a, b, c for each time step."""
    flat = [axes for axes in figure.axes if axes.name != "3d"]
    return [[patch.get_data().values for patch in axes.patches] for axes in flat]


def test_forward_process_begins_at_the_crystal_and_ends_evenly_spread():
    schedule = make_schedule("geometric", 40)
    figure = forward_diffusion_process(ALUMINIUM, schedule, n_draws=50, seed=1)
    cells, bars = three_dimensional(figure), histograms(figure)
    assert len(cells) == len(bars) == 5
    np.testing.assert_allclose(np.sort(balls(cells[0]), axis=0), np.sort(ALUMINIUM.cart_coords, axis=0), atol=1e-9)
    frames = forward_frames(ALUMINIUM, schedule, 50, 1)
    assert [frame.sigma_ang for frame in frames] == pytest.approx([0, *schedule.sigma_ang[[9, 19, 29, 39]]])
    np.testing.assert_allclose(balls(cells[3]), frames[3].crystals[0].cart_coords)  # one element: one collection
    first = np.zeros(20)
    first[[0, 10]] = 50  # half of the atoms at 0, half at 1/2
    for heights in bars[0]:
        np.testing.assert_allclose(heights, first)
    for heights in bars[4]:
        assert heights.sum() == pytest.approx(100) and heights.max() < 12
    assert "t = 10, σ = 0.07 Å" in cells[1].get_title()
    # the second frame's noise is as wide as it says: 0.075 Å, centred atoms lose a quarter of their variance
    shift = np.concatenate([one.frac_coords - ALUMINIUM.frac_coords for one in frames[1].crystals])
    width = float(np.std((shift - np.rint(shift)) * 4.05))
    assert width == pytest.approx(frames[1].sigma_ang * (3 / 4) ** 0.5, rel=0.1)


def test_reverse_process_shows_the_model_s_own_frames():
    torch.manual_seed(0)
    model = CrystalDiffusionModel(hidden_dim=8, num_layers=1, timesteps=9)
    frames: list[Frame] = []
    drawn = model.sample(3, ALUMINIUM.lattice, ["Al"] * 4, seed=0, keep=recorder(frames))
    assert len(frames) == 10  # before, and after each of nine steps
    assert [frame.sigma_ang for frame in frames] == pytest.approx([*model.schedule.sigma_ang[::-1], 0.0])
    for kept, end in zip(frames[-1].crystals, drawn, strict=True):
        np.testing.assert_array_equal(kept.frac_coords, end.frac_coords)
    figure = reverse_diffusion_process(frames)
    cells, bars = three_dimensional(figure), histograms(figure)
    for axes, k in zip(cells, (0, 2, 4, 7, 9), strict=True):
        np.testing.assert_allclose(balls(axes), frames[k].crystals[0].cart_coords)
        assert axes.get_title().startswith(f"{k} of 9 steps, σ = {frames[k].sigma_ang:.2f} Å")
    for heights, axis in zip(bars[4], range(3), strict=True):
        values = np.concatenate([from_first_atom(one) for one in drawn])[:, axis]
        counts = np.bincount(np.rint(values * 20).astype(int) % 20, minlength=20)  # to the nearest twentieth
        np.testing.assert_allclose(heights, 100 * counts / 9)
    with pytest.raises(ValueError, match="at least two frames, got 1"):
        reverse_diffusion_process(frames[:1])
    # without the listener, the same structures
    again = model.sample(3, ALUMINIUM.lattice, ["Al"] * 4, seed=0)
    np.testing.assert_array_equal(again[1].frac_coords, drawn[1].frac_coords)


def test_one_atom_has_pictures_too():
    polonium = cubic(3.34, [[0, 0, 0]], ["Po"])
    assert len(three_dimensional(forward_diffusion_process(polonium, make_schedule("geometric", 8), n_draws=2))) == 5
    figure = reverse_diffusion_process([Frame(1.0, [polonium]), Frame(0.0, [polonium])])
    assert [heights.sum() for heights in histograms(figure)[1]] == [0, 0, 0]  # nothing but the first atom


# ---------------------------------------------------------------- comparison


@pytest.mark.parametrize(
    "crystal, shells",
    [(ALUMINIUM, [(4.05 / 2**0.5, 12), (4.05, 6)]), (DIAMOND, [(3.567 * 3**0.5 / 4, 4), (3.567 / 2**0.5, 12)])],
    ids=["fcc", "diamond"],
)
def test_radial_distribution_integrates_to_the_neighbours(crystal, shells):
    r, g = radial_distribution(crystal, cutoff_ang=6.0, width_ang=0.05, n_points=6000)
    density = crystal.n_atoms / crystal.volume_ang3
    for distance, neighbours in shells:
        near = np.abs(r - distance) < 0.2
        assert 4 * np.pi * density * np.sum((r**2 * g)[near]) * 0.001 == pytest.approx(neighbours, rel=1e-3)
    assert abs(r[(r * r * g * (r < shells[0][0] + 0.3)).argmax()] - shells[0][0]) < 0.01


def test_comparison_of_a_shifted_and_shuffled_copy(quartz):
    rng = np.random.default_rng(0)
    order = rng.permutation(quartz.n_atoms)
    noise = rng.normal(size=(quartz.n_atoms, 3)) * 0.004
    copy = Crystal(quartz.lattice, (quartz.frac_coords + noise + [0.3, 0.2, 0.6])[order], quartz.atomic_numbers[order])
    numbers, frac = laid_on(quartz, copy)
    np.testing.assert_array_equal(numbers, quartz.atomic_numbers)
    assert np.abs(frac - quartz.frac_coords).max() < 0.02
    figure = structure_comparison(quartz, copy, "a copy")
    real, generated = three_dimensional(figure)
    for axes, crystal in ((real, quartz), (generated, copy)):
        found, wanted = balls(axes), crystal.cart_coords
        np.testing.assert_allclose(found[np.lexsort(found.T)], wanted[np.lexsort(wanted.T)])
        assert to_hex(axes.collections[0].get_facecolor()[0]) == element_styles([quartz])[8][0]
    overlay = next(axes for axes in figure.axes if axes.get_ylabel() == "fraction of b")
    assert overlay.get_title().endswith("laid on the real cell")
    for z, rings, crosses in zip((8, 14), overlay.collections[::2], overlay.collections[1::2], strict=True):
        np.testing.assert_allclose(rings.get_offsets(), quartz.frac_coords[quartz.atomic_numbers == z][:, :2])
        np.testing.assert_allclose(crosses.get_offsets(), frac[numbers == z][:, :2])
    curves = next(axes for axes in figure.axes if axes.get_ylabel() == "radial distribution g(r)")
    np.testing.assert_allclose(line(curves, "real"), radial_distribution(quartz))
    np.testing.assert_allclose(line(curves, "generated"), radial_distribution(copy))
    [table] = [child for axes in figure.axes for child in axes.tables]
    texts = {table[row, 0].get_text().get_text(): table[row, 2].get_text().get_text() for row in range(1, 9)}
    assert texts["match"] == "yes" and texts["formula"] == "SiO2" and texts["density (g/cm³)"] == "2.65"


def test_the_table_s_numbers():
    """Aluminium against a cell 1 % longer: volume ratio 1.030301; and against iron, which is no match."""
    longer = cubic(4.05 * 1.01, CORNERS, ["Al"] * 4)
    rows = {row[0]: row[1:] for row in comparison_rows(ALUMINIUM, longer, 0.01)}
    assert rows["volume (Å³/atom)"] == ("16.61", "17.11", "+0.50")  # 4.05³ / 4 = 16.6075
    assert rows["shortest distance (Å)"] == ("2.86", "2.89", "+0.03")
    assert rows["coordination"] == ("12.00", "12.00", "+0.00")
    assert rows["rms distance (Å)"][1] == "0.026"  # 0.01 * 16.6075^(1/3) = 0.0255
    assert rows["density (g/cm³)"][0] == "2.70"
    figure = structure_comparison(ALUMINIUM, IRON)
    [table] = [child for axes in figure.axes for child in axes.tables]
    assert table[3, 0].get_text().get_text() == "match" and table[3, 2].get_text().get_text() == "no"
    assert any(axes.get_title().endswith("as generated") for axes in figure.axes)


# ---------------------------------------------------------------- batch


def test_properties_of_known_metals():
    for crystal, coordination, shortest in ((ALUMINIUM, 12, 2.864), (IRON, 8, 2.4855), (DIAMOND, 4, 1.5446)):
        found = properties_of(crystal)
        assert found["coordination"] == coordination
        assert found["min_distance_ang"] == pytest.approx(shortest, abs=1e-3)
    assert properties_of(IRON)["density_g_per_cm3"] == pytest.approx(2 * 55.845 * 1.66054 / 2.87**3, rel=1e-4)


def test_batch_shows_every_structure_and_the_valid_share():
    close = cubic(4.05, [[0, 0, 0], [0.1, 0, 0]], ["Al"] * 2)  # 0.405 Å apart
    crystals = [ALUMINIUM, IRON, DIAMOND, close]
    batch = BatchProperties.of_crystals(crystals, n_without_crystal=1)
    assert batch.valid.tolist() == [True, True, True, False] and batch.grades[3] == "unphysical"
    figure = batch_analysis(batch, {"model": "tiny", "seed": 3})
    assert figure.get_suptitle() == "Batch of 5 structures: model = tiny, seed = 3"
    for axes, (name, label) in zip(figure.axes, BATCH_LABELS.items(), strict=False):
        valid, invalid = axes.containers
        assert axes.get_xlabel() == label
        assert (sum(b.get_height() for b in valid), sum(b.get_height() for b in invalid)) == (3, 1)
        [bar] = [b for b in invalid if b.get_height()]
        value = batch.values[name][3]
        assert bar.get_x() <= value + 1e-9 and value <= bar.get_x() + bar.get_width() + 1e-9
    share = next(axes for axes in figure.axes if axes.get_title().startswith("Valid"))
    assert share.get_title().startswith("Valid: 3 of 5 (60%)")
    widths = {c.get_label(): c[0].get_width() for c in share.containers}
    assert sum(widths.values()) == 5 and widths["no crystal: 1"] == 1 and widths["unphysical: 1"] == 1
    titles = [axes.get_title() for axes in three_dimensional(figure)]
    assert [title.split(":")[0] for title in titles] == ["least dense", "middle", "densest"]
    assert [title.split("\n")[0].split(": ")[1] for title in titles] == ["Al", "C", "Fe"]  # 2.7, 3.5, 7.9 g/cm³


def test_a_crystal_without_a_coordination_number_is_named():
    batch = BatchProperties.of_crystals([ALUMINIUM, IRON, DIAMOND])
    batch.values["coordination"][1] = np.nan
    axes = batch_analysis(batch).axes[2]
    assert axes.get_xlabel() == "mean coordination number, 1 without"
    assert sum(bar.get_height() for bar in axes.containers[0]) == 2


def test_correlations_are_pearson_s():
    rng = np.random.default_rng(0)
    crystals = [cubic(float(a), CORNERS, ["Al"] * 4) for a in rng.uniform(3.9, 4.3, 6)]
    crystals += [Crystal(np.eye(3) * 5, rng.random((3, 3)), np.array([11, 17, 8])) for _ in range(4)]
    batch = BatchProperties.of_crystals(crystals)
    wanted = np.corrcoef(np.stack([batch.values[name] for name in BATCH_LABELS]))
    np.testing.assert_allclose(batch.correlations(), wanted)
    panel = next(axes for axes in batch_analysis(batch).axes if axes.get_title().startswith("Correlations"))
    np.testing.assert_allclose(panel.images[0].get_array(), wanted)
    same = BatchProperties.of_crystals([ALUMINIUM] * 4)
    assert np.isnan(same.correlations()).all()
    assert [axes.get_title().split(":")[0] for axes in three_dimensional(batch_analysis(same))] == ["example"] * 3


def test_records_are_all_counted(root):
    text = (root / "tests/cifs/NaCl.cif").read_text(encoding="utf-8")
    records = [CIFRecord("a", text), CIFRecord("b", text, rejected_by="bonds"), CIFRecord("c", "data_")]
    batch = BatchProperties.of_records(records)
    assert (len(batch.crystals), batch.valid.tolist(), batch.n_records) == (2, [True, False], 3)
    assert "Valid: 1 of 3 (33%)" in "".join(axes.get_title() for axes in batch_analysis(batch).axes)
    unchecked = CIFRecord("d", (root / "tests/cifs/failing/distance.cif").read_text(encoding="utf-8"))  # H-H 0.40 Å
    assert BatchProperties.of_records([*records, unchecked]).valid.tolist() == [True, False, False]
    nothing = BatchProperties.of_records(records[2:])
    assert "Valid: 0 of 1 (0%)" in "".join(axes.get_title() for axes in batch_analysis(nothing).axes)
    with pytest.raises(ValueError, match="at least one structure"):
        batch_analysis(BatchProperties.of_records([]))


# ---------------------------------------------------------------- files


def test_pictures_of_a_model_by_their_file_names(tmp_path):
    torch.manual_seed(0)
    model = CrystalDiffusionModel(hidden_dim=8, num_layers=1, timesteps=4)
    figures, generated = pictures_of_model(model, IRON, n_structures=2, seed=0)
    assert len(generated) == 2 and generated[0].reduced_formula == "Fe"
    assert list(figures) == [
        "diffusion_schedule_analysis",
        "forward_diffusion_process",
        "reverse_diffusion_process",
        "structure_comparison",
    ]
    assert (*figures, "training_curve") == PICTURES
    paths = save_figures(dict(list(figures.items())[-1:]), tmp_path / "deep/pictures")  # seconds for each
    assert [path.name for path in paths] == ["structure_comparison.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert batch_file_name(datetime(2025, 3, 9, 14, 5, 7)) == "batch_analysis_20250309_140507"
