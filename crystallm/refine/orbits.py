"""Which atoms move together: the free parameters of Wyckoff positions as linear maps of displacements.

In a crystal with a space group an atom moves only as its site symmetry lets it, and all atoms of an orbit follow the
first. Both are linear in the displacement: atom i moves by `displacement[leader[i]] @ follow[i]`, in fractions of the
cell; the site's own projection is part of the map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crystallm.asymmetric_unit import AsymmetricUnit, primitive_basis, to_primitive
from crystallm.crystal import Crystal, Floats, Ints
from crystallm.space_groups import SpaceGroup

TOLERANCE = 1e-3  # in fractions of an edge; the restored coordinates of an orbit agree to 1e-9


@dataclass(frozen=True, eq=False)
class Orbits:
    """Of a crystal of n atoms, in the basis of its cell (rows)."""

    leader: Ints  # (n,) index of the atom whose displacement decides
    follow: Floats  # (n, 3, 3)
    n_free: Ints  # (n,) directions in which the atom's site lets it move
    rotations: Floats  # (n_ops, 3, 3): fractional rows turn as frac @ rotation; the point group


def free_orbits(n_atoms: int) -> Orbits:
    """Every atom on its own, in every direction."""
    eye = np.eye(3)
    return Orbits(np.arange(n_atoms), np.broadcast_to(eye, (n_atoms, 3, 3)).copy(), np.full(n_atoms, 3), eye[None])


def primitive_with_orbits(unit: AsymmetricUnit) -> tuple[Crystal, Orbits]:
    """The primitive cell of what a canonical text states, and how its atoms move. Raises CanonicalError."""
    crystal = to_primitive(unit.to_crystal(), unit.group)
    return crystal, find_orbits(crystal, unit.group, primitive_basis(unit.space_group_number))


def find_orbits(crystal: Crystal, group: SpaceGroup, basis: Floats | None = None) -> Orbits:
    """The orbits of a crystal in the setting of `group`, whose cell is `basis` (rows) of the conventional one.

    Raises ValueError where the group's operations do not carry the crystal into itself.
    """
    basis = np.eye(3) if basis is None else basis
    inverse = np.linalg.inv(basis)
    _, first = np.unique(group.rotations.reshape(-1, 9), axis=0, return_index=True)  # one operation of each centring
    chosen = np.sort(first)  # the identity stays first
    rotations = basis @ group.rotations[chosen].transpose(0, 2, 1) @ inverse  # rows: x' = x @ rotation + shift
    shifts = group.translations[chosen] @ inverse  # (n_ops, 3)
    frac = crystal.frac_coords
    images = frac @ rotations + shifts[:, None, :]  # (n_ops, n, 3)
    delta = images[:, :, None, :] - frac[None, None, :, :]
    distance = np.abs(delta - np.rint(delta)).max(axis=-1)  # (n_ops, n, n)
    distance[:, crystal.atomic_numbers[:, None] != crystal.atomic_numbers[None, :]] = 1.0
    target = distance.argmin(axis=-1)  # (n_ops, n): where each operation takes each atom
    worst = float(distance.min(axis=-1).max())
    if worst > TOLERANCE:
        raise ValueError(
            f"{crystal.reduced_formula}: not symmetric under {group.symbol}, off by {worst:.3f} of an edge"
        )
    leader = target.min(axis=0)  # the first atom of the orbit
    follow, n_free = np.zeros((crystal.n_atoms, 3, 3)), np.zeros(crystal.n_atoms, dtype=np.int64)
    for atom in range(crystal.n_atoms):
        own = rotations[target[:, leader[atom]] == leader[atom]].mean(axis=0)  # projects on what its site lets free
        brings = int((target[:, leader[atom]] == atom).argmax())
        follow[atom], n_free[atom] = own @ rotations[brings], round(float(np.trace(own)))
    return Orbits(leader, follow, n_free, rotations)
