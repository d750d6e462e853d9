"""Draw the README's overview figure:  python resources/docs/draw_overview.py [--out resources/docs/overview.png]

The CIF is the demo corpus's NaCl; its canonical text and its tokens are what the code makes of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from crystallm import canonicalize
from crystallm.resources import resource_path
from tokenizer import CIFTokenizer
from tokenizer.vocabulary import LOOP_HEADER

INK, FAINT, EDGE = "#1f2933", "#8593a3", "#c9d2dc"
# One hue a kind of token, dark enough on white to be read.
COLOURS = {
    "keyword": "#e8ecf1",
    "element": "#cfe3ff",
    "integer": "#f3e3c3",
    "space_group": "#e5d4f7",
    "length": "#cdeccf",
    "angle": "#f8d7d7",
    "wyckoff": "#f9e2b8",
    "coordinate": "#c9ecec",
}
KINDS = {
    "formula_element": "element",
    "site_element": "element",
    "integer": "integer",
    "space_group": "space_group",
    "length": "length",
    "angle": "angle",
    "wyckoff": "wyckoff",
    "coordinate": "coordinate",
}

SHORT = {  # tokens too long for a label
    "\n_crystallm_primitive_formula_units ": "formula units",
    "\n_symmetry_space_group_name_H-M": "space group",
    LOOP_HEADER: "loop_ …",
    "\n": "end",
}


def box(ax: Axes, x: float, y: float, width: float, height: float, title: str, subtitle: str = "") -> None:
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=1.2", fc="white", ec=EDGE, lw=1.2)
    ax.add_patch(shape)
    ax.text(x + 1.5, y + height - 2.0, title, fontsize=10.5, fontweight="bold", color=INK, va="top")
    if subtitle:
        ax.text(x + 1.5, y + height - 5.0, subtitle, fontsize=7.6, color=FAINT, va="top", linespacing=1.35)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], label: str = "", side: float = 1.3) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, lw=1.5, color=INK))
    if label:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        ax.text(middle[0], middle[1] + side, label, fontsize=7.4, color=INK, ha="center", va="bottom")


def chip(ax: Axes, x: float, y: float, text: str, colour: str, ink: str = INK, width: float | None = None) -> float:
    """A rounded label; returns where the next one may start."""
    width = width or 0.66 * len(text) + 1.3
    ax.add_patch(FancyBboxPatch((x, y), width, 2.5, boxstyle="round,pad=0,rounding_size=0.6", fc=colour, ec="none"))
    ax.text(x + width / 2, y + 1.2, text, fontsize=6.2, family="monospace", color=ink, ha="center", va="center")
    return x + width + 0.5


def listing(ax: Axes, x: float, y: float, text: str, size: float) -> None:
    ax.text(x, y, text, fontsize=size, family="monospace", color=INK, va="top", linespacing=1.36)


def kind_of(tokenizer: CIFTokenizer, token: int) -> str:
    classes = tokenizer.vocabulary.classes
    return next((kind for name, kind in KINDS.items() if token in classes[name]), "keyword")


def draw_rock_salt(ax: Axes, x: float, y: float, size: float) -> None:
    """The conventional cell, seen from a little above, back to front."""
    steps = np.array([0.0, 0.5, 1.0])
    points = np.array([(a, b, c) for a in steps for b in steps for c in steps])
    view = np.array([[0.93, 0.12], [-0.34, 0.26], [0.0, 0.95]])  # a, b, c on the page
    depth = points[:, 1] - 0.2 * points[:, 0]
    flat = points @ view * size + np.array([x, y])
    for i in range(len(points)):
        for j in range(i):
            if np.isclose(np.abs(points[i] - points[j]).sum(), 0.5):
                ax.plot(*zip(flat[i], flat[j], strict=True), color=EDGE, lw=0.9, zorder=2)
    for i in np.argsort(-depth):
        sodium = round(2 * points[i].sum()) % 2 == 0
        colour, radius = ("#7aa7e0", 0.95) if sodium else ("#7ecb83", 1.35)
        ax.add_patch(Circle(tuple(flat[i]), radius, fc=colour, ec="white", lw=0.6, zorder=3 - depth[i] / 10))


def draw() -> Figure:
    rows = pq.read_table(resource_path("resources/demo/demo.parquet")).to_pylist()
    raw = next(row["cif"] for row in rows if row["id"] == "demo-rock_salt-NaCl")
    text = canonicalize(raw)
    tokenizer = CIFTokenizer()
    ids = tokenizer.encode(text)

    figure = Figure(figsize=(12.4, 7.0), dpi=150)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 124), ylim=(0, 70))
    ax.set_aspect("equal")
    ax.axis("off")

    ax.text(2, 67.2, "TRAIN", fontsize=9, fontweight="bold", color=FAINT, va="center")
    box(ax, 2, 37, 26, 28, "Your CIFs", "any setting, any cell; folders,\narchives, parquet")
    shown = [line for line in raw.splitlines() if not line.startswith(("#", "_symm", "_chem", "loop"))]
    listing(ax, 3.5, 56.2, "\n".join([*shown[:5], "…", *shown[-8:]]), 5.2)

    box(ax, 33, 37, 27, 28, "Canonical CIF", "one setting, one description, asymmetric unit")
    listing(ax, 34.5, 57.6, text.rstrip(), 5.6)

    box(ax, 65, 37, 32, 28, "Tokens", f"one a number, element, group, keyword: {len(ids)} for NaCl")
    x, y = 66.5, 54.6
    for token in ids:
        name = SHORT.get(tokenizer.token(token), tokenizer.token(token)).strip()
        name = name.removeprefix("_cell_length_").removeprefix("_cell_angle_")
        if x + 0.66 * len(name) + 1.3 > 96:
            x, y = 66.5, y - 3.2
        x = chip(ax, x, y, name, COLOURS[kind_of(tokenizer, token)])

    box(ax, 102, 37, 20, 28, "GPT decoder", "learns the next token; loss only\nover what the grammar allows")
    for k in range(4):
        chip(ax, 105, 41.5 + 3.6 * k, "attention + MLP", COLOURS["keyword"], width=14)
    arrow(ax, (28.3, 51), (32.7, 51))
    arrow(ax, (60.3, 51), (64.7, 51))
    arrow(ax, (97.3, 51), (101.7, 51))

    ax.text(2, 33.2, "SAMPLE", fontsize=9, fontweight="bold", color=FAINT, va="center")
    box(ax, 2, 3, 17, 28, "Prompt", "a formula, a system, a\nspace group, or nothing")
    ax.text(10.5, 14.5, "Na Cl", fontsize=17, family="monospace", color=INK, ha="center", va="center")

    box(ax, 24, 3, 40, 28, "Constrained sampling", "a token that grammar or crystallography forbids has probability 0")
    asked = {  # what is asked: (a token, whether it is allowed)
        "Fm-3m: cell": {"a 5.64": True, "b 5.64": True, "b 6.10": False, "α 90.0": True, "α 60.0": False},
        "4 Na: positions": {"a (4)": True, "b (4)": True, "c (8)": False, "e (24)": False},
        "4 Cl: positions": {"a taken": False, "b (4)": True, "c (8)": False},
        "x of b: fixed": {"0.500": True, "0.499": False, "0.123": False},
        "distance": {"Na-Cl 2.82 Å": True, "Na-Cl 0.9 Å": False},
    }
    for k, (what, options) in enumerate(asked.items()):
        x, y = 34.6, 20.6 - 3.9 * k
        ax.text(25.5, y + 1.2, what, fontsize=7.2, color=INK, va="center")
        for option, allowed in options.items():
            x = chip(ax, x, y, option, *(("#cdeccf", INK) if allowed else ("#f4f5f7", "#b3bcc7")))

    box(ax, 69, 3, 23, 28, "Checks", "each record passes, or keeps the\nreason why it fell")
    checks = ["parse", "cell", "multiplicity", "formula", "found space group", "distances"]
    for k, name in enumerate(checks):
        ax.text(71, 20.2 - 2.7 * k, "✓", fontsize=9, color="#3c9a45", va="center")
        ax.text(73.6, 20.2 - 2.7 * k, name, fontsize=7.8, color=INK, va="center")

    box(ax, 97, 3, 25, 28, "Crystals", "full CIF, pymatgen, ASE;\ntable and report")
    draw_rock_salt(ax, 105.5, 6.0, 11.0)
    arrow(ax, (19.3, 17), (23.7, 17))
    arrow(ax, (64.3, 17), (68.7, 17))
    arrow(ax, (92.3, 17), (96.7, 17))
    ax.plot([112, 112, 44], [36.7, 34.2, 34.2], color=INK, lw=1.5, solid_joinstyle="round")
    arrow(ax, (44, 34.2), (44, 31.3))
    ax.text(78, 34.7, "checkpoint", fontsize=7.4, color=INK, ha="center", va="bottom")
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("resources/docs/overview.png"))
    draw().savefig(parser.parse_args().out)
