"""An explanation in pictures: bars of what was left out, the crystal coloured by it, and where attention goes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crystallm.properties.explanation import Attention, Explanation
from crystallm.report.crystal_drawing import draw_crystal, element_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, told apart by colour-blind readers
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#e69f00", "#009e73", "#999999"
UNITS = {
    "_ev_per_atom": "eV/atom",
    "_ev": "eV",
    "_gpa": "GPa",
    "_g_per_cm3": "g/cm³",
    "_ang3_per_atom": "Å³/atom",
    "_ang3": "Å³",
    "_ang": "Å",
    "_k": "K",
}
MOST_SITES, MOST_NAMED_ATOMS = 16, 32  # in one picture
LINE = 88  # characters
EVEN_REACH = 4.0  # colours of attention end at so many times an even share, and at its inverse


PICTURES = ("modalities", "sentences", "sites", "crystal", "attention", "words")


def figures_of(explanation: Explanation) -> dict[str, Figure]:
    """The pictures of PICTURES that can be drawn of it, by the name of their file."""
    figures = {}
    if explanation.modalities is not None:
        figures["modalities"] = modality_figure(explanation)
    if explanation.scope_changes:
        figures["sentences"] = sentence_figure(explanation)
    if explanation.crystal is not None:
        figures["sites"] = site_figure(explanation)
        figures["crystal"] = crystal_figure(explanation)
    if explanation.attention is not None:
        figures["attention"] = attention_figure(explanation)
        figures["words"] = word_figure(explanation)
    return figures


def target_label(target: str) -> str:
    """formation_energy_ev_per_atom -> formation energy (eV/atom)"""
    for ending, unit in UNITS.items():
        if target.endswith(ending):
            return f"{target.removesuffix(ending).replace('_', ' ')} ({unit})"
    return target.replace("_", " ")


def modality_figure(explanation: Explanation) -> Figure:
    """What each branch says with and without a modality, and how the two share the difference."""
    values = explanation.modalities
    assert values is not None
    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = {
        "both": (values.both, BLUE),
        "without the text": (values.without_text, BLUE),
        "without the structure": (values.without_structure, BLUE),
        "without both (never trained)": (values.without_both, GREY),
        "structure alone, its own branch": (values.structure_alone, ORANGE),
        "text alone, its own branch": (values.text_alone, GREEN),
    }
    _bars(left, list(rows), [value for value, _ in rows.values()], [color for _, color in rows.values()], "{:.3g}")
    left.set_xlabel(target_label(explanation.target))
    left.set_title("value\n(without: the missing token instead)", fontsize=10)
    shares = values.contributions()
    _bars(right, list(shares), list(shares.values()), [ORANGE, GREEN])
    right.set_xlabel(target_label(explanation.target))
    right.set_title("contribution\n(adds up to both − without both)", fontsize=10)
    figure.suptitle(_title(explanation), fontsize=11)
    return figure


def sentence_figure(explanation: Explanation) -> Figure:
    """What leaving out each sentence does, and leaving out all that speak of the crystal, or of single sites."""
    texts = ["\n".join(textwrap.wrap(sentence.text, 62)) for sentence in explanation.sentences]
    changes = explanation.sentence_changes.tolist()
    colors = [BLUE if sentence.scope == "global" else ORANGE for sentence in explanation.sentences]
    texts += [f"all {scope} sentences" for scope in explanation.scope_changes]
    changes += explanation.scope_changes.values()
    colors += [BLUE if scope == "global" else ORANGE for scope in explanation.scope_changes]
    n_lines = sum(text.count("\n") + 1 for text in texts)
    figure = _figure(9.5, 1.5 + 0.19 * n_lines + 0.09 * len(texts))
    axes = figure.add_subplot()
    _bars(axes, texts, changes, colors)
    axes.axhline(len(explanation.sentences) - 0.5, color="black", linewidth=0.6)
    axes.set_xlabel(f"change when left out, {target_label(explanation.target)}")
    axes.set_title(_title(explanation), fontsize=11)
    _legend(figure, {"global: of the crystal": BLUE, "local: of single sites": ORANGE})
    return figure


def site_figure(explanation: Explanation) -> Figure:
    """What hiding one atom of each site does, and hiding all of them; each silenced and removed."""
    single, together = explanation.atom_changes, explanation.site_changes
    chosen = _strongest(explanation)
    sites = [explanation.sites[k] for k in chosen]
    figure = _figure(9.5, 1.9 + 0.36 * len(sites))
    panels = figure.subplots(1, 2)
    for axes, title, kinds in (
        (panels[0], "one atom", [[changes[list(s.atoms)].mean() for s in sites] for changes in _both(single)]),
        (panels[1], "all atoms of the site", [[changes[k] for k in chosen] for changes in _both(together)]),
    ):
        for shift, values, color in zip((-0.2, 0.2), kinds, (BLUE, ORANGE), strict=True):
            axes.barh(np.arange(len(sites)) + shift, np.nan_to_num(values), 0.38, color=color)
        axes.set_yticks(range(len(sites)), [f"{s.name} ({len(s.atoms)})" for s in sites], fontsize=8)
        axes.set_ylim(len(sites) - 0.5, -0.5)
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_xlabel(f"change, {target_label(explanation.target)}")
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.margins(x=0.08)
    _legend(figure, {"silenced: its token is not heard": BLUE, "removed from the crystal": ORANGE})
    figure.suptitle(_title(explanation) + _left_out(chosen, explanation), fontsize=11)
    return figure


def crystal_figure(explanation: Explanation) -> Figure:
    """The cell with its atoms coloured by what hiding each one does, silenced and removed on one scale."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patheffects import withStroke

    crystal = explanation.crystal
    assert crystal is not None
    changes = explanation.atom_changes
    finite = np.concatenate(_both(changes))
    finite = np.abs(finite[np.isfinite(finite)])
    reach = float(finite.max()) if finite.any() else 1.0
    norm, colors = Normalize(-reach, reach), colormaps["RdBu_r"].with_extremes(bad="#bbbbbb")
    figure = _figure(10, 5.2)
    name_of = {atom: site.name for site in explanation.sites for atom in site.atoms}
    panels = []
    for place, (title, values) in enumerate(zip(("silenced", "removed"), _both(changes), strict=True), 1):
        axes: Any = figure.add_subplot(1, 2, place, projection="3d")
        draw_crystal(axes, crystal, element_styles([crystal]), colors=colors(norm(np.ma.masked_invalid(values))))
        if crystal.n_atoms <= MOST_NAMED_ATOMS:
            for atom, point in enumerate(crystal.cart_coords):
                outline = [withStroke(linewidth=2, foreground="white")]
                axes.text(*point, f"  {name_of[atom]}", fontsize=8, path_effects=outline, zorder=10)
        axes.set_title(title, fontsize=10)
        panels.append(axes)
    label = f"change when hidden, {target_label(explanation.target)}"
    figure.colorbar(ScalarMappable(norm, colors), ax=panels, shrink=0.7, label=label, location="bottom", aspect=40)
    figure.suptitle(_title(explanation), fontsize=11)
    return figure


def attention_figure(explanation: Explanation) -> Figure:
    """Sentences by sites, both ways; colours say how much more or less than an even share, numbers are the shares."""
    attention = explanation.attention
    assert attention is not None and explanation.crystal is not None
    sites, n = explanation.sites, len(explanation.sentences)
    chosen = _strongest(explanation)
    names = [f"{sites[k].name} ({len(sites[k].atoms)})" for k in chosen]
    texts = ["\n".join(textwrap.wrap(sentence.text, 58)[:2]) for sentence in explanation.sentences]
    even_atoms = np.array([len(site.atoms) for site in sites]) / explanation.crystal.n_atoms
    to_text = attention.sites_to_sentences(sites, n).T[:, chosen]  # (n_sentences, n_sites)
    to_atoms = attention.sentences_to_sites(sites, n)[:, chosen]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (to_text / attention.even_shares(n)[:, None], to_atoms / even_atoms[chosen])
    n_lines = sum(text.count("\n") + 1 for text in texts)
    figure = _figure(7.5 + 0.9 * len(chosen), 2.2 + 0.12 * n_lines + 0.2 * len(texts))
    panels = figure.subplots(1, 2, sharey=True)
    norm, colors = _even_colors()
    for axes, title, shares, ratio in zip(
        panels,
        ("atoms look at sentences\n(columns add up to 100 %)", "sentences look at atoms\n(rows add up to 100 %)"),
        (to_text, to_atoms),
        ratios,
        strict=True,
    ):
        image = axes.imshow(_clipped(ratio), cmap=colors, norm=norm, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(names)), names, fontsize=8, rotation=90 if len(names) > 6 else 0)
        axes.set_yticks(range(n), texts, fontsize=8)
        axes.set_title(title, fontsize=10)
        for (row, column), share in np.ndenumerate(shares):
            if np.isfinite(share):
                ink = "black" if 0.45 < ratio[row, column] < 2.5 else "white"
                axes.text(column, row, f"{100 * share:.0f}", color=ink, ha="center", va="center", fontsize=7)
    _even_bar(figure, image, panels, "share / even share")
    figure.suptitle(_title(explanation) + _left_out(chosen, explanation), fontsize=11)
    return figure


def word_figure(explanation: Explanation) -> Figure:
    """The words that are read, each above one stripe a site: how much the site's atoms look at it.

    Words that the text encoder passes over, such as `is` and `the`, are not there.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Rectangle

    attention = explanation.attention
    assert attention is not None
    chosen = _strongest(explanation)[:8]
    sites = [explanation.sites[k] for k in chosen]
    even = attention.tokens_of_word / attention.tokens_of_word.sum()
    norm, colors = _even_colors()
    ratios = attention.sites_to_words(sites) / even  # (n_sites, n_words)
    places, n_lines = _typeset(attention)
    stripe, line = 0.42, 1.5 + 0.42 * len(sites)  # in heights of a letter
    widest = max(column + min(len(word), LINE) for word, (_, column) in zip(attention.words, places, strict=True))
    figure = _figure(2.5 + 0.1 * widest, 1.6 + 0.17 * line * n_lines)
    axes = figure.add_subplot()
    for word, (row, column), ratio in zip(attention.words, places, ratios.T, strict=True):
        word = textwrap.shorten(word, LINE, placeholder="…")
        axes.text(column, row * line, word, family="monospace", fontsize=8, va="bottom")
        for k, own in enumerate(ratio):
            box = (column, row * line + 0.1 + k * stripe), len(word), stripe
            axes.add_patch(Rectangle(*box, facecolor=colors(norm(_clipped(own))), edgecolor="white", linewidth=0.3))
    for row in range(n_lines):
        for k, site in enumerate(sites):
            axes.text(-0.6, row * line + 0.1 + (k + 0.5) * stripe, site.name, fontsize=5, ha="right", va="center")
    axes.set_xlim(-4, widest)
    axes.set_ylim(n_lines * line - 0.9, -1.3)
    axes.axis("off")
    _even_bar(figure, ScalarMappable(norm, colors), axes, "share of an atom's attention / even share")
    figure.suptitle(_title(explanation) + _left_out(chosen, explanation), fontsize=11)
    return figure


def _typeset(attention: Attention) -> tuple[list[tuple[int, int]], int]:
    """Line and column of each word, every sentence on a new line; and how many lines."""
    places: list[tuple[int, int]] = []
    row, column, before = 0, 0, 0
    for word, sentence in zip(attention.words, attention.sentence_of_word.tolist(), strict=True):
        length = min(len(word), LINE)
        if column and (sentence != before or column + length > LINE):
            row, column = row + 1, 0
        places.append((row, column))
        column, before = column + length + 1, sentence
    return places, row + 1


def _even_colors() -> tuple[Any, Any]:
    """Purple below an even share, white at it, orange above, on a logarithmic scale."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    return LogNorm(1 / EVEN_REACH, EVEN_REACH), colormaps["PuOr_r"].with_extremes(bad="#dddddd")


def _even_bar(figure: Figure, colored: Any, axes: Any, label: str) -> None:
    bar = figure.colorbar(colored, ax=axes, ticks=[0.25, 0.5, 1, 2, 4], format="%g", label=label, extend="both")
    bar.minorticks_off()


def _clipped(ratio: Any) -> Any:
    return np.clip(ratio, 1 / EVEN_REACH, EVEN_REACH)


def _strongest(explanation: Explanation) -> np.ndarray:
    """Places of the sites that are drawn, in their order: all, or those whose hiding changes most"""
    changes = np.nan_to_num(np.abs(np.stack(_both(explanation.site_changes)))).max(axis=0)  # (n_sites,)
    return np.sort(np.argsort(-changes, kind="stable")[:MOST_SITES])


def _left_out(chosen: Sequence[int] | np.ndarray, explanation: Explanation) -> str:
    n = len(explanation.sites)
    return f"; {len(chosen)} of {n} sites" if len(chosen) < n else ""


def _both(changes: Any) -> tuple[np.ndarray, np.ndarray]:
    return changes.silenced, changes.removed


def _bars(
    axes: Axes, names: Sequence[str], values: Sequence[float], colors: Sequence[str], form: str = "{:+.3g}"
) -> None:
    """Downwards; a value that does not exist has no bar."""
    places = np.arange(len(names))
    bars = axes.barh(places, np.nan_to_num(values), 0.7, color=list(colors))
    written = ["nothing left" if np.isnan(value) else form.format(value) for value in values]
    axes.bar_label(bars, written, padding=3, fontsize=8)
    axes.set_yticks(places, list(names), fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.18)


def _title(explanation: Explanation) -> str:
    formula = "" if explanation.crystal is None else f" ({explanation.crystal.reduced_formula})"
    label = target_label(explanation.target)
    return f"{explanation.id}{formula}: {label} {explanation.value:.3f} ± {explanation.error:.3f}"


def _legend(figure: Figure, colors: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, marker="s", linestyle="", label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)
