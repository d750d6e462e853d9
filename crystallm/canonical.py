"""Crystal → the one description that the model reads: an asymmetric unit in a fixed setting, all free choices made.

The rule, in order: (1) the smallest cell among the changes of basis that keep the setting: smaller a, then b, then
c, then angles closer to 90°, then obtuse ones; (2) the smallest sequence of (element, Wyckoff letter) over the
sites; (3) along polar axes the origin lies on a site of the scarcest (element, letter); (4) the smallest sequence of
coordinates, each site given by its smallest equivalent point on the first representative of its position. All
comparisons are made on rounded numbers, so the rule is decided by what the text states and by nothing else.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable

import numpy as np

from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError, Site, round_to_steps, to_primitive
from crystallm.crystal import Crystal, formula_text, reduce_composition
from crystallm.space_groups import SpaceGroup, WyckoffPosition, space_group
from crystallm.symmetry import SymmetricSites, SymmetryError, find_symmetric_sites, has_space_group, identify_positions
from tokenizer.elements import ELEMENT_RANK, SYMBOLS

LENGTH_STEPS = 100  # per Å: lengths are multiples of 0.01 Å
ANGLE_STEPS = 10  # per degree
COORDINATE_STEPS = 1000  # per cell edge, where no other number is asked for
_MAX_ROUNDS = 4


def canonicalize(crystal: Crystal, coordinate_steps: int = COORDINATE_STEPS) -> AsymmetricUnit:
    """The canonical description. Raises CanonicalError ("symmetry", "not_representable", "unstable_symmetry").

    Symmetrising and rounding can lift a crystal into a supergroup; it is then described again, until the group that the
    text states is the group found in what it expands to. Another number of coordinate steps to the cell edge gives the
    canonical description on that grid, where rule (4) may choose differently.
    """
    if not 1 <= coordinate_steps <= 10**6:  # three coordinates are compared as one 64-bit integer
        raise ValueError(f"coordinate_steps must be from 1 to 1,000,000, got {coordinate_steps}")
    try:
        sites = find_symmetric_sites(crystal)
        seen = []
        for _ in range(_MAX_ROUNDS):
            unit = describe(sites, coordinate_steps)
            primitive = to_primitive(unit.to_crystal(), unit.group)
            seen.append(unit.group.symbol)
            if has_space_group(primitive, unit.group):
                return unit
            sites = find_symmetric_sites(primitive)
    except SymmetryError as err:
        raise CanonicalError("symmetry", str(err)) from err
    raise CanonicalError("unstable_symmetry", f"the group changes with each description: {' → '.join(seen)}")


def describe(sites: SymmetricSites, coordinate_steps: int = COORDINATE_STEPS) -> AsymmetricUnit:
    """The canonical description of symmetrised sites. Raises CanonicalError where a number leaves the vocabulary."""
    group = sites.group
    rank = np.array([ELEMENT_RANK[SYMBOLS[z - 1]] for z in sites.atomic_numbers])
    best: tuple | None = None
    for metric, points, letters in _reduced_descriptions(sites):
        candidate = _smallest_description(group, rank, points, letters, coordinate_steps)
        if best is None or candidate < best[0]:
            best = candidate, metric
    assert best is not None
    (_, rows), metric = best
    multiplicity = {p.letter: p.multiplicity for p in group.wyckoff}
    text_sites: list[Site] = []
    counts: dict[str, int] = {}
    for element, letter, code in rows:
        symbol, position = _symbol_of_rank()[element], group.wyckoff[letter]
        frac = position.coordinates(np.array(code) / coordinate_steps)
        steps = round_to_steps(frac, coordinate_steps) % coordinate_steps
        x, y, z = (steps / coordinate_steps).tolist()
        text_sites.append(Site(symbol, position.letter, (x, y, z)))
        counts[symbol] = counts.get(symbol, 0) + multiplicity[position.letter]
    formula, units = reduce_composition(counts)
    assert units % group.n_centring == 0
    cell = _tied_cell(group, metric)
    if not (all(1.0 <= x < 100.0 for x in cell[:3]) and all(10.0 <= x <= 170.0 for x in cell[3:])):
        raise CanonicalError(
            "not_representable", f"cell {cell} leaves the vocabulary: lengths 1.00-99.99 Å, angles 10.0-170.0°"
        )
    if units // group.n_centring > 999 or max(formula.values()) > 999:
        raise CanonicalError("not_representable", f"{formula_text(formula)} × {units}: a count above 999")
    return AsymmetricUnit(tuple(formula.items()), units // group.n_centring, group.number, cell, tuple(text_sites))


def _cell_parameters(metric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3, 3) metrics, Å² -> lengths (n, 3) in Å and angles (n, 3) in degrees."""
    lengths = np.sqrt(np.diagonal(metric, axis1=1, axis2=2))
    i, j = np.array([1, 0, 0]), np.array([2, 2, 1])
    cosines = metric[:, i, j] / (lengths[:, i] * lengths[:, j])
    return lengths, np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def _tied_cell(group: SpaceGroup, metric: np.ndarray) -> tuple[float, float, float, float, float, float]:
    """Rounded, and exact where the crystal system says what a length or an angle is."""
    lengths, angles = (values[0] for values in _cell_parameters(metric[None]))
    a_b_c = (round_to_steps(lengths, LENGTH_STEPS) / LENGTH_STEPS).tolist()
    for i, j in group.ties.equal_lengths:
        a_b_c[i] = a_b_c[j]
    rounded = (round_to_steps(angles, ANGLE_STEPS) / ANGLE_STEPS).tolist()
    alpha, beta, gamma = (
        value if tied is None else tied for tied, value in zip(group.ties.angles, rounded, strict=True)
    )
    return a_b_c[0], a_b_c[1], a_b_c[2], alpha, beta, gamma


def _cell_keys(metric: np.ndarray) -> np.ndarray:
    """(n, 3, 3) -> (n, 9) integers that rule (1) compares from left to right."""
    lengths, angles = _cell_parameters(metric)
    # 62.85° and 117.15° are one distance from 90°, also where rounding to 0.1° would take them apart.
    off_right = angles - 90.0
    return np.concatenate(
        [
            round_to_steps(lengths, LENGTH_STEPS),
            round_to_steps(np.abs(off_right), ANGLE_STEPS),
            off_right < -0.5 / ANGLE_STEPS,
        ],
        axis=1,
    )


def _smallest_rows(keys: np.ndarray) -> np.ndarray:
    """Indices of the rows that come first in lexicographic order, all of them where several are equal."""
    alive = np.arange(len(keys))
    for column in range(keys.shape[1]):
        values = keys[alive, column]
        alive = alive[values == values.min()]
        if len(alive) == 1:
            break
    return alive


@functools.cache
def _unimodular() -> np.ndarray:
    """(3480, 3, 3): the proper changes of basis with entries -1, 0, 1."""
    all_matrices = np.array(list(itertools.product((-1, 0, 1), repeat=9))).reshape(-1, 3, 3)
    return all_matrices[np.rint(np.linalg.det(all_matrices)).astype(int) == 1]


@functools.cache
def _basis_changes(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (n, 3, 3), each with a translation (n, 3), among which rule (1) chooses the cell."""
    if number <= 2:
        matrices = _unimodular()
        return matrices, np.zeros((len(matrices), 3))
    normaliser = space_group(number).normaliser
    _, first = np.unique(normaliser.rotations.reshape(-1, 9), axis=0, return_index=True)
    return normaliser.rotations[first], normaliser.translations[first]


def _reduced_descriptions(sites: SymmetricSites) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(metric, points, letters) in each of the cells that rule (1) ranks first; equal metrics after rounding."""
    group, metric, points, letters = sites.group, sites.metric_ang2, sites.points, sites.letters
    if group.number >= 75:  # the normaliser leaves these cells as they are
        yield metric, points, letters
        return
    changes, shifts = _basis_changes(group.number)
    inverse = np.rint(np.linalg.inv(changes)).astype(np.int64)
    while True:
        metrics = np.einsum("nji,jk,nkl->nil", inverse, metric, inverse)  # (n, 3, 3), Å²
        keys = _cell_keys(metrics)
        current = _cell_keys(metric[None])[0]
        first = _smallest_rows(keys)
        if tuple(keys[first[0]]) >= tuple(current):
            break
        m, t = changes[first[0]], shifts[first[0]]
        metric = metrics[first[0]]
        letters, points = identify_positions(group, points @ m.T + t, letters)
    for k in first:
        moved_letters, moved = identify_positions(group, points @ changes[k].T + shifts[k], letters)
        yield metrics[k], moved, moved_letters


@functools.cache
def _cell_keeping_cosets(number: int) -> np.ndarray:
    """Cosets of the normaliser that rule (1) leaves open: pure translations, and all where no cell is to be chosen."""
    normaliser = space_group(number).normaliser
    if number >= 75:
        return np.arange(len(normaliser.rotations))
    return np.flatnonzero((normaliser.rotations == np.eye(3, dtype=int)).all(axis=(1, 2)))


_Rows = list[tuple[int, int, tuple[int, int, int]]]


def _smallest_description(
    group: SpaceGroup, rank: np.ndarray, points: np.ndarray, letters: np.ndarray, n_steps: int
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], _Rows]:
    """Rules (2) to (4). Returns (comparison key, rows), rows being (element rank, letter index, coordinate steps)."""
    normaliser = group.normaliser
    cosets = _cell_keeping_cosets(group.number)
    new_letters = normaliser.letters[np.ix_(cosets, letters)]  # (n_cosets, n_sites)
    combined = rank * 32 + new_letters
    first = _smallest_rows(np.sort(combined, axis=1))
    cosets, new_letters, combined = cosets[first], new_letters[first], combined[first]

    # the sites in each description left, on the first representatives: (n_cosets, n_sites, 3)
    ops = normaliser.operations[cosets[:, None], letters]
    images = np.einsum("kij,sj->ksi", normaliser.rotations[cosets], points) + normaliser.translations[cosets][:, None]
    images = np.einsum("ksij,ksj->ksi", group.rotations[ops], images) + group.translations[ops]
    if normaliser.polar.any():
        images, new_letters, combined = _with_polar_origins(group, images, new_letters, combined)

    codes = np.zeros((len(images), len(rank)), np.int64)
    for s in range(len(rank)):
        for letter in np.unique(new_letters[:, s]):
            rows = np.flatnonzero(new_letters[:, s] == letter)
            codes[rows, s] = _point_codes(group.wyckoff[letter], images[rows, s], n_steps)
    order = np.lexsort((codes, combined), axis=1)
    keys = np.take_along_axis(codes, order, axis=1)
    winner = _smallest_rows(keys)[0]
    result: _Rows = []
    for s in order[winner]:
        code = int(codes[winner, s])
        split = (code // n_steps**2, code // n_steps % n_steps, code % n_steps)
        result.append((int(rank[s]), int(new_letters[winner, s]), split))
    key = (tuple(np.take_along_axis(combined, order, axis=1)[winner].tolist()), tuple(keys[winner].tolist()))
    return key, result


def _point_codes(position: WyckoffPosition, points: np.ndarray, n_steps: int) -> np.ndarray:
    """(n, 3) points of a position -> (n,) smallest code x·n² + y·n + z, in steps, of the equivalent points; fixed axes
    count 0.
    """
    if not position.free_axes:
        return np.zeros(len(points), np.int64)
    images = np.einsum("oij,nj->noi", position.stabiliser_rotations, points) + position.stabiliser_translations
    steps = round_to_steps(images, n_steps) % n_steps  # (n, n_images, 3)
    weights = np.array([n_steps**2, n_steps, 1]) * np.isin(np.arange(3), position.free_axes)
    return (steps @ weights).min(axis=1)


def _with_polar_origins(
    group: SpaceGroup, images: np.ndarray, letters: np.ndarray, combined: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each description once for each origin that rule (3) allows: (n, n_sites, 3), (n, n_sites), (n, n_sites)."""
    polar = group.normaliser.polar
    kinds, counts = np.unique(combined[0], return_counts=True)  # the same in every row
    scarcest = kinds[np.argmin(counts)]
    moved, which = [], []
    for k in range(len(images)):
        for s in np.flatnonzero(combined[k] == scarcest):
            position = group.wyckoff[letters[k, s]]
            starts = position.stabiliser_rotations @ images[k, s] + position.stabiliser_translations  # (n_images, 3)
            shifts = np.where(polar, starts, 0.0)
            shifts = shifts[np.unique(np.round(shifts % 1.0, 6) % 1.0, axis=0, return_index=True)[1]]
            moved.append(images[k][None] - shifts[:, None])
            which += [k] * len(shifts)
    return np.concatenate(moved), letters[which], combined[which]


@functools.cache
def _symbol_of_rank() -> dict[int, str]:
    return {rank: symbol for symbol, rank in ELEMENT_RANK.items()}
