"""Asymmetric units in and out of the diffusion model: primitive cell and orbits, and the unit with what came back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from crystallm.asymmetric_unit import AsymmetricUnit, primitive_basis
from crystallm.crystal import Crystal, Floats, Ints
from crystallm.refine.orbits import Orbits, primitive_with_orbits


@dataclass(frozen=True, eq=False)
class UnitCrystal:
    """What a canonical text states as a primitive cell; `atom` (n_sites,) is each site's atom in it."""

    unit: AsymmetricUnit
    crystal: Crystal
    orbits: Orbits
    atom: Ints

    @classmethod
    def of(cls, unit: AsymmetricUnit) -> UnitCrystal:
        """Raises CanonicalError for a unit that describes no crystal."""
        crystal, orbits = primitive_with_orbits(unit)
        inverse = np.linalg.inv(primitive_basis(unit.space_group_number))
        atoms = []
        for site in unit.sites:
            point = unit.group.position(site.letter).coordinates(np.array(site.frac)) @ inverse
            delta = crystal.frac_coords - point
            atoms.append(int(np.abs(delta - np.rint(delta)).max(axis=1).argmin()))
        return cls(unit, crystal, orbits, np.array(atoms))

    def with_result(self, lattice: Floats, frac_coords: Floats) -> AsymmetricUnit:
        """The unit with the sites and the cell of a primitive cell that kept the symmetry; coordinates unrounded.

        Sites keep their places modulo 1; what the group ties or fixes is restored exactly.
        """
        basis = primitive_basis(self.unit.space_group_number)
        moved = frac_coords[self.atom] - self.crystal.frac_coords[self.atom]
        moved = (moved - np.rint(moved)) @ basis  # (n_sites, 3) in fractions of the conventional cell
        sites = []
        for site, shift in zip(self.unit.sites, moved, strict=True):
            position = self.unit.group.position(site.letter)
            x, y, z = position.coordinates(position.coordinates(np.array(site.frac)) + shift).tolist()
            sites.append(replace(site, frac=(x, y, z)))
        cell: list[float] = Crystal(
            np.linalg.inv(basis) @ lattice, np.zeros((1, 3)), np.ones(1, dtype=np.int64)
        ).cell.tolist()  # only its cell is asked
        ties = self.unit.group.ties
        for later, first in ties.equal_lengths:
            cell[later] = cell[first]
        angles = [free if tied is None else tied for free, tied in zip(cell[3:], ties.angles, strict=True)]
        a, b, c, alpha, beta, gamma = (*cell[:3], *angles)
        return replace(self.unit, sites=tuple(sites), cell=(a, b, c, alpha, beta, gamma))
