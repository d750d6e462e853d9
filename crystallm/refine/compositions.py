"""What a structure from noise starts as: atoms at random places, in a given cell or in a cube of about their size.

Which atoms, where nobody says: those of a crystal that the model was trained on, drawn at random.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crystallm.crystal import Crystal, Floats, Ints, formula_text
from crystallm.geometry import MIN_DISTANCE_ANG, covalent_radii, reduce_lattice
from crystallm.refine.batch import PackedCrystals
from tokenizer.elements import ATOMIC_NUMBERS, SYMBOLS

Lattices = np.ndarray | Tensor | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]]
Element = str | int
Species = Sequence[Element] | Sequence[Sequence[Element]] | np.ndarray | Tensor

# Volume of a cell over the sum of its atoms' covalent radii cubed: the median of Materials Project; half of its
# crystals lie within a factor of 1.2.
VOLUME_OVER_RADII_CUBED = 8.0
MAX_KEPT = 2000  # training cells in a checkpoint: 30 KB of its config.json
MIN_VOLUME_PER_ATOM_ANG3 = 2.0  # of a cell; diamond has 5.7
VOLUME_FACTOR = 1.25  # a composition suits a given cell if its own one is larger or smaller by no more


@dataclass(frozen=True, eq=False)
class TrainingCells:
    """Species and volumes of crystals that a model was trained on: what it draws where nobody says which atoms."""

    atomic_numbers: tuple[Ints, ...]  # (n_atoms,) of each cell
    volume_ang3: Floats  # (n_cells,)

    @classmethod
    def of(cls, packed: PackedCrystals, indices: np.ndarray, seed: int = 0) -> TrainingCells:
        """Of the crystals at `indices`: all, or MAX_KEPT of them drawn at random."""
        if len(indices) > MAX_KEPT:
            indices = np.sort(np.random.default_rng(seed).permutation(indices)[:MAX_KEPT])
        ends = np.cumsum(packed.n_atoms)
        species = [np.sort(packed.atomic_numbers[ends[k] - packed.n_atoms[k] : ends[k]]) for k in indices]
        return cls(tuple(species), np.abs(np.linalg.det(packed.lattice[indices].astype(np.float64))))

    @classmethod
    def from_text(cls, text: str) -> TrainingCells:
        """As to_text writes it; ValueError for an entry that is none."""
        species, volumes = [], []
        for entry in text.split():
            found = re.fullmatch(r"((?:[A-Z][a-z]?[0-9]*)+):([0-9.]+)", entry)
            if found is None:
                raise ValueError(f"training cells are written like Na4Cl4:179.41, got {entry!r}")
            parts = re.findall(r"([A-Z][a-z]?)([0-9]*)", found[1])
            species.append(np.repeat([ATOMIC_NUMBERS[symbol] for symbol, _ in parts], [int(n or 1) for _, n in parts]))
            volumes.append(float(found[2]))
        return cls(tuple(species), np.array(volumes))

    def to_text(self) -> str:
        """Formula of the cell and volume (Å³) of each: "Na4Cl4:179.41 Ti2O4:62.42"."""
        formulas = [
            formula_text({SYMBOLS[z - 1]: n for z, n in Counter(cell.tolist()).items()}) for cell in self.atomic_numbers
        ]
        return " ".join(f"{name}:{volume:.2f}" for name, volume in zip(formulas, self.volume_ang3, strict=True))

    @functools.cached_property
    def n_atoms(self) -> Ints:
        """(n_cells,)"""
        return np.array([len(cell) for cell in self.atomic_numbers])

    @functools.cached_property
    def volume_over_radii_cubed(self) -> float:
        """The median; VOLUME_OVER_RADII_CUBED is that of Materials Project."""
        return float(
            np.median([v / _radii_cubed(z) for z, v in zip(self.atomic_numbers, self.volume_ang3, strict=True)])
        )

    def draw(self, generator: torch.Generator, allowed: np.ndarray) -> int:
        """The place of one among the `allowed` (n_cells,) bool."""
        places = np.flatnonzero(allowed)
        return int(places[int(torch.randint(len(places), (1,), generator=generator))])


def start_crystals(
    batch_size: int,
    lattice: Lattices | None,
    species: Species | None,
    max_atoms: int | None,
    mask: np.ndarray | Tensor | None,
    generator: torch.Generator,
    known: TrainingCells | None = None,
) -> list[Crystal]:
    """Uniformly placed atoms; cubic cells where no lattice is given. Raises ValueError, see `sample`."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    lattices = None if lattice is None else _lattices(batch_size, lattice)
    if species is None:
        numbers, volumes = _drawn(batch_size, lattices, max_atoms, mask, generator, known)
    else:
        numbers = _numbers(batch_size, species, max_atoms, mask)
        ratio = known.volume_over_radii_cubed if known else VOLUME_OVER_RADII_CUBED
        volumes = [ratio * _radii_cubed(one) if len(one) else 0.0 for one in numbers]
    cells = [np.eye(3) * volume ** (1 / 3) for volume in volumes] if lattices is None else lattices
    crystals = []
    for cell, one in zip(cells, numbers, strict=True):
        frac = torch.rand(len(one), 3, generator=generator, dtype=torch.float64).numpy()
        crystals.append(_with_room(Crystal(cell, frac, one)))
    return crystals


def _with_room(crystal: Crystal) -> Crystal:
    """The crystal; ValueError for a cell that is too small for its atoms, or too flat."""
    volume, n = crystal.volume_ang3, crystal.n_atoms
    if volume < MIN_VOLUME_PER_ATOM_ANG3 * n:
        raise ValueError(
            f"a cell of {volume:.3g} Å³ is too small for {n} atom{'s' * (n > 1)}: {volume / n:.2g} Å³ an atom, wanted "
            f"at least {MIN_VOLUME_PER_ATOM_ANG3:g} (most crystals have 10 to 25)"
        )
    shortest = float(np.linalg.norm(reduce_lattice(crystal.lattice)[0][0]))
    if shortest < MIN_DISTANCE_ANG:
        raise ValueError(
            f"the cell repeats every {shortest:.3g} Å, so each atom lies on its own image; wanted at least "
            f"{MIN_DISTANCE_ANG:g} Å (atoms of crystals stand 1 to 4 Å apart)"
        )
    return crystal


def _drawn(
    batch_size: int,
    lattices: list[np.ndarray] | None,
    max_atoms: int | None,
    mask: np.ndarray | Tensor | None,
    generator: torch.Generator,
    known: TrainingCells | None,
) -> tuple[list[np.ndarray], list[float]]:
    """Atomic numbers and volumes (Å³) of training cells that fit the counts of the mask, max_atoms and the lattices."""
    if known is None:
        raise ValueError(
            "species says which atoms there are, got None, and this model's checkpoint keeps no training compositions "
            "to draw from"
        )
    counts = None if mask is None else _places(batch_size, mask, max_atoms).sum(axis=1)
    species, volumes = [], []
    for k in range(batch_size):
        allowed, asked = np.ones(len(known.n_atoms), dtype=bool), []
        if counts is not None:
            allowed &= known.n_atoms == counts[k]
            asked.append(f"{counts[k]} atoms")
        elif max_atoms is not None:
            allowed &= known.n_atoms <= max_atoms
            asked.append(f"at most {max_atoms} atoms")
        if lattices is not None:
            volume = abs(float(np.linalg.det(lattices[k])))
            with np.errstate(divide="ignore"):
                allowed &= np.abs(np.log(known.volume_ang3 / volume)) <= np.log(VOLUME_FACTOR)
            asked.append(f"a volume within a factor of {VOLUME_FACTOR} of {volume:.1f} Å³")
        if not allowed.any():
            raise ValueError(
                f"none of the {len(allowed)} training compositions that this model keeps has {' and '.join(asked)}; "
                f"they have {known.n_atoms.min()} to {known.n_atoms.max()} atoms "
                f"in {known.volume_ang3.min():.1f} to {known.volume_ang3.max():.1f} Å³"
            )
        place = known.draw(generator, allowed)
        species.append(known.atomic_numbers[place])
        volumes.append(float(known.volume_ang3[place]))
    return species, volumes


def _places(batch_size: int, mask: np.ndarray | Tensor, max_atoms: int | None) -> np.ndarray:
    """(batch_size, max_atoms) bool"""
    places = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask, dtype=bool)
    wanted = max_atoms or places.shape[-1]
    if places.shape not in ((wanted,), (batch_size, wanted)):
        raise ValueError(f"mask must be ({wanted},) or ({batch_size}, {wanted}), got {places.shape}")
    return np.broadcast_to(places, (batch_size, wanted))


def _numbers(
    batch_size: int, species: Species, max_atoms: int | None, mask: np.ndarray | Tensor | None
) -> list[np.ndarray]:
    rows = _rows(batch_size, species)
    if mask is not None:
        places, lengths = _places(batch_size, mask, max_atoms), sorted({len(row) for row in rows})
        if lengths != [places.shape[1]]:
            got = f"got {places.shape[1]} and {', '.join(map(str, lengths))}"
            raise ValueError(f"mask and species have max_atoms={places.shape[1]} places each, {got}")
        rows = [list(compress(row, line)) for row, line in zip(rows, places, strict=True)]
    elif max_atoms is not None and (most := max(map(len, rows))) > max_atoms:
        raise ValueError(f"{most} atoms exceed max_atoms={max_atoms}")
    return [np.array([atomic_number(atom) for atom in row], dtype=np.int64) for row in rows]


def _rows(batch_size: int, species: Species) -> list[list[Element]]:
    """Species of each crystal."""
    if not len(species):
        raise ValueError(f"species says which atoms there are, got {species!r}")
    given: list[Any] = species.tolist() if isinstance(species, (np.ndarray, Tensor)) else list(species)
    if isinstance(given[0], (str, int)):
        given = [given] * batch_size
    if len(given) != batch_size:
        raise ValueError(f"species of {len(given)} crystals for batch_size={batch_size}")
    return [list(row) for row in given]


def atomic_number(atom: Element) -> int:
    number = ATOMIC_NUMBERS.get(atom, 0) if isinstance(atom, str) else int(atom)
    if not 1 <= number <= 118:
        raise ValueError(f"species are symbols or atomic numbers from 1 to 118, got {atom!r}")
    return number


def _lattices(batch_size: int, lattice: Lattices) -> list[np.ndarray]:
    array = np.asarray(lattice.cpu() if isinstance(lattice, Tensor) else lattice, dtype=np.float64)
    if array.shape not in ((3, 3), (batch_size, 3, 3)):
        raise ValueError(f"lattice must be (3, 3) or ({batch_size}, 3, 3), got {array.shape}")
    return list(np.broadcast_to(array, (batch_size, 3, 3)))


def _radii_cubed(numbers: np.ndarray) -> float:
    """Å³"""
    return float((covalent_radii()[numbers] ** 3).sum())
