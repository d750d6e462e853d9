"""Crystals to and from pymatgen and ASE, and the file formats that they own. Both are slow to import, so on use."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from crystallm.cif import CIFError
from crystallm.crystal import Crystal

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


def from_structure(structure: Structure) -> Crystal:
    """From pymatgen. CIFError ("partial_occupancy") for disorder, ("vacancy", "unknown_element") for other species."""
    numbers = []
    for i, site in enumerate(structure):
        species = dict(site.species)
        if len(species) != 1 or abs(sum(species.values()) - 1) > 1e-3:
            raise CIFError("partial_occupancy", f"site {i} is {site.species_string}; wanted one whole atom a site")
        (specie,) = species
        number = getattr(specie, "Z", None)
        if not isinstance(number, int) or type(specie).__name__ == "DummySpecies":
            raise CIFError("unknown_element", f"site {i} is {specie}; wanted an element")
        numbers.append(number)
    if not numbers:
        raise CIFError("no_atoms", "the structure holds no atoms")
    return Crystal(structure.lattice.matrix, structure.frac_coords, np.array(numbers))


def to_structure(crystal: Crystal) -> Structure:
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(crystal.lattice), crystal.symbols, crystal.frac_coords)


def from_atoms(atoms: Atoms) -> Crystal:
    """From ASE. CIFError where it is not periodic in three directions, or disordered (its info["occupancy"])."""
    if not atoms.cell.rank == 3:
        raise CIFError("no_cell", f"the cell is {atoms.cell.tolist()}; wanted three vectors that span a volume")
    if not atoms.pbc.all():
        raise CIFError("no_cell", f"pbc is {atoms.pbc.tolist()}; wanted a crystal, periodic in three directions")
    if not len(atoms):
        raise CIFError("no_atoms", "the Atoms hold no atoms")
    for site, occupancy in (atoms.info.get("occupancy") or {}).items():
        if len(occupancy) != 1 or abs(sum(occupancy.values()) - 1) > 1e-3:
            raise CIFError("partial_occupancy", f"site {site} holds {occupancy}; wanted one whole atom at each site")
    if (atoms.numbers < 1).any():
        at = int(np.flatnonzero(atoms.numbers < 1)[0])
        raise CIFError("unknown_element", f"atom {at} is {atoms.symbols[at]!r}; wanted an element")
    return Crystal(atoms.cell.array, atoms.get_scaled_positions(wrap=False), atoms.numbers)


def to_atoms(crystal: Crystal) -> Atoms:
    from ase import Atoms

    return Atoms(numbers=crystal.atomic_numbers, cell=crystal.lattice, scaled_positions=crystal.frac_coords, pbc=True)


def parse_structures(text: str, kind: str) -> list[Crystal]:
    """Of a text of kind "poscar", one; of "extxyz", one a frame, whose Lattice="..." is needed. Raises CIFError."""
    reader = {"poscar": _read_poscar, "extxyz": _read_extxyz}[kind]
    try:
        crystals = reader(text)
    except CIFError:
        raise
    except Exception as err:  # broken files raise nearly anything in the libraries that read them
        raise CIFError("syntax", f"no {kind}: {type(err).__name__}: {err}") from err
    if not crystals:
        raise CIFError("no_atoms", f"the {kind} holds no structure")
    return crystals


def _read_extxyz(text: str) -> list[Crystal]:
    from ase.io.extxyz import read_xyz

    return [from_atoms(atoms) for atoms in read_xyz(io.StringIO(text), index=slice(None))]


def _read_poscar(text: str) -> list[Crystal]:
    from pymatgen.io.vasp import Poscar

    poscar = Poscar.from_str(text)
    if not poscar.true_names:
        raise CIFError("unknown_element", "no element symbols; wanted a line such as 'Na Cl' above the counts")
    return [from_structure(poscar.structure)]
