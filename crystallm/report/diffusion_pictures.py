"""Pictures of diffusion: training, schedule, noise coming and going, one structure against the real one, a batch.

Each function returns a matplotlib Figure; none touches pyplot's global state. `pictures_of_model` makes those that a
trained model gives, by the names of their files.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from crystallm.checks.bonds import BondError, crystal_nn
from crystallm.cif import CIFError, parse_cif
from crystallm.crystal import Crystal, Floats
from crystallm.geometry import shortest_distance
from crystallm.matching import PUBLISHED, reduce_crystal, rms_of_reduced
from crystallm.records import CIFRecord
from crystallm.refine.batch import CrystalBatch, make_batch
from crystallm.refine.diffusion import CrystalDiffusionModel, Keep, add_noise, draw_noise
from crystallm.refine.physics import Grade, PhysicsValidator
from crystallm.refine.schedule import SIGMA_MAX_ANG, SIGMA_MIN_ANG, Schedule, ScheduleName, make_schedule
from crystallm.report.crystal_drawing import draw_crystal, element_legend, element_styles, radial_distribution
from crystallm.report.pictures import GENERATED, LABELS, REFERENCE
from crystallm.train.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_FRAMES = 5
GRAY = "#888888"
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
AXES_COLORS = {"a": "#0072b2", "b": "#d55e00", "c": "#009e73"}
PARTS = {  # of CrystalDiffusionModel.loss_names
    "coordinates": ("coordinates, all noise", "#000000"),
    "coordinates_below_0.1": ("noise below 0.1 Å", "#56b4e9"),
    "coordinates_below_0.5": ("noise of 0.1-0.5 Å", "#0072b2"),
    "coordinates_above": ("noise above 0.5 Å", "#009e73"),
    "cell": ("cell", "#d55e00"),
}
GRADE_COLORS = {"excellent": "#0072b2", "good": "#56b4e9", "suspicious": "#e69f00", "unphysical": "#d55e00"}
BATCH_LABELS = {
    "density_g_per_cm3": LABELS["density_g_per_cm3"],
    "volume_per_atom_ang3": LABELS["volume_per_atom_ang3"],
    "coordination": "mean coordination number",
    "min_distance_ang": "minimum distance (Å)",
}
MAX_ALIGNED_ATOMS = 100  # pymatgen tries every translation of every cell


# ---------------------------------------------------------------- training and schedule


def training_curve(metrics: str | Path) -> Figure:
    """From a run's metrics.jsonl (or its folder): the loss, and its parts at low, middle and high noise.

    Raises ValueError for a file without a diffusion model's loss.
    """
    path = Path(metrics) / "metrics.jsonl" if Path(metrics).is_dir() else Path(metrics)
    name = CrystalDiffusionModel.loss_names[0]
    rows = [row for row in read_metrics(path) if row.get(name) is not None]
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("train", "val")}
    if not rows:
        raise ValueError(f"{path}: no line has {name!r}; wanted the metrics.jsonl of a diffusion model's run")
    figure = _figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    for kind, label, color, look in (
        ("train", "training, a batch", REFERENCE, {"linewidth": 0.7}),
        ("val", "validation", GENERATED, {"marker": "o", "markersize": 3}),
    ):
        if kinds[kind]:
            left.plot(*_points(kinds[kind], name), color=color, label=label, **look)
    if kinds["val"]:
        best = min(kinds["val"], key=lambda row: row[name])
        label = f"best: {best[name]:.3f} at step {best['step']:,}"
        left.plot([best["step"]], [best[name]], marker="*", markersize=13, color="black", linestyle="", label=label)
    left.set(xlabel="step", ylabel="loss of a structure (squared error of unit noise)", title="Loss")
    shown = kinds["val"] or kinds["train"]
    for style, (part, (label, color)) in zip(STYLES, PARTS.items(), strict=True):
        steps, values = _points([row for row in shown if row.get(part) is not None], part)
        if steps:
            right.plot(steps, values, color=color, linestyle=style, marker=".", label=label)
    right.axhline(1.0, color=GRAY, linewidth=0.8, linestyle=":", label="an answer that knows nothing")
    right.set(xlabel="step", ylabel="squared error of unit noise")
    right.set_title(f"Parts of the {'validation' if kinds['val'] else 'training'} loss")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.legend(fontsize=8)
    return figure


def _points(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    return [row["step"] for row in rows], [row[name] for row in rows]


def diffusion_schedule_analysis(
    schedule: Schedule, limits_ang: tuple[float, float] = (SIGMA_MIN_ANG, SIGMA_MAX_ANG)
) -> Figure:
    """β_t, ᾱ_t, signal-to-noise ratio and width over the time steps; the other schedules by name stand beside it.

    `limits_ang`: the widths that each schedule goes from and to.
    """
    timesteps = len(schedule.sigma_ang)
    names = [name for name in get_args(ScheduleName) if name != schedule.name]
    others = [make_schedule(name, timesteps, *limits_ang) for name in names]
    figure = _figure(10, 7)
    time = np.arange(1, timesteps + 1)
    panels = (
        ("beta", "β, variance added in a step", "linear"),
        ("alpha_bar", "ᾱ, share of the signal left", "linear"),
        ("snr", "signal-to-noise ratio (1 Å / σ)²", "log"),
        ("sigma_ang", "σ, width of the noise (Å)", "log"),
    )
    for axes, (name, label, scale) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        axes.plot(time, getattr(schedule, name), color=GENERATED, linewidth=2.5, label=f"{schedule.name} (this model)")
        for style, color, other in zip(STYLES[1:], ("#e69f00", "#009e73", "#cc79a7"), others, strict=False):
            axes.plot(time, getattr(other, name), color=color, linewidth=1, linestyle=style, label=other.name)
        axes.set(xlabel="time step t", ylabel=label, yscale=scale)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    low, high = limits_ang
    figure.suptitle(f"Noise schedule: {schedule.name}, {timesteps} steps, σ from {low:g} to {high:g} Å")
    return figure


# ---------------------------------------------------------------- noise coming and going


@dataclass(frozen=True, eq=False)
class Frame:
    """Crystals at one level of noise."""

    sigma_ang: float
    crystals: list[Crystal]


def recorder(frames: list[Frame]) -> Keep:
    """For `model.sample(..., keep=recorder(frames))` or `denoise`: each noise level becomes a frame."""

    def keep(batch: CrystalBatch, sigma_ang: float) -> None:
        frames.append(Frame(sigma_ang, batch.crystals()))

    return keep


def forward_frames(crystal: Crystal, schedule: Schedule, n_draws: int = 100, seed: int = 0) -> list[Frame]:
    """The crystal at five time steps, 0 to the last, `n_draws` times each with noise of its own; cell kept."""
    generator, frames = torch.Generator().manual_seed(seed), []
    for step in np.linspace(0, len(schedule.sigma_ang), N_FRAMES).round().astype(int).tolist():
        batch = make_batch([crystal] * n_draws)
        sigma = float(schedule.sigma_ang[step - 1]) if step else 0.0
        widths = torch.full((n_draws,), sigma)
        noisy = add_noise(batch, draw_noise(batch, generator), widths, torch.zeros(n_draws, dtype=torch.bool))
        frames.append(Frame(sigma, noisy.crystals() if step else [crystal] * n_draws))
    return frames


def forward_diffusion_process(crystal: Crystal, schedule: Schedule, n_draws: int = 100, seed: int = 0) -> Figure:
    """Five time steps from the crystal to noise: one draw as a cell, the coordinates of all draws as histograms."""
    frames = forward_frames(crystal, schedule, n_draws, seed)
    steps = np.linspace(0, len(schedule.sigma_ang), N_FRAMES).round().astype(int).tolist()
    title = f"Forward diffusion of {crystal.reduced_formula}: noise is added ({schedule.name} schedule)"
    figure, lower = _process_figure(frames, [f"t = {step}" for step in steps], title)
    for axes, frame in zip(lower, frames, strict=True):
        _coordinate_histogram(axes, np.concatenate([one.frac_coords for one in frame.crystals]))
    lower[0].set_ylabel(f"atoms of {n_draws} draws (%)")
    lower[2].set_xlabel("fractional coordinate")
    element_legend(figure, element_styles([crystal]), lower[0].get_legend_handles_labels()[0])
    return figure


def reverse_diffusion_process(frames: Sequence[Frame]) -> Figure:
    """Five of the frames, from noise to the end: the first crystal as a cell, and coordinates of all as histograms.

    Origins are arbitrary, each crystal has its own; so coordinates count from its first atom, which is left out.
    """
    if len(frames) < 2:
        raise ValueError(f"a process has at least two frames, got {len(frames)}")
    chosen = np.linspace(0, len(frames) - 1, min(N_FRAMES, len(frames))).round().astype(int).tolist()
    shown = [frames[k] for k in chosen]
    n = len(shown[0].crystals)
    title = f"Reverse diffusion to {shown[-1].crystals[0].reduced_formula}: noise is taken away"
    figure, lower = _process_figure(shown, [f"{k} of {len(frames) - 1} steps" for k in chosen], title)
    for axes, frame in zip(lower, shown, strict=True):
        _coordinate_histogram(axes, np.concatenate([from_first_atom(one) for one in frame.crystals]))
    lower[0].set_ylabel(f"atoms of {n} structure{'s' * (n > 1)} (%)")
    lower[len(lower) // 2].set_xlabel("fractional coordinate, counted from the structure's first atom")
    element_legend(figure, element_styles(shown[0].crystals[:1]), lower[0].get_legend_handles_labels()[0])
    return figure


def from_first_atom(crystal: Crystal) -> Floats:
    """(n_atoms - 1, 3) in [0, 1)"""
    shift: Floats = (crystal.frac_coords[1:] - crystal.frac_coords[0]) % 1.0
    return shift


def _process_figure(frames: Sequence[Frame], names: Sequence[str], title: str) -> tuple[Figure, list[Any]]:
    figure = _figure(3.0 * len(frames), 6.2)
    figure.set_layout_engine("constrained", rect=(0, 0, 0.985, 1))  # room for the last z label
    styles = element_styles([frames[0].crystals[0]])
    grid = figure.add_gridspec(2, len(frames), height_ratios=(1.25, 1))
    lower: list[Any] = []
    for k, (frame, name) in enumerate(zip(frames, names, strict=True)):
        crystal = frame.crystals[0]
        axes = figure.add_subplot(grid[0, k], projection="3d")
        draw_crystal(axes, crystal, styles, size=0.6, zoom=0.95)  # the labels need room in small panels
        shortest = shortest_distance(crystal.lattice, crystal.frac_coords)
        axes.set_title(f"{name}, σ = {frame.sigma_ang:.2f} Å\nshortest distance {shortest:.2f} Å", fontsize=9)
        lower.append(figure.add_subplot(grid[1, k], sharey=lower[0] if lower else None))
    figure.suptitle(title)
    return figure, lower


def _coordinate_histogram(axes: Any, frac_coords: Floats, n_bins: int = 20) -> None:
    """Bins are centred on 0, 1/20, …, so that noise on both sides of 0 falls into one."""
    edges = (np.arange(n_bins + 1) - 0.5) / n_bins
    for style, (axis, color), values in zip(STYLES, AXES_COLORS.items(), frac_coords.T, strict=False):
        wrapped = np.where(values >= edges[-1], values - 1, values)
        counts = np.histogram(wrapped, edges)[0]
        axes.stairs(
            100 * counts / max(1, len(values)),
            edges,
            color=color,
            linestyle=style,
            linewidth=1.4,
            label=f"along {axis}",
        )
    axes.axhline(100 / n_bins, color=GRAY, linewidth=0.8, linestyle=":", label="evenly spread")
    axes.set_xlim(edges[0], edges[-1])


# ---------------------------------------------------------------- one structure against the real one


def structure_comparison(real: Crystal, generated: Crystal, settings: str = "") -> Figure:
    """Cells, overlay in fractional coordinates, radial distribution functions, and a table of metrics.

    `match` is that of crystallm.matching, of primitive cells: where noise beyond 0.25 Å hides that a cell is not
    primitive, there is none. The overlay compares the cells as they are: where pymatgen's StructureMatcher finds a way,
    the generated one is laid on the real one's cell and origin, and else it stands as generated; its title says which.
    """
    styles = element_styles([real, generated])
    figure = _figure(13, 8)
    grid = figure.add_gridspec(2, 3, height_ratios=(1.15, 1), width_ratios=(1, 1, 1.25))
    for k, (name, crystal) in enumerate((("real", real), ("generated", generated))):
        axes = figure.add_subplot(grid[0, k], projection="3d")
        draw_crystal(axes, crystal, styles)
        axes.set_title(f"{name}: {crystal.reduced_formula}")
    rms = rms_of_reduced(reduce_crystal(generated), reduce_crystal(real))
    laid = laid_on(real, generated)
    numbers, frac = (generated.atomic_numbers, generated.frac_coords) if laid is None else laid
    for k, other in enumerate((1, 2)):
        axes = figure.add_subplot(grid[1, k])
        for place, (z, (color, _)) in enumerate(styles.items()):
            ring = 90 * (1 + place % 5)  # points²: rings in one another where atoms of two elements fall together
            first, second = real.frac_coords[real.atomic_numbers == z], frac[numbers == z]
            axes.scatter(
                first[:, 0], first[:, other], s=ring, facecolors="none", edgecolors=color, marker="o", linewidths=1.8
            )
            axes.scatter(second[:, 0], second[:, other], s=ring / 3, color=color, marker="x", linewidths=1.8)
        axes.set(xlabel="fraction of a", ylabel=f"fraction of {'abc'[other]}", xlim=(-0.12, 1.12), ylim=(-0.12, 1.12))
        axes.set_aspect("equal")
        axes.set_title("○ real, × generated" + (", laid on the real cell" if laid else ", as generated"), fontsize=10)
    axes = figure.add_subplot(grid[1, 2])
    for crystal, name, color, style in ((real, "real", REFERENCE, "-"), (generated, "generated", GENERATED, "--")):
        axes.plot(*radial_distribution(crystal), color=color, linestyle=style, label=name)
    axes.set(xlabel="distance r (Å)", ylabel="radial distribution g(r)", title="Radial distribution function")
    axes.legend(ncols=2, loc="upper right")
    axes.set_ylim(0, 1.18 * axes.get_ylim()[1])  # room for the legend
    _table(figure.add_subplot(grid[0, 2]), comparison_rows(real, generated, rms))
    element_legend(figure, styles)
    figure.suptitle(f"Structure comparison{': ' + settings if settings else ''}")
    return figure


def comparison_rows(real: Crystal, generated: Crystal, rms: float) -> list[tuple[str, str, str, str]]:
    """Name, real, generated, difference. `rms` as of crystallm.matching, nan where the two do not match."""
    matched = math.isfinite(rms)
    scale = (real.volume_ang3 / real.n_atoms) ** (1 / 3)  # Å
    rows = [
        ("formula", real.reduced_formula, generated.reduced_formula, ""),
        ("atoms in the cell", str(real.n_atoms), str(generated.n_atoms), f"{generated.n_atoms - real.n_atoms:+d}"),
        ("match", "", "yes" if matched else "no", ""),
        ("rms / (V/n)^(1/3)", "", f"{rms:.4f}" if matched else "–", ""),
        ("rms distance (Å)", "", f"{rms * scale:.3f}" if matched else "–", ""),
    ]
    first, second = properties_of(real), properties_of(generated)
    for label, name in (
        ("volume (Å³/atom)", "volume_per_atom_ang3"),
        ("density (g/cm³)", "density_g_per_cm3"),
        ("shortest distance (Å)", "min_distance_ang"),
        ("coordination", "coordination"),
    ):
        a, b = first[name], second[name]
        rows.append((label, f"{a:.2f}", f"{b:.2f}", f"{round(b - a, 2) + 0.0:+.2f}"))
    return rows


def laid_on(real: Crystal, generated: Crystal) -> tuple[np.ndarray, Floats] | None:
    """Atomic numbers and fractional coordinates of the generated atoms in the real one's cell, each nearest to its
    partner and in the real atoms' order; None where numbers of atoms differ, nothing fits, or there are too many."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    from crystallm.interop import to_structure

    if real.n_atoms != generated.n_atoms or real.n_atoms > MAX_ALIGNED_ATOMS:
        return None
    matcher = StructureMatcher(**PUBLISHED._asdict(), primitive_cell=False)
    found = matcher.get_s2_like_s1(to_structure(real), to_structure(generated))
    return None if found is None else (np.array(found.atomic_numbers), np.array(found.frac_coords))


def _table(axes: Any, rows: Sequence[tuple[str, str, str, str]]) -> None:
    axes.axis("off")
    table = axes.table(
        [list(row) for row in rows],
        colLabels=["", "real", "generated", "difference"],
        colWidths=[0.4, 0.19, 0.22, 0.22],
        cellLoc="right",
        loc="center",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.scale(1, 1.7)
    for (row, column), cell in table.get_celld().items():
        cell.set_linewidth(0.4)
        if column == 0:
            cell.set_text_props(ha="left")
        if row == 0:
            cell.set_text_props(fontweight="bold")


# ---------------------------------------------------------------- a batch


@dataclass(frozen=True, eq=False)
class BatchProperties:
    """Of the records that hold a crystal; the others are only counted."""

    crystals: tuple[Crystal, ...]
    valid: np.ndarray  # (n_crystals,) bool
    grades: tuple[Grade, ...]
    values: dict[str, Floats]  # (n_crystals,) each, by the names in BATCH_LABELS; nan where there is none
    n_without_crystal: int = 0

    @property
    def n_records(self) -> int:
        return len(self.crystals) + self.n_without_crystal

    @classmethod
    def of_crystals(
        cls, crystals: Sequence[Crystal], valid: Sequence[bool] | None = None, n_without_crystal: int = 0
    ) -> BatchProperties:
        """Valid is what keeps the distances that its elements ask for, and is True in `valid`, where that is given."""
        validator = PhysicsValidator()
        verdicts = [validator.validate(c.frac_coords, c.lattice, species=c.atomic_numbers) for c in crystals]
        found = [properties_of(crystal) for crystal in crystals]
        values = {name: np.array([one[name] for one in found], dtype=np.float64) for name in BATCH_LABELS}
        good = np.array([v.valid for v in verdicts], dtype=bool)
        good &= True if valid is None else np.array(valid, dtype=bool)
        return cls(tuple(crystals), good, tuple(v.grade for v in verdicts), values, n_without_crystal)

    @classmethod
    def of_records(cls, records: Iterable[CIFRecord]) -> BatchProperties:
        """Valid is what no check has rejected (records may come unchecked), and what keeps its distances."""
        crystals, valid, n_without = [], [], 0
        for record in records:
            try:
                crystals.append(record.crystal or parse_cif(record.cif)[0])
                valid.append(record.rejected_by is None)
            except CIFError:
                n_without += 1
        return cls.of_crystals(crystals, valid, n_without)

    def correlations(self) -> Floats:
        """(4, 4) Pearson's, of the crystals that have all four; nan where a property does not vary."""
        table = np.stack([self.values[name] for name in BATCH_LABELS])
        table = table[:, np.isfinite(table).all(axis=0)]
        if table.shape[1] < 3:
            return np.full((len(table), len(table)), np.nan)
        centred = table - table.mean(axis=1, keepdims=True)
        lengths = np.linalg.norm(centred, axis=1)
        lengths[lengths <= 1e-9 * np.linalg.norm(table, axis=1)] = np.nan  # rounding is no variation
        found: Floats = centred @ centred.T / np.outer(lengths, lengths)
        return found


def properties_of(crystal: Crystal) -> dict[str, float]:
    """By the names in BATCH_LABELS. Coordination: CrystalNN's, the mean of all atoms; nan where it has no answer."""
    try:
        coordination = len(crystal_nn(crystal)[0]) / crystal.n_atoms
    except BondError:
        coordination = math.nan
    return {
        "density_g_per_cm3": crystal.density_g_per_cm3,
        "volume_per_atom_ang3": crystal.volume_ang3 / crystal.n_atoms,
        "coordination": coordination,
        "min_distance_ang": shortest_distance(crystal.lattice, crystal.frac_coords),
    }


def batch_analysis(batch: BatchProperties, settings: Mapping[str, Any] | None = None) -> Figure:
    """Histograms, correlations, three example structures and the valid share. Raises ValueError for an empty batch."""
    if not batch.n_records:
        raise ValueError("a batch has at least one structure, got none")
    figure = _figure(14, 10)
    grid = figure.add_gridspec(3, 4, height_ratios=(1, 1.3, 0.25))
    for k, (name, label) in enumerate(BATCH_LABELS.items()):
        axes = figure.add_subplot(grid[0, k])
        _batch_histogram(axes, batch.values[name], batch.valid)
        missing = int((~np.isfinite(batch.values[name])).sum())
        axes.set(xlabel=label + (f", {missing} without" if missing else ""), ylabel="structures")
    if batch.crystals:
        axes.legend(fontsize=8)
    _correlation_panel(figure, figure.add_subplot(grid[1, 0]), batch.correlations())
    examples = _examples(batch)
    styles = element_styles([batch.crystals[k] for _, k in examples])
    for column, (what, k) in enumerate(examples, start=1):
        crystal = batch.crystals[k]
        axes = figure.add_subplot(grid[1, column], projection="3d")
        draw_crystal(axes, crystal, styles)
        numbers = f"{crystal.density_g_per_cm3:.2f} g/cm³, {batch.values['min_distance_ang'][k]:.2f} Å"
        axes.set_title(f"{what}: {crystal.reduced_formula}\n{numbers}, {batch.grades[k]}", fontsize=9)
    _share_panel(figure.add_subplot(grid[2, :]), batch)
    if styles:
        element_legend(figure, styles)
    about = ", ".join(f"{name} = {value}" for name, value in (settings or {}).items())
    title = f"Batch of {batch.n_records} structure{'s' * (batch.n_records > 1)}{': ' + about if about else ''}"
    figure.suptitle(textwrap.fill(title, 130), fontsize=12)
    return figure


def _batch_histogram(axes: Any, values: Floats, valid: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    there = np.isfinite(values)
    sets = [values[there & valid], values[there & ~valid]]
    if there.any():
        low, high = float(values[there].min()), float(values[there].max())
        spread = max(high - low, 0.02 * abs(high), 1e-3)
        middle, half = (low + high) / 2, 0.505 * spread  # a little more, or rounding puts an end outside
        edges = np.linspace(middle - half, middle + half, 16)
        labels, colors = ("valid", "not valid"), (GENERATED, REFERENCE)
        _, _, bars = axes.hist(sets, edges.tolist(), stacked=True, label=labels, color=colors)
        for patch in bars[1]:
            patch.set_hatch("//")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _correlation_panel(figure: Figure, axes: Any, correlations: Floats) -> None:
    image = axes.imshow(correlations, cmap="RdBu_r", vmin=-1, vmax=1)
    names = ["density", "volume\nper atom", "coordi-\nnation", "minimum\ndistance"]
    axes.set_xticks(range(4), names, fontsize=7)
    axes.set_yticks(range(4), names, fontsize=7)
    for (i, j), value in np.ndenumerate(correlations):
        ink = "white" if abs(value) > 0.6 else "black"
        axes.text(j, i, f"{value:.2f}" if np.isfinite(value) else "–", ha="center", va="center", color=ink, fontsize=8)
    axes.set_title("Correlations (Pearson)", fontsize=10)
    figure.colorbar(image, ax=axes, location="bottom", shrink=0.8).ax.tick_params(labelsize=7)


def _examples(batch: BatchProperties) -> list[tuple[str, int]]:
    """Lowest, middle and highest density among the valid ones, or among all where none is valid."""
    among = np.flatnonzero(batch.valid) if batch.valid.any() else np.arange(len(batch.crystals))
    density = batch.values["density_g_per_cm3"][among]
    if len(among) < 3 or np.ptp(density) < 1e-3 * density.max():  # nothing to choose by
        return [("example", k) for k in among[:3].tolist()]
    order = among[np.argsort(density, kind="stable")].tolist()
    return [("least dense", order[0]), ("middle", order[len(order) // 2]), ("densest", order[-1])]


def _share_panel(axes: Any, batch: BatchProperties) -> None:
    start = 0
    counts = {grade: batch.grades.count(grade) for grade in GRADE_COLORS}
    counts |= {"no crystal": batch.n_without_crystal}
    for name, count in counts.items():
        hatch = {"unphysical": "//", "no crystal": "xx"}.get(name, "")
        color = GRADE_COLORS.get(name, "#bbbbbb")
        axes.barh([0], [count], left=start, color=color, edgecolor="white", hatch=hatch, label=f"{name}: {count}")
        start += count
    n_valid = int(batch.valid.sum())
    axes.set_title(f"Valid: {n_valid} of {batch.n_records} ({n_valid / batch.n_records:.0%}); grades by distance")
    axes.set(xlim=(0, start), xlabel="structures", yticks=[])
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)


def batch_file_name(time: datetime) -> str:
    return f"batch_analysis_{time:%Y%m%d_%H%M%S}"


# ---------------------------------------------------------------- all of them


PICTURES = (
    "diffusion_schedule_analysis",
    "forward_diffusion_process",
    "reverse_diffusion_process",
    "structure_comparison",
    "training_curve",
)


def pictures_of_model(
    model: CrystalDiffusionModel, real: Crystal, n_structures: int = 16, num_steps: int | None = None, seed: int = 0
) -> tuple[dict[str, Figure], list[Crystal]]:
    """Schedule, forward and reverse process and comparison by file name, and the structures, from noise in the real
    one's cell and with its atoms; the first of them is the one that is compared."""
    frames: list[Frame] = []
    generated = model.sample(
        n_structures, real.lattice, real.atomic_numbers.tolist(), num_steps=num_steps, seed=seed, keep=recorder(frames)
    )
    limits = (model.config.sigma_min_ang, model.config.sigma_max_ang)
    figures = {
        "diffusion_schedule_analysis": diffusion_schedule_analysis(model.schedule, limits),
        "forward_diffusion_process": forward_diffusion_process(real, model.schedule, seed=seed),
        "reverse_diffusion_process": reverse_diffusion_process(frames),
        "structure_comparison": structure_comparison(real, generated[0], f"{len(frames) - 1} steps, seed {seed}"),
    }
    return figures, generated


def save_figures(figures: Mapping[str, Figure], folder: str | Path) -> list[Path]:
    """`NAME.png` for each; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1])
    return paths


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=130)
