"""Which atoms are bonded, as pymatgen's CrystalNN answers, and CrystaLLM's rule on how long a bond may be.

CrystalNN (Pan et al., Inorg. Chem. 60, 1590, 2021) weighs the faces of each atom's Voronoi cell. pymatgen builds one
tessellation for each site, in four dimensions; here the cell is the polar dual of a convex hull of some hundred points
in three, and all sites of a crystal are weighed at once: 40 times faster, the same neighbours.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystallm.crystal import Crystal
from crystallm.geometry import neighbour_pairs, shortest_distances
from crystallm.records import CIFRecord
from tokenizer.elements import SYMBOLS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SEARCH_CUTOFF_ANG = 7.0  # CrystalNN's defaults, all of them
DISTANCE_CUTOFFS_ANG = (0.5, 1.0)
ELECTRONEGATIVITY_WEIGHT = 3.0
MAX_DENSITY_PER_ANG3 = 10.0  # atoms; the densest solids have 0.2. Beyond, a 7 Å sphere holds more than 14,000

IONIC_DIFFERENCE = 1.7  # electronegativities that differ by as much make an ionic bond
BOND_RATIOS = (0.68, 1.32)  # a good bond's length over the expected one
MAX_HYDROGEN_RATIO = 2.5


class BondError(ValueError):
    """The neighbours or radii that the rule needs cannot be had."""


@dataclass(frozen=True, eq=False)
class ElementData:
    """pymatgen's numbers by atomic number, (119,) each; nan where it has none."""

    electronegativity: Floats
    atomic_radius: Floats
    cationic_radius: Floats  # means over the ions that are tabulated; 0 where none is
    anionic_radius: Floats
    crystal_nn_radius: Floats  # covalent, else atomic


@functools.cache
def element_data() -> ElementData:
    import warnings

    from pymatgen.analysis.molecule_structure_comparator import CovalentRadius  # as local_env does, in half the time
    from pymatgen.core import Element

    columns = np.full((5, len(SYMBOLS) + 1), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "no electronegativity for He"
        for z, symbol in enumerate(SYMBOLS, start=1):
            element = Element(symbol)
            atomic = element.atomic_radius
            columns[:, z] = [
                element.X,
                np.nan if atomic is None else atomic,
                element.average_cationic_radius,
                element.average_anionic_radius,
                CovalentRadius.radius.get(symbol, np.nan if atomic is None else atomic),
            ]
    columns.flags.writeable = False
    return ElementData(*columns)


class Faces(NamedTuple):
    """Faces of the Voronoi cells: face f of site `site[f]` lies between it and an image of site `neighbour[f]`."""

    site: Ints
    neighbour: Ints
    distance: Floats  # Å, between the two atoms
    area: Floats  # Å²
    solid_angle: Floats  # seen from the site


def voronoi_faces(crystal: Crystal) -> Faces:
    """Of all sites. The cell is built from the atoms within 7 Å, or twice that, ..., where those do not enclose it."""
    if crystal.n_atoms > MAX_DENSITY_PER_ANG3 * crystal.volume_ang3:
        raise BondError(f"{crystal.n_atoms} atoms in {crystal.volume_ang3:.3g} Å³ are too many for a neighbour search")
    corners = np.array([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]]) @ crystal.lattice
    max_cutoff = float(np.linalg.norm(corners, axis=1).max()) + 0.01
    cutoff = SEARCH_CUTOFF_ANG
    while True:
        faces = _faces_within(crystal, cutoff)
        if faces is not None:
            return faces
        if cutoff >= max_cutoff:
            raise BondError(f"a Voronoi cell is not closed by the atoms within {cutoff:.1f} Å")
        cutoff = min(2 * cutoff, max_cutoff + 0.001)


def _faces_within(crystal: Crystal, cutoff_ang: float) -> Faces | None:
    """None where a cell stays open.

    Voronoi cell = {x: x·p <= |p|²/2 for each neighbour p}. With q = p/|p|², its corners are n/(2d) for the faces
    {q: n·q = d} of the convex hull of the q, its faces belong to the corners of that hull, and its edges to the edges.
    """
    i, j, image, distance = neighbour_pairs(crystal.lattice, crystal.frac_coords, cutoff_ang)
    if not len(i):
        return None
    if distance.min() < 1e-3:
        raise BondError("two atoms at one place")
    vectors = (crystal.frac_coords[j] + image - crystal.frac_coords[i]) @ crystal.lattice  # (n_pairs, 3), Å
    dual = vectors / (distance**2)[:, None]
    starts = np.searchsorted(i, np.arange(crystal.n_atoms + 1))
    edge_pairs, edge_ends, corners = [], [], []  # of all cells, numbered through
    n_corners = 0
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        hull = _hull(dual[start:end])
        if hull is None:
            return None
        simplices, neighbours, equations = hull
        # Edge k of simplex s lies opposite its corner k and is shared with simplex neighbours[s, k]: taken once.
        s, k = np.nonzero(np.arange(len(simplices))[:, None] < neighbours)
        edge_pairs.append(start + np.stack([simplices[s, k - 1], simplices[s, k - 2]]))
        edge_ends.append(n_corners + np.stack([s, neighbours[s, k]]))
        corners.append(equations[:, :3] / (-2 * equations[:, 3:]))
        n_corners += len(simplices)
    corner = np.concatenate(corners)  # (n_corners, 3), Å from the site
    pair, ends = np.concatenate(edge_pairs, axis=1), np.concatenate(edge_ends, axis=1)
    pair, ends = pair.reshape(-1), np.tile(ends, 2)  # each edge bounds two faces
    faces, one_edge, edge_face = np.unique(pair, return_index=True, return_inverse=True)
    apex = corner[ends[0, one_edge]][edge_face]  # a corner of the face, from which it is cut into triangles
    first, second = corner[ends[0]], corner[ends[1]]
    area = 0.5 * np.linalg.norm(np.cross(first - apex, second - apex), axis=1)
    angle, n_faces = _solid_angle(apex, first, second), len(faces)
    return Faces(
        site=i[faces],
        neighbour=j[faces],
        distance=distance[faces],
        area=np.bincount(edge_face, weights=area, minlength=n_faces).astype(np.float64),
        solid_angle=np.bincount(edge_face, weights=angle, minlength=n_faces).astype(np.float64),
    )


def _hull(points: Floats) -> tuple[Ints, Ints, Floats] | None:
    from scipy.spatial import ConvexHull, QhullError

    if len(points) < 4:
        return None
    try:
        hull = ConvexHull(points)
    except QhullError:  # all in one plane
        return None
    if (hull.equations[:, 3] > -1e-9).any():  # the origin, the site, is not inside
        return None
    return hull.simplices, hull.neighbors, hull.equations


def _solid_angle(a: Floats, b: Floats, c: Floats) -> Floats:
    """(n,) of the triangles seen from the origin: van Oosterom and Strackee 1983."""
    la, lb, lc = (np.linalg.norm(v, axis=1) for v in (a, b, c))
    ab, ac, bc = (np.einsum("ij,ij->i", u, v) for u, v in ((a, b), (a, c), (b, c)))
    volume = np.abs(np.einsum("ij,ij->i", a, np.cross(b, c)))
    return 2 * np.arctan2(volume, la * lb * lc + ab * lc + ac * lb + bc * la)


def crystal_nn(crystal: Crystal) -> tuple[Ints, Ints, Floats]:
    """The bonds (site, neighbour, length in Å to that image), each seen from both its ends."""
    faces = voronoi_faces(crystal)
    data, z = element_data(), crystal.atomic_numbers
    order = np.argsort(faces.site, kind="stable")
    site, neighbour = faces.site[order], faces.neighbour[order]
    distance, area, angle = faces.distance[order], faces.area[order], faces.solid_angle[order]
    starts = np.searchsorted(site, np.arange(crystal.n_atoms))

    def share_of_largest(weight: Floats) -> Floats:
        return weight / np.maximum.reduceat(weight, starts)[site]

    with np.errstate(divide="ignore", invalid="ignore"):
        # Divided by the area, faces of an open structure's far neighbours do not count for more than near ones.
        weight = np.where(area > 1e-12, share_of_largest(angle) * angle / area, 0.0)
    x = data.electronegativity[z]
    difference = np.abs(x[site] - x[neighbour])
    weight *= 1 + ELECTRONEGATIVITY_WEIGHT * np.sqrt(np.nan_to_num(difference) / 3.3)
    radius = data.crystal_nn_radius[z]
    if np.isnan(radius).any():
        raise BondError(f"no radius is known for {SYMBOLS[z[np.isnan(radius)][0] - 1]}")
    low, high = ((radius[site] + radius[neighbour]) + cutoff for cutoff in DISTANCE_CUTOFFS_ANG)
    fade = 0.5 * (1 + np.cos(np.clip((distance - low) / (high - low), 0, 1) * math.pi))
    weight = np.round(share_of_largest(weight) * fade, 3).astype(np.float64)

    order = np.lexsort([-weight, site])
    site, neighbour, distance, weight = site[order], neighbour[order], distance[order], weight[order]
    bonded = _likeliest_shell(weight, starts)
    return site[bonded], neighbour[bonded], distance[bonded]


def _likeliest_shell(weight: Floats, starts: Ints) -> NDArray[np.bool_]:
    """Which neighbours belong to the likeliest coordination number of their site.

    `weight` falls within each site's run. The first n neighbours, all of a weight above that of the next, have the
    probability area(weight of the last) - area(weight of the next) under a quarter circle; none has the rest.
    """
    quarter = 0.25 * math.pi
    area = 0.5 * (weight * np.sqrt(1 - weight**2) + np.arcsin(weight)) / quarter
    ends = np.append(starts[1:], len(weight))
    following = np.append(area[1:], 0.0)
    following[ends - 1] = 0.0
    probability = area - following
    bonded = np.zeros(len(weight), dtype=bool)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        last = start + int(np.argmax(probability[start:end]))
        if probability[last] >= 1 - area[start]:
            bonded[start : last + 1] = weight[start : last + 1] > 0
    return bonded


def bond_ratios(crystal: Crystal) -> tuple[Ints, Ints, Floats]:
    """CrystaLLM's bonds (site, neighbour) with the length over what the radii lead to expect.

    As published: the length is that of the shortest contact of the two sites, and bonds of a site to its own images
    do not count.
    """
    site, neighbour, _ = crystal_nn(crystal)
    different = site != neighbour
    site, neighbour = site[different], neighbour[different]
    length = shortest_distances(crystal.lattice, crystal.frac_coords)[site, neighbour]
    data, first, second = element_data(), crystal.atomic_numbers[site], crystal.atomic_numbers[neighbour]
    x_first, x_second = data.electronegativity[first], data.electronegativity[second]
    cation, anion = np.where(x_first < x_second, first, second), np.where(x_first < x_second, second, first)
    expected = np.where(
        np.abs(x_first - x_second) >= IONIC_DIFFERENCE,
        data.cationic_radius[cation] + data.anionic_radius[anion],
        data.atomic_radius[first] + data.atomic_radius[second],
    )
    bad = np.isnan(expected) | (expected == 0)
    if bad.any():
        pair = "-".join(SYMBOLS[z - 1] for z in (first[bad][0], second[bad][0]))
        raise BondError(f"no radii are known for the bond {pair}")
    return site, neighbour, length / expected


def check_bonds(record: CIFRecord) -> str | None:
    """CrystaLLM's rule: every bond between 0.68 and 1.32 of the sum of the radii, with H below 2.5."""
    crystal = record.crystal
    assert crystal is not None
    try:
        site, neighbour, ratio = bond_ratios(crystal)
    except BondError as err:
        return str(err)
    z = crystal.atomic_numbers
    hydrogen = (z[site] == 1) | (z[neighbour] == 1)
    good = np.where(hydrogen, ratio < MAX_HYDROGEN_RATIO, (ratio > BOND_RATIOS[0]) & (ratio < BOND_RATIOS[1]))
    if good.all():
        return None
    worst = int(np.argmax(np.where(good, 0, np.abs(np.log(ratio)))))
    pair = "-".join(SYMBOLS[z[k] - 1] for k in (site[worst], neighbour[worst]))
    return f"{int((~good).sum())} of {len(good)} bonds are off, the worst {pair} at {ratio[worst]:.2f} of its due"
