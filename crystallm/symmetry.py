"""A crystal's space group (found by moyo and spglib) and its sites as Wyckoff positions, in the setting of
crystallm.space_groups.
"""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass

import moyopy
import numpy as np
import spglib

from crystallm.crystal import Crystal
from crystallm.space_groups import SpaceGroup, space_group, wrap

SYMPREC_ANG = 0.1
os.environ.setdefault("SPGLIB_WARNING", "OFF")  # what its C code would print is returned or raised here


class SymmetryError(ValueError):
    """No space group was found, or the sites do not fit the one found."""


@dataclass(frozen=True, eq=False)
class SymmetricSites:
    """One point for each set of equivalent atoms, symmetrised; the cell is given by its metric."""

    group: SpaceGroup
    metric_ang2: np.ndarray  # (3, 3) float64, metric[i, j] = a_i · a_j of the conventional cell, Å²
    atomic_numbers: np.ndarray  # (n_sites,) int64
    letters: np.ndarray  # (n_sites,) int64: index of the Wyckoff position
    points: np.ndarray  # (n_sites, 3) float64, on the first representative of the position
    moved_ang: float  # largest displacement by the symmetrisation, Å
    site_of_atom: np.ndarray  # (n_atoms,) int64: which of the sites each atom of the crystal belongs to


def find_space_group(crystal: Crystal, symprec: float = SYMPREC_ANG) -> SpaceGroup:
    """The space group at a tolerance of `symprec` Å. Raises SymmetryError where none is found."""
    return _find(crystal, symprec).group


def has_space_group(crystal: Crystal, group: SpaceGroup, symprec: float = SYMPREC_ANG) -> bool:
    """Whether `find_space_group` finds this group in a crystal that has its operations exactly."""
    loose = _moyo(crystal, 1.2 * symprec)
    if loose is not None and loose.number == group.number:
        return True  # a stricter tolerance cannot find less than the exact operations
    return find_space_group(crystal, symprec).number == group.number


@dataclass(frozen=True, eq=False)
class _Found:
    group: SpaceGroup
    linear: np.ndarray  # (3, 3) and
    shift: np.ndarray  # (3,): x_standard = linear @ x + shift
    orbits: np.ndarray  # (n_atoms,): equal numbers for equivalent atoms


def _find(crystal: Crystal, symprec: float) -> _Found:
    """What spglib finds, mostly without asking it.

    moyo takes 0.4 ms where spglib takes 3.8 ms (mean over Materials Project). Its answer is used where it is the same
    at a fifth and at six fifths of the tolerance: of 2,500 crystals 97 % are of this kind, and spglib named another
    group for 2 of them. On the others the two programs differ now and then, and spglib decides. (At one and a half
    times the tolerance there was no disagreement, but moyo 0.21 does not return from mp-1174529.)
    """
    strict, loose = _moyo(crystal, 0.2 * symprec), _moyo(crystal, 1.2 * symprec)
    if strict is not None and loose is not None and strict.number == loose.number:
        linear = np.linalg.inv(np.array(strict.std_linear))
        shift = -linear @ np.array(strict.std_origin_shift)
        return _Found(space_group(strict.number), linear, shift, np.array(strict.orbits))
    try:
        found = spglib.get_symmetry_dataset(
            (crystal.lattice, crystal.frac_coords, crystal.atomic_numbers), symprec=symprec
        )
    except spglib.SpglibError as err:
        raise SymmetryError(f"spglib finds no space group at symprec {symprec} Å: {err}") from err
    if found is None:
        raise SymmetryError(f"spglib finds no space group at symprec {symprec} Å")
    group = space_group(int(found.number))
    shift = found.origin_shift + group.default_origin_shift
    return _Found(group, found.transformation_matrix, shift, found.crystallographic_orbits)


def _moyo(crystal: Crystal, symprec: float) -> moyopy.MoyoDataset | None:
    _quiet_moyo()
    cell = moyopy.Cell(crystal.lattice.tolist(), crystal.frac_coords.tolist(), crystal.atomic_numbers.tolist())
    try:
        return moyopy.MoyoDataset(cell, symprec=symprec, setting=moyopy.Setting.standard())
    except ValueError:  # no group at this tolerance: spglib is asked
        return None


@functools.cache
def _quiet_moyo() -> None:
    """moyo logs a warning for each supercell, about operations that are not used here."""
    logging.getLogger("moyo").setLevel(logging.ERROR)


def find_symmetric_sites(crystal: Crystal, symprec: float = SYMPREC_ANG) -> SymmetricSites:
    """Cell and sites in the standard setting, averaged over the operations found.

    The averages run over all equivalent atoms and all operations, so they do not depend on how the crystal was
    described (spglib's own `std_positions` start from one atom of each orbit). Raises SymmetryError.
    """
    if np.linalg.det(crystal.lattice) < 0:  # a left-handed basis describes the same crystal as its negative
        crystal = Crystal(-crystal.lattice, -crystal.frac_coords, crystal.atomic_numbers)
    found = _find(crystal, symprec)
    group = found.group
    lattice = np.linalg.inv(found.linear).T @ crystal.lattice  # (3, 3), Å, of the standard cell
    w = group.rotations
    metric = np.einsum("nji,jk,nkl->il", w, lattice @ lattice.T, w) / len(w)

    points = crystal.frac_coords @ found.linear.T + found.shift  # (n_atoms, 3)
    cells = abs(np.linalg.det(found.linear))  # volume of the given cell in conventional cells
    atomic_numbers, letters, representatives, moved = [], [], [], 0.0
    orbits, site_of_atom = np.unique(found.orbits, return_inverse=True)
    for first in orbits:
        members = np.flatnonzero(found.orbits == first)
        multiplicity = round(len(members) / cells)
        if multiplicity == 0 or len(w) % multiplicity:
            count = f"{len(members) / cells:.3f}"
            raise SymmetryError(
                f"{group.symbol}: {count} equivalent atoms in a cell do not fit its {len(w)} operations"
            )
        start = points[members[0]]
        images = np.einsum("nij,mj->mni", w, points[members]) + group.translations  # (n_members, n_ops, 3)
        delta = images - start
        delta -= np.rint(delta)
        squared = np.einsum("mni,ij,mnj->mn", delta, metric, delta)
        n_fixing = len(w) // multiplicity  # operations that carry each member to the start
        nearest = np.argpartition(squared, n_fixing - 1, axis=1)[:, :n_fixing]
        mean = np.take_along_axis(delta, nearest[:, :, None], axis=1).mean(axis=(0, 1))
        representative = start + mean
        moved = max(moved, float(np.sqrt(np.take_along_axis(squared, nearest, axis=1).max())))
        letter, point = _identify(group, representative, multiplicity)
        atomic_numbers.append(crystal.atomic_numbers[members[0]])
        letters.append(letter)
        representatives.append(point)
    return SymmetricSites(
        group,
        metric,
        np.array(atomic_numbers),
        np.array(letters),
        np.array(representatives).reshape(-1, 3),
        moved,
        site_of_atom,
    )


def _identify(group: SpaceGroup, point: np.ndarray, multiplicity: int) -> tuple[int, np.ndarray]:
    """Index of the Wyckoff position that a point lies on, and the equivalent point on its first representative."""
    general = group.wyckoff[-1]
    if multiplicity == general.multiplicity:
        return general.index, wrap(point)
    images = group.rotations @ point + group.translations  # (n_ops, 3)
    for position in group.wyckoff:
        if position.multiplicity == multiplicity:
            holds = position.holds(images)
            if holds.any():
                return position.index, position.coordinates(images[np.argmax(holds)])
    place = np.round(point, 4).tolist()
    raise SymmetryError(f"{group.symbol}: no Wyckoff position of multiplicity {multiplicity} at {place}")


def identify_positions(group: SpaceGroup, points: np.ndarray, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_identify`, for sites whose multiplicities are those of `letters` (in another cell of the same group)."""
    found = [
        _identify(group, point, group.wyckoff[letter].multiplicity)
        for point, letter in zip(points, letters, strict=True)
    ]
    return np.array([letter for letter, _ in found]), np.array([point for _, point in found])
