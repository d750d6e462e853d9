"""What a structure from noise starts as: atoms at random places, in a given cell or in a cube of about their size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crystallm.crystal import Crystal
from crystallm.geometry import covalent_radii
from tokenizer.elements import ATOMIC_NUMBERS

Lattices = np.ndarray | Tensor | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]]
Element = str | int
Species = Sequence[Element] | Sequence[Sequence[Element]] | np.ndarray | Tensor

# Volume of a cell over the sum of its atoms' covalent radii cubed: the median of Materials Project; half of its
# crystals lie within a factor of 1.2.
VOLUME_OVER_RADII_CUBED = 8.0


def start_crystals(
    batch_size: int,
    lattice: Lattices | None,
    species: Species | None,
    max_atoms: int | None,
    mask: np.ndarray | Tensor | None,
    generator: torch.Generator,
) -> list[Crystal]:
    """Uniformly placed atoms; cubic cells where no lattice is given. Raises ValueError, see `sample`."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    numbers = _numbers(batch_size, species, max_atoms, mask)
    lattices = _lattices(batch_size, lattice) if lattice is not None else [_cube(one) for one in numbers]
    crystals = []
    for cell, one in zip(lattices, numbers, strict=True):
        frac = torch.rand(len(one), 3, generator=generator, dtype=torch.float64).numpy()
        crystals.append(Crystal(cell, frac, one))
    return crystals


def _numbers(
    batch_size: int, species: Species | None, max_atoms: int | None, mask: np.ndarray | Tensor | None
) -> list[np.ndarray]:
    rows = _rows(batch_size, species)
    if mask is not None:
        places = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask, dtype=bool)
        places = np.broadcast_to(places, (batch_size, places.shape[-1]))
        wanted, lengths = max_atoms or places.shape[1], sorted({len(row) for row in rows})
        if places.shape[1] != wanted or lengths != [wanted]:
            got = f"got {places.shape[1]} and {', '.join(map(str, lengths))}"
            raise ValueError(f"mask and species have max_atoms={wanted} places each, {got}")
        rows = [list(compress(row, line)) for row, line in zip(rows, places, strict=True)]
    elif max_atoms is not None and (most := max(map(len, rows))) > max_atoms:
        raise ValueError(f"{most} atoms exceed max_atoms={max_atoms}")
    return [np.array([atomic_number(atom) for atom in row], dtype=np.int64) for row in rows]


def _rows(batch_size: int, species: Species | None) -> list[list[Element]]:
    """Species of each crystal."""
    if species is None or not len(species):
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


def _cube(numbers: np.ndarray) -> np.ndarray:
    volume = VOLUME_OVER_RADII_CUBED * float((covalent_radii()[numbers] ** 3).sum())  # Å³
    return np.eye(3) * volume ** (1 / 3)
