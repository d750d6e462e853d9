"""A crystal as a picture: its cell in three dimensions, and its radial distribution function."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crystallm.crystal import Crystal, Floats
from crystallm.geometry import covalent_radii, neighbour_pairs
from tokenizer.elements import SYMBOLS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's, told apart by colour-blind readers; beyond eight elements they repeat with another shape.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
SHAPES = ("o", "s", "^", "D", "v", "P", "X")
RDF_CUTOFF_ANG, RDF_WIDTH_ANG = 8.0, 0.08


def element_styles(crystals: Iterable[Crystal]) -> dict[int, tuple[str, str]]:
    """Colour and marker of each atomic number in the crystals."""
    numbers = sorted({int(z) for crystal in crystals for z in np.unique(crystal.atomic_numbers)})
    return {z: (COLORS[k % 8], SHAPES[k // 8 % 7]) for k, z in enumerate(numbers)}


def draw_crystal(
    axes: Any,
    crystal: Crystal,
    styles: dict[int, tuple[str, str]],
    size: float = 1.0,
    zoom: float = 1.05,
    colors: np.ndarray | None = None,
) -> None:
    """The cell's twelve edges, and each atom once, as a ball that grows with its covalent radius. Axes in Å.

    `colors` (n_atoms, 4), red, green, blue and opacity from 0 to 1, take the place of the elements' colours.
    """
    from matplotlib.ticker import MaxNLocator

    corners = np.array(list(itertools.product((0, 1), repeat=3)))
    for start in corners:
        for axis in np.flatnonzero(start == 0):
            ends = np.stack([start, start + np.eye(3)[axis]]) @ crystal.lattice
            axes.plot(*ends.T, color="#999999", linewidth=0.8)
    for z in np.unique(crystal.atomic_numbers).tolist():
        color, shape = styles[z]
        area = size * (12 * covalent_radii()[z] ** 0.7) ** 2 / max(1.0, crystal.n_atoms / 16) ** 0.5  # points²
        own = crystal.atomic_numbers == z
        points = crystal.cart_coords[own]
        look = {
            "color": color if colors is None else colors[own],
            "marker": shape,
            "edgecolors": "black",
            "linewidths": 0.5,
        }
        axes.scatter(*points.T, s=area, depthshade=False, label=SYMBOLS[z - 1], **look)
    reach = corners @ crystal.lattice
    axes.set_box_aspect(np.ptp(reach, axis=0), zoom=zoom)
    axes.view_init(elev=16, azim=-66)
    for name, low, high in zip("xyz", reach.min(axis=0), reach.max(axis=0), strict=True):
        getattr(axes, f"set_{name}lim")(low, high)
        getattr(axes, f"set_{name}label")(f"{name} (Å)", fontsize=7, labelpad=-9)
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(MaxNLocator(4, prune="both"))  # ticks at the ends of two axes meet
        axis.set_tick_params(labelsize=6, pad=-4)
        axis.pane.set_alpha(0.0)
    axes.grid(False)


def element_legend(figure: Figure, styles: dict[int, tuple[str, str]], others: Sequence[Any] = ()) -> None:
    """Beneath everything, with handles of `others` before the elements."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, marker=shape, linestyle="", markeredgecolor="black", label=SYMBOLS[z - 1])
        for z, (color, shape) in styles.items()
    ]
    handles = [*others, *handles]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(12, len(handles)), frameon=False)


def radial_distribution(
    crystal: Crystal, cutoff_ang: float = RDF_CUTOFF_ANG, width_ang: float = RDF_WIDTH_ANG, n_points: int = 400
) -> tuple[Floats, Floats]:
    """r (n_points,) in Å and g(r): neighbours at r, each a Gaussian of `width_ang`, over those of an even density.

    4π r² g(r) n_atoms / volume integrates to the number of neighbours.
    """
    r = np.linspace(0.0, cutoff_ang, n_points + 1)[1:]
    distances = neighbour_pairs(crystal.lattice, crystal.frac_coords, cutoff_ang + 4 * width_ang)[3]
    at, counts = np.unique(distances.round(3), return_counts=True)  # many share a distance
    peaks = np.exp(-0.5 * ((r[:, None] - at) / width_ang) ** 2) @ counts
    peaks = peaks / (width_ang * np.sqrt(2 * np.pi) * crystal.n_atoms)  # neighbours of an atom per Å
    return r, peaks * crystal.volume_ang3 / (4 * np.pi * r**2 * crystal.n_atoms)
