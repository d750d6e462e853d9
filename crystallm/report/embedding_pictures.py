"""Pictures of learned vectors: maps of elements and space groups, the periodic table, curves of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crystallm.report.embedding_tests import element_family
from crystallm.report.embeddings import ELEMENT_CLASSES, ClassVectors
from crystallm.space_groups import space_group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers, with two more.
FAMILIES = {
    "hydrogen": "#000000",
    "alkali": "#d55e00",
    "alkaline earth": "#e69f00",
    "lanthanide": "#cc79a7",
    "actinide": "#882255",
    "transition metal": "#0072b2",
    "groups 13, 14": "#009e73",
    "groups 15, 16": "#56b4e9",
    "halogen": "#b3a200",
    "noble gas": "#888888",
}
SYSTEMS = {
    "triclinic": "#000000",
    "monoclinic": "#d55e00",
    "orthorhombic": "#e69f00",
    "tetragonal": "#009e73",
    "trigonal": "#56b4e9",
    "hexagonal": "#0072b2",
    "cubic": "#cc79a7",
}
TITLES = {
    "formula_element": "Elements in the formula",
    "site_element": "Elements of the sites",
    "element": "Elements",
    "space_group": "Space groups",
    "integer": "Counts",
    "length": "Cell lengths",
    "angle": "Cell angles",
    "coordinate": "Fractional coordinates",
    "digit": "Digits",
}
MATRIX_SIDE = 500  # rows of a similarity matrix at most: about its pixels


def figures_of(vectors: ClassVectors) -> dict[str, Figure]:
    """The pictures of one class, by what their file names end in."""
    if vectors.name in ELEMENT_CLASSES:
        return {"_map": element_map(vectors), "_table": periodic_table(vectors)}
    if vectors.name == "space_group":
        return {"": space_group_figure(vectors)}
    return {"": number_figure(vectors)}


def element_map(vectors: ClassVectors) -> Figure:
    """The first two principal components; a line leads from each element to its nearest neighbour."""
    figure = _figure(9, 7)
    axes = figure.add_subplot()
    symbols = vectors.met_labels()
    points = _component_axes(axes, vectors)
    families = [_broad_family(symbol) for symbol in symbols]
    _legend(figure, {name: color for name, color in FAMILIES.items() if name in families})
    axes.set_title(f"{_title(vectors)}; lines lead to the nearest neighbour")
    places = _write_symbols(figure, axes, points, symbols, [FAMILIES[family] for family in families], size=11)
    for i, j in enumerate(vectors.nearest()):
        axes.plot(*places[[i, j]].T, color="#bbbbbb", linewidth=0.8, zorder=1)
    return figure


def periodic_table(vectors: ClassVectors) -> Figure:
    """Cells coloured by the first principal component, each with the element's nearest neighbour beneath."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    components, shares = vectors.principal(1)
    neighbours, symbols = vectors.nearest(), vectors.met_labels()
    place_of = {symbol: i for i, symbol in enumerate(symbols)}
    reach = float(np.abs(components).max())
    norm, colors = Normalize(-reach, reach), colormaps["RdYlBu_r"]
    figure = _figure(11, 6)
    axes = figure.add_subplot()
    for symbol in vectors.labels:
        x, y = _cell(symbol)
        if symbol not in place_of:
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor="#f2f2f2", edgecolor="white", linewidth=1.5))
            axes.text(x + 0.5, y + 0.42, symbol, color="#aaaaaa", fontsize=11, ha="center", va="center")
            continue
        i = place_of[symbol]
        color = colors(norm(components[i, 0]))
        ink = "white" if _luminance(color) < 0.4 else "black"
        neighbour = symbols[neighbours[i]]
        alike = element_family(neighbour) == element_family(symbol)
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=color, edgecolor="white", linewidth=1.5))
        axes.text(x + 0.5, y + 0.4, symbol, color=ink, fontsize=13, fontweight="bold", ha="center", va="center")
        axes.text(
            x + 0.5,
            y + 0.78,
            f"→ {neighbour}",
            color=ink,
            fontsize=8.5,
            fontweight="bold" if alike else "normal",
            style="normal" if alike else "italic",
            ha="center",
            va="center",
        )
    for y, series in ((5, "La–Lu"), (6, "Ac–Lr")):
        axes.text(2.5, y + 0.5, series, color="#888888", fontsize=9, ha="center", va="center")
    axes.set_xlim(-0.1, 18.1)
    axes.set_ylim(9.7, -0.1)
    axes.set_aspect("equal")
    axes.axis("off")
    bar = axes.inset_axes((0.18, 0.885, 0.38, 0.025))
    figure.colorbar(ScalarMappable(norm, colors), cax=bar, orientation="horizontal")
    bar.set_title(f"first principal component ({shares[0]:.0%} of the variance)", fontsize=9)
    bar.tick_params(labelsize=8)
    n_left_out = len(vectors.labels) - len(symbols)
    grey = f"; grey: met in fewer than {vectors.min_structures} training structures" if n_left_out else ""
    axes.set_title(f"{_title(vectors)}; → nearest neighbour, bold where it is of the same group{grey}", fontsize=11)
    return figure


def space_group_figure(vectors: ClassVectors) -> Figure:
    """Map coloured by crystal system, with the groups' numbers, and the matrix of cosines in the order of numbers."""
    numbers = vectors.values[vectors.met].astype(int)
    systems = np.array([space_group(int(number)).crystal_system for number in numbers])
    figure = _figure(12, 6)
    left, right = figure.subplots(1, 2)
    points = _component_axes(left, vectors)
    left.set_title(_title(vectors))
    _matrix(figure, right, vectors.similarity())
    edges = np.flatnonzero(systems[1:] != systems[:-1]) + 0.5
    for edge in edges:
        right.axhline(edge, color="black", linewidth=0.6)
        right.axvline(edge, color="black", linewidth=0.6)
    bounds = np.concatenate([[-0.5], edges, [len(numbers) - 0.5]])
    names = [systems[int(start + 0.5)] for start in bounds[:-1]]
    centres = (bounds[:-1] + bounds[1:]) / 2
    right.set_yticks(centres, [f"{n}" for n in names], fontsize=8)
    right.set_xticks([])
    right.tick_params(length=0)
    right.set_title("cosine, in the order of space-group numbers")
    _legend(figure, {name: SYSTEMS[name] for name in SYSTEMS if name in systems})
    _write_symbols(figure, left, points, [str(n) for n in numbers], [SYSTEMS[system] for system in systems], size=7)
    return figure


def number_figure(vectors: ClassVectors) -> Figure:
    """The curve of the numbers in their first two principal components, and the matrix of their cosines."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    values, colors = vectors.values[vectors.met], colormaps["viridis"]
    few = len(values) <= 60  # enough room to write them
    figure = _figure(12, 5.4)
    left, right = figure.subplots(1, 2)
    points = _component_axes(left, vectors)
    left.plot(*points.T, color="#cccccc", linewidth=0.6, zorder=1)
    dots = left.scatter(*points.T, c=values, cmap=colors, s=0 if few else 8, zorder=2, linewidths=0)
    figure.colorbar(dots, ax=left, label=_axis_label(vectors.name))
    left.set_title(_title(vectors))
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), MATRIX_SIDE)).round().astype(int))
    _matrix(figure, right, vectors.directions[chosen] @ vectors.directions[chosen].T)
    round_values = MaxNLocator(6).tick_values(values[0], values[-1])
    round_values = round_values[(round_values >= values[0]) & (round_values <= values[-1])]
    ticks = np.searchsorted(values[chosen], round_values)
    right.set_xticks(ticks, [f"{value:g}" for value in round_values])
    right.set_yticks(ticks, [f"{value:g}" for value in round_values])
    right.set_xlabel(_axis_label(vectors.name))
    right.set_title("cosine")
    if few:
        inks = [colors(place) for place in 0.9 * (values - values[0]) / np.ptp(values)]
        _write_symbols(figure, left, points, vectors.met_labels(), inks, size=9)
    return figure


def spread(points: np.ndarray, width: float, height: float, rounds: int = 200) -> np.ndarray:
    """(n, 2) -> (n, 2): moved apart until boxes of this size around them overlap no more, or `rounds` are over."""
    places = np.array(points, dtype=np.float64)
    size = np.array([width, height])
    for _ in range(rounds):
        delta = places[:, None] - places  # (n, n, 2)
        overlap = size - np.abs(delta)
        touching = (overlap > 0).all(axis=2) & ~np.eye(len(places), dtype=bool)
        if not touching.any():
            break
        shorter = (overlap / size).argmin(axis=2)  # apart along the axis that needs less
        for axis in (0, 1):
            push = np.where(touching & (shorter == axis), np.sign(delta[:, :, axis]) * overlap[:, :, axis], 0.0)
            places[:, axis] += 0.3 * push.sum(axis=1)
    return places


def _write_symbols(
    figure: Figure, axes: Axes, points: np.ndarray, symbols: Sequence[str], colors: Sequence[Any], size: float
) -> np.ndarray:
    """Short texts at points (n, 2), moved so that none covers another; where they stand, (n, 2). Call it last."""
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()  # settles the layout: from here on, a point has its place in pixels
    pixels = size * figure.dpi / 72
    places = spread(axes.transData.transform(points), 0.78 * pixels * max(map(len, symbols)), 1.0 * pixels)
    places = axes.transData.inverted().transform(places)
    outline = [withStroke(linewidth=size / 4, foreground="white")]
    for symbol, color, (x, y) in zip(symbols, colors, places, strict=True):
        axes.text(
            x,
            y,
            symbol,
            color=color,
            fontsize=size,
            fontweight="bold",
            ha="center",
            va="center",
            zorder=3,
            path_effects=outline,
        )
    return places


def _component_axes(axes: Axes, vectors: ClassVectors) -> np.ndarray:
    """Axes for the first two principal components, which are returned: (n_met, 2)"""
    points, shares = vectors.principal(2)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.06 * (high - low)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second ({shares[1]:.0%})")
    return points


def _matrix(figure: Figure, axes: Axes, similarity: np.ndarray) -> None:
    off_diagonal = similarity[~np.eye(len(similarity), dtype=bool)]
    reach = float(np.ceil(10 * np.quantile(np.abs(off_diagonal), 0.999)) / 10)
    image = axes.imshow(similarity, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.85, extend="neither" if reach >= 1 else "max")


def _title(vectors: ClassVectors) -> str:
    return f"{TITLES.get(vectors.name, vectors.name.replace('_', ' '))} ({int(vectors.met.sum())})"


def _axis_label(name: str) -> str:
    return {"length": "length (Å)", "angle": "angle (°)"}.get(name, name.replace("_", " "))


def _legend(figure: Figure, colors: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, marker="s", linestyle="", label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), frameon=False)


def _broad_family(symbol: str) -> str:
    family = element_family(symbol)
    if family in FAMILIES:
        return family
    group = int(family)
    names = {1: "alkali", 2: "alkaline earth", 17: "halogen", 18: "noble gas"}
    return names.get(group, "transition metal" if group <= 12 else "groups 13, 14" if group <= 14 else "groups 15, 16")


def _cell(symbol: str) -> tuple[float, float]:
    """Column and row in the periodic table, with lanthanides and actinides in two rows beneath."""
    from pymatgen.core import Element

    element = Element(symbol)
    if element.is_lanthanoid or element.is_actinoid:
        return float(2 + (element.Z - (57 if element.is_lanthanoid else 89))), 7.5 + element.is_actinoid
    return float(element.group - 1), float(element.row - 1)


def _luminance(color: tuple[float, float, float, float]) -> float:
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)
