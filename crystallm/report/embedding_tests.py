"""Does chemistry show in learned vectors? Numbers that could have come out otherwise, with their odds by chance."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from crystallm.report.embeddings import ClassVectors
from crystallm.space_groups import space_group
from crystallm.text_table import text_table
from tokenizer.elements import ELEMENT_RANK


@dataclass(frozen=True)
class PermutationTest:
    """A figure beside what it is when the labels of the tokens are shuffled."""

    name: str
    n: int  # tokens
    value: float  # a share, or Spearman's correlation
    by_chance: float  # mean over the permutations
    p: float  # (1 + permutations that reach the value) / (1 + permutations)


def share_test(
    name: str, distance: np.ndarray, labels: np.ndarray, n_permutations: int, rng: np.random.Generator
) -> PermutationTest:
    """The share of tokens whose nearest one has their label: distance (n, n), labels (n,).

    Several that are equally near count in equal parts.
    """
    n = len(labels)
    distance = np.where(np.eye(n, dtype=bool), np.inf, distance)
    weights = distance <= distance.min(axis=1, keepdims=True) + 1e-9  # (n, n)
    weights = weights / weights.sum(axis=1, keepdims=True)
    same = (labels[:, None] == labels).astype(np.float64)

    def share(order: np.ndarray) -> float:
        return float((weights * same[np.ix_(order, order)]).sum() / n)

    return _compare(name, n, share, n_permutations, rng)


def mantel(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    fixed: np.ndarray | None,
    n_permutations: int,
    rng: np.random.Generator,
) -> PermutationTest:
    """Spearman's correlation of two distance matrices (n, n), and of what is left of both after a third.

    The tokens of y are shuffled as wholes (N. Mantel, Cancer Res. 27, 209, 1967); with `fixed`, the residuals of its
    linear regression on ranks are (P. Legendre, J. Stat. Comput. Simul. 67, 37, 2000, method 3).
    """
    above = np.triu_indices(len(x), k=1)
    ranks = [_ranks(m[above]) for m in (x, y)]
    if fixed is not None:
        z = _ranks(fixed[above])
        ranks = [r - z * (r @ z) / (z @ z) for r in ranks]
    rx, ry = (r / np.linalg.norm(r) for r in ranks)
    matrix = np.zeros_like(y, dtype=np.float64)
    matrix[above] = ry
    matrix += matrix.T

    def correlation(order: np.ndarray) -> float:
        return float(rx @ matrix[order[above[0]], order[above[1]]])

    return _compare(name, len(x), correlation, n_permutations, rng)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties shared, mean taken away: (n,) -> (n,)"""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]
    return ranks - ranks.mean()


def _compare(
    name: str, n: int, figure: Callable[[np.ndarray], float], n_permutations: int, rng: np.random.Generator
) -> PermutationTest:
    value = figure(np.arange(n))
    shuffled = np.array([figure(rng.permutation(n)) for _ in range(n_permutations)])
    reached = int((shuffled >= value - 1e-12).sum())
    return PermutationTest(name, n, value, float(shuffled.mean()), (1 + reached) / (1 + n_permutations))


def element_family(symbol: str) -> str:
    """The group of the periodic table; lanthanides and actinides are families of their own, and so is hydrogen."""
    from pymatgen.core import Element

    element = Element(symbol)
    if element.is_lanthanoid or element.is_actinoid:
        return "lanthanide" if element.is_lanthanoid else "actinide"
    return "hydrogen" if symbol == "H" else str(element.group)


def element_tests(vectors: ClassVectors, n_permutations: int = 9999, seed: int = 0) -> list[PermutationTest]:
    """Nearest neighbours by family and block, and similarity against differences of properties.

    A canonical text orders elements by electronegativity, so that a model learns this order from the text alone. Two
    controls show how far that goes: the neighbours in the order itself, and correlations with the order held fixed.
    """
    from pymatgen.core import Element

    symbols = vectors.met_labels()
    rng = np.random.default_rng(seed)
    distance = 1 - vectors.similarity()
    order = _differences([ELEMENT_RANK[symbol] for symbol in symbols])
    families = np.array([element_family(symbol) for symbol in symbols])
    no_f = np.flatnonzero(~np.isin(families, ("lanthanide", "actinide")))
    blocks = np.array([Element(symbol).block for symbol in symbols])
    tests = [
        share_test("nearest neighbour in the same group", distance, families, n_permutations, rng),
        share_test("  without lanthanides and actinides", _part(distance, no_f), families[no_f], n_permutations, rng),
        share_test(
            "  of these, by the order in a formula alone", _part(order, no_f), families[no_f], n_permutations, rng
        ),
        share_test("nearest neighbour in the same block", distance, blocks, n_permutations, rng),
    ]
    for name, attribute in (
        ("electronegativity", "X"),
        ("atomic radius", "atomic_radius"),
        ("Mendeleev number", "mendeleev_no"),
    ):
        values = _element_values(symbols, attribute)
        known = np.flatnonzero(np.isfinite(values))
        x, y, z = _part(distance, known), _differences(values[known]), _part(order, known)
        tests.append(mantel(f"cosine distance with difference of {name}", x, y, None, n_permutations, rng))
        if name != "electronegativity":
            tests.append(mantel("  with the order in a formula held fixed", x, y, z, n_permutations, rng))
    return tests


def _element_values(symbols: list[str], attribute: str) -> np.ndarray:
    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of elements without the property; these are nan
        found = [getattr(Element(symbol), attribute) for symbol in symbols]
    return np.array([np.nan if value is None else float(value) for value in found])


def _differences(values: np.ndarray | list[int]) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return np.abs(values[:, None] - values)


def _part(matrix: np.ndarray, index: np.ndarray) -> np.ndarray:
    return matrix[np.ix_(index, index)]


def space_group_tests(vectors: ClassVectors, n_permutations: int = 9999, seed: int = 0) -> list[PermutationTest]:
    """Nearest neighbours by crystal system, by centring, and by point group."""
    rng = np.random.default_rng(seed)
    groups = [space_group(int(number)) for number in vectors.values[vectors.met]]
    distance = 1 - vectors.similarity()
    kinds = {
        "crystal system": [group.crystal_system for group in groups],
        "centring": [group.symbol[0] for group in groups],
        "point group": [_point_group(group.rotations) for group in groups],
    }
    return [
        share_test(f"nearest neighbour with the same {name}", distance, np.array(labels), n_permutations, rng)
        for name, labels in kinds.items()
    ]


def _point_group(rotations: np.ndarray) -> str:
    """Point groups differ in how many rotations of each trace and determinant they have."""
    unique = np.unique(rotations.reshape(-1, 9), axis=0).reshape(-1, 3, 3)
    kinds = zip(np.trace(unique, axis1=1, axis2=2), np.rint(np.linalg.det(unique)).astype(int), strict=True)
    return str(sorted((int(trace), int(det)) for trace, det in kinds))


def number_similarities(vectors: ClassVectors) -> dict[str, float | None]:
    """Mean cosine of numbers next to each other, ten steps apart, and of all pairs; of x and 1 - x for coordinates.

    None where there is no such pair among the numbers met.
    """
    directions, values = vectors.directions, vectors.values[vectors.met]
    n = len(values)
    steps = np.rint(values / np.diff(vectors.values).min()).astype(int)  # (n,) multiples of the grid's step
    place = {step: i for i, step in enumerate(steps.tolist())}

    def mean_cosine(partner: np.ndarray) -> float | None:
        pairs = [(i, place[step]) for i, step in enumerate(partner.tolist()) if step in place]
        first, second = np.array([pair for pair in pairs if pair[0] != pair[1]], dtype=int).reshape(-1, 2).T
        return float((directions[first] * directions[second]).sum(axis=1).mean()) if len(first) else None

    total = float((directions.sum(axis=0) ** 2).sum())
    result = {"1_apart": mean_cosine(steps + 1), "10_apart": mean_cosine(steps + 10)}
    if vectors.name == "coordinate":
        result["x_and_1_minus_x"] = mean_cosine(round(1 / np.diff(vectors.values).min()) - steps)
    return result | {"all_pairs": (total - n) / (n * (n - 1))}


def embedding_table(summary: dict[str, Any]) -> str:
    """What `bin/extract_embeddings.py` prints of the summary of write_embeddings."""
    parts = [f"training structures that hold a token: {summary['counts_from']}"]
    for name, entry in summary["classes"].items():
        left_out = entry["n"] - entry["n_met"]
        rare = f"; {left_out} left out, in fewer than {summary['min_structures']} structures" if left_out else ""
        parts.append(f"\n{name}: {entry['n_met']} tokens{rare}")
        if tests := entry.get("tests"):
            rows = [[t["name"], t["n"], _two(t["value"]), _two(t["by_chance"]), f"{t['p']:.4f}"] for t in tests]
            parts.append(text_table(("", "tokens", "measured", "by chance", "p"), rows))
        else:
            pairs = [[key.replace("_", " "), _two(value)] for key, value in entry["mean_cosine"].items()]
            parts.append(text_table(("mean cosine", ""), pairs))
    return "\n".join(parts)


def _two(value: float | None) -> str:
    """Two decimals; never -0.00."""
    return "" if value is None else f"{round(value, 2) + 0.0:.2f}"
