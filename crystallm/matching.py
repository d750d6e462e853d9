"""pymatgen's StructureMatcher, its RMS distance and its verdict, at a fraction of the cost: crystals are reduced once.

    reduced = reduce_crystal(reference)
    rms_of_reduced(reduce_crystal(predicted), reduced)  # nan where they do not match
    fits(reduce_crystal(predicted), reduced, SAME)  # as StructureMatcher().fit

The same number as `StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3).get_rms_dist(predicted, reference)[0]`, step by
step its algorithm (primitive Niggli cells of equal volume, all mappings of one lattice on the other, all translations
that carry an atom of the rarest element to one of its kind), with pymatgen's own compiled routines for the sites.
What pymatgen does again for each pair (copying structures, looking reduced ones up in a cache that compares them site
by site, building a Lattice for each mapping) is done once or on arrays.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystallm.crystal import Crystal
from crystallm.interop import to_structure

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Tolerances(NamedTuple):
    """StructureMatcher's."""

    stol: float  # of a site, in units of (volume / n_atoms) ** (1/3)
    angle_tol: float  # degrees
    ltol: float  # share of an edge


PUBLISHED = Tolerances(0.5, 10.0, 0.3)  # of the published tables of structure prediction
SAME = Tolerances(0.3, 5.0, 0.2)  # its defaults, by which uniqueness, novelty and duplicates are counted
_GOOD_ENOUGH = 1e-5  # StructureMatcher looks no further below this
_TRIPLES_AT_ONCE = 4_000_000
_PRIMITIVE_TOLERANCE = 0.25  # Å, get_primitive_structure's own


@dataclass(frozen=True, eq=False)
class Reduced:
    """A crystal in its primitive Niggli cell, as StructureMatcher compares it."""

    lattice: Floats  # (3, 3), Å
    frac_coords: Floats  # (n_atoms, 3)
    atomic_numbers: Ints  # (n_atoms,)
    volume: float  # Å^3

    @functools.cached_property
    def parameters(self) -> tuple[Floats, Floats]:
        """Lengths (3,) in Å and angles (3,) in degrees."""
        lengths, angles = _parameters(self.lattice[None])
        return lengths[0], angles[0]

    @functools.cached_property
    def counts(self) -> dict[int, int]:
        return _counts(self.atomic_numbers)


def _counts(atomic_numbers: Ints) -> dict[int, int]:
    numbers, counts = np.unique(atomic_numbers, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def reduce_crystal(crystal: Crystal) -> Reduced:
    niggli = reduce_primitive(crystal)
    if not _may_be_centred(niggli.parameters[0], niggli.frac_coords, niggli.atomic_numbers):
        return niggli
    whole = Crystal(niggli.lattice, niggli.frac_coords, niggli.atomic_numbers)
    structure = to_structure(whole).get_primitive_structure()
    lattice, numbers = structure.lattice, np.array(structure.atomic_numbers)
    return Reduced(np.array(lattice.matrix), structure.frac_coords, numbers, float(lattice.volume))


def reduce_primitive(crystal: Crystal) -> Reduced:
    """Of a crystal in a primitive cell."""
    from pymatgen.core import Lattice

    # spglib's would take 0.01 ms in place of 0.7; but a symmetric lattice has several Niggli cells, and which of them
    # is taken changes the distance of two crystals that are far apart.
    lattice = Lattice(crystal.lattice).get_niggli_reduced_lattice()
    frac_coords = crystal.cart_coords @ np.linalg.inv(lattice.matrix)
    frac_coords -= np.floor(frac_coords)
    return Reduced(np.array(lattice.matrix), frac_coords, crystal.atomic_numbers, float(lattice.volume))


def _may_be_centred(lengths: Floats, frac_coords: Floats, atomic_numbers: Ints) -> bool:
    """False where get_primitive_structure can find no smaller cell: most crystals, at a tenth of the time.

    It looks for vectors between atoms of the rarest element that carry every atom to within 0.5 Å of one of its kind.
    """
    groups = [frac_coords[atomic_numbers == number] for number in np.unique(atomic_numbers)]
    formula_units = math.gcd(*map(len, groups))
    if formula_units == 1:
        return False
    tolerance = 2 * _PRIMITIVE_TOLERANCE / lengths + 1e-9
    if tolerance.max() >= 1 / formula_units:
        return True  # a fraction of a cell edge is within the tolerance of no shift at all
    rarest = min(groups, key=len)
    shifts = rarest[1:] - rarest[0]
    for group in groups:
        between = group[None, :, :] - group[:, None, :]
        delta = between[None] - shifts[:, None, None, :]  # (n_shifts, n, n, 3)
        shifts = shifts[(np.abs(delta - np.rint(delta)) <= tolerance).all(axis=3).any(axis=2).all(axis=1)]
    return len(shifts) > 0


def distance_to(predicted: Crystal, reference: Reduced) -> float:
    """`rms_of_reduced` of a crystal that need not be reduced where it cannot match."""
    multiple, rest = divmod(predicted.n_atoms, len(reference.atomic_numbers))  # a primitive cell divides the cell
    if rest or _counts(predicted.atomic_numbers) != {z: n * multiple for z, n in reference.counts.items()}:
        return math.nan
    return rms_of_reduced(reduce_crystal(predicted), reference)


def rms_of_reduced(predicted: Reduced, reference: Reduced) -> float:
    """In units of (volume / n_atoms) ** (1/3); nan where they do not match."""
    best = math.inf
    for distances in _site_distances(predicted, reference, PUBLISHED):
        best = min(best, math.sqrt((distances**2).mean()))
        if best < _GOOD_ENOUGH:
            break
    return best if best < PUBLISHED.stol else math.nan


def fits(predicted: Reduced, reference: Reduced, tolerances: Tolerances) -> bool:
    """Whether they are the same crystal: `StructureMatcher.fit`, which asks of every site to be closer than stol.

    As there, the order of the two may decide at the edge of a tolerance.
    """
    return any(distances.max() < tolerances.stol for distances in _site_distances(predicted, reference, tolerances))


def _site_distances(predicted: Reduced, reference: Reduced, tolerances: Tolerances) -> Iterator[Floats]:
    """For each mapping of one crystal on the other: how far (n_atoms,) the sites are apart at the best translation.

    Where several pairings of the sites cost the same, rounding decides among them; so the operations are pymatgen's.
    """
    from pymatgen.core import Lattice
    from pymatgen.util.coord_cython import is_coord_subset_pbc, pbc_shortest_vectors
    from scipy.optimize import linear_sum_assignment

    if predicted.counts != reference.counts:  # StructureMatcher tries no supercells unless asked
        return
    n_atoms = len(reference.atomic_numbers)
    ratio = (reference.volume / predicted.volume) ** (1 / 6)
    first = predicted.lattice * ratio
    lengths, angles = reference.parameters[0] / ratio, reference.parameters[1]
    cart_coords = predicted.frac_coords @ first
    mask = (reference.atomic_numbers[:, None] != predicted.atomic_numbers[None, :]).astype(np.int64)
    anchor = int(np.argmax(mask.sum(axis=1)))  # an atom of the rarest element
    starts = np.flatnonzero(mask[anchor] == 0)
    reference_frac = np.ascontiguousarray(reference.frac_coords)
    for aligned in _lattice_mappings(first, lengths, angles, tolerances):
        frac = cart_coords @ np.linalg.inv(aligned)  # (n_mappings, n_atoms, 3)
        frac -= np.floor(frac)
        aligned_lengths, aligned_angles = _parameters(aligned)
        average = _lattices((aligned_lengths + lengths) / 2, (aligned_angles + angles) / 2)
        inverse_lengths = np.linalg.norm(np.linalg.inv(average), axis=1)  # (n_mappings, 3) of the reciprocal lattice
        normalization = (n_atoms / np.abs(np.linalg.det(average))) ** (1 / 3)
        frac_tol = 2 * tolerances.stol * inverse_lengths / normalization[:, None]
        for k in range(len(aligned)):
            lattice, lll_frac_tol = None, None
            for start in starts:
                moved = reference_frac + (frac[k, start] - reference_frac[anchor])
                if not is_coord_subset_pbc(moved, frac[k], frac_tol[k], mask):
                    continue
                if lattice is None:
                    lattice = Lattice(average[k])
                    inverse = np.linalg.inv(lattice.lll_matrix)
                    lll_frac_tol = 2 * tolerances.stol * np.linalg.norm(inverse, axis=0) / normalization[k]
                vectors, squares = pbc_shortest_vectors(lattice, moved, frac[k], mask, True, lll_frac_tol)
                shifts = vectors[linear_sum_assignment(squares)]
                shifts -= shifts.mean(axis=0)  # the best translation
                yield np.sqrt((shifts**2).sum(axis=1)) * normalization[k]


def _lattice_mappings(first: Floats, lengths: Floats, angles: Floats, tolerances: Tolerances) -> Iterator[Floats]:
    """Cells of the lattice `first` within the tolerances of a cell's lengths (Å) and angles (degrees).

    Yields them, some at a time: (n, 3, 3), Å.
    """
    reach = 1 + tolerances.ltol
    radius = lengths.max() * reach
    counts = np.floor(radius * np.linalg.norm(np.linalg.inv(first), axis=0) + 1e-9).astype(int)
    points = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in counts), indexing="ij"), -1).reshape(-1, 3)
    vectors = points @ first
    norms = np.sqrt((vectors**2).sum(axis=1))
    edges = []  # candidates for a, b, c: points (n, 3), vectors (n, 3), norms (n,)
    for length in lengths:
        share = norms / length
        near = np.flatnonzero((share < reach) & (share > 1 / reach))
        edges.append((points[near], vectors[near], norms[near]))
    if not all(len(near) for _, _, near in edges):
        return

    def between(i: int, j: int) -> Floats:
        cosines = (edges[i][1] @ edges[j][1].T) / edges[i][2][:, None] / edges[j][2]
        return np.degrees(np.arccos(np.clip(cosines, -1, 1)))

    near_alpha, near_beta, near_gamma = (
        np.abs(between(*pair) - wanted) <= tolerances.angle_tol
        for pair, wanted in zip(((1, 2), (0, 2), (0, 1)), angles, strict=True)
    )
    step = max(1, _TRIPLES_AT_ONCE // max(1, near_alpha.size))
    for start in range(0, len(near_gamma), step):
        part = slice(start, start + step)
        i, j, k = np.nonzero(near_gamma[part, :, None] & near_beta[part, None, :] & near_alpha[None])
        i += start
        scale = np.stack([edges[0][0][i], edges[1][0][j], edges[2][0][k]], axis=1)
        unimodular = np.abs(_determinants(scale)) == 1
        if unimodular.any():
            aligned = np.stack([edges[0][1][i], edges[1][1][j], edges[2][1][k]], axis=1)
            yield aligned[unimodular]


def _determinants(matrices: Ints) -> Ints:
    a, b, c = matrices[:, 0], matrices[:, 1], matrices[:, 2]
    determinants: Ints = (np.cross(a, b) * c).sum(axis=1)
    return determinants


def _parameters(lattices: Floats) -> tuple[Floats, Floats]:
    """(n, 3, 3) -> lengths (n, 3) in Å and angles (n, 3) in degrees."""
    lengths = np.sqrt((lattices**2).sum(axis=2))
    following, last = [1, 2, 0], [2, 0, 1]
    products = (lattices[:, following] * lattices[:, last]).sum(axis=2)
    cosines = products / (lengths[:, following] * lengths[:, last])
    return lengths, np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def _lattices(lengths: Floats, angles: Floats) -> Floats:
    """(n, 3), (n, 3) in Å and degrees -> (n, 3, 3), with c along z, as pymatgen lays a cell."""
    (a, b, c), radians = lengths.T, np.radians(angles)
    (cos_a, cos_b, cos_g), (sin_a, sin_b, _) = np.cos(radians).T, np.sin(radians).T
    gamma_star = np.arccos(np.clip((cos_a * cos_b - cos_g) / (sin_a * sin_b), -1, 1))
    zero = np.zeros_like(a)
    rows = [
        np.stack([a * sin_b, zero, a * cos_b], axis=1),
        np.stack([-b * sin_a * np.cos(gamma_star), b * sin_a * np.sin(gamma_star), b * cos_a], axis=1),
        np.stack([zero, zero, c], axis=1),
    ]
    return np.stack(rows, axis=1)
