"""A data set that a CPU core learns in minutes: FCC Al, BCC Fe, diamond C, and variants of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crystallm.crystal import Crystal, Floats
from crystallm.refine.supercells import supercell
from tokenizer.elements import ATOMIC_NUMBERS

FCC = ((0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0))
BCC = ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5))
DIAMOND = FCC + tuple((x + 0.25, y + 0.25, z + 0.25) for x, y, z in FCC)

# Of a strained variant: its edges are longer or shorter by so much, and each entry of its strain by a normal number
MAX_STRETCH, SHEAR = 0.05, 0.01
DISPLACEMENT_ANG = 0.02  # width of the displacements; the shells of neighbours stay apart


@dataclass(frozen=True)
class Prototype:
    name: str
    frac_coords: tuple[tuple[float, float, float], ...]  # of the conventional cubic cell
    lattice_ang: dict[str, float]  # by element, at room temperature; the element of the original comes first
    coordination: int  # neighbours of each atom in its first shell

    def crystal(self, element: str | None = None, lattice_ang: float | None = None) -> Crystal:
        """The conventional cell, of the first element and with the element's own lattice constant by default."""
        element = element or next(iter(self.lattice_ang))
        numbers = np.full(len(self.frac_coords), ATOMIC_NUMBERS[element])
        return Crystal(np.eye(3) * (lattice_ang or self.lattice_ang[element]), np.array(self.frac_coords), numbers)


PROTOTYPES = (
    Prototype("fcc", FCC, {"Al": 4.05, "Cu": 3.61, "Ni": 3.52, "Ag": 4.09, "Au": 4.08, "Pd": 3.89, "Pt": 3.92}, 12),
    Prototype("bcc", BCC, {"Fe": 2.87, "Cr": 2.88, "V": 3.02, "W": 3.16, "Mo": 3.15, "Nb": 3.30, "Ta": 3.31}, 8),
    Prototype("diamond", DIAMOND, {"C": 3.57, "Si": 5.43, "Ge": 5.66, "Sn": 6.49}, 4),
)


@dataclass(frozen=True)
class TutorialConfig:
    variants: int = 6  # of each prototype: strained, displaced, of another element, and so on in turn
    seed: int = 0
    cells: tuple[int, ...] = (1, 2)  # each structure is trained on in supercells of so many cells along an edge
    repeats: int = 1  # times that an epoch goes over all that

    def __post_init__(self) -> None:
        if self.variants < 0 or self.repeats < 1 or not self.cells or min(self.cells) < 1:
            raise ValueError(
                "variants ≥ 0, repeats ≥ 1 and cells of numbers ≥ 1 wanted, "
                f"got variants={self.variants}, repeats={self.repeats}, cells={self.cells}"
            )


def tutorial_structures(variants: int = 6, seed: int = 0, strain_seed: int | None = None) -> list[Crystal]:
    """The three prototypes in conventional cells of 2, 4 and 8 atoms, each followed by its variants.

    With another `strain_seed` the same elements are strained and displaced otherwise.
    """
    structures = []
    for prototype in PROTOTYPES:
        rng = np.random.default_rng([seed if strain_seed is None else strain_seed, len(prototype.frac_coords)])
        structures.append(prototype.crystal())
        others = list(prototype.lattice_ang)[1:]
        order = np.random.default_rng([seed, len(others)]).permutation(len(others))
        for k in range(variants):
            if k % 3 == 0:
                structures.append(strained(prototype.crystal(), rng))
            elif k % 3 == 1:
                structures.append(displaced(prototype.crystal(), rng))
            else:
                structures.append(prototype.crystal(others[order[k // 3 % len(others)]]))
    return structures


def strained(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    matrix = rng.normal(0, SHEAR, (3, 3))
    strain: Floats = np.eye(3) * (1 + rng.uniform(-MAX_STRETCH, MAX_STRETCH)) + (matrix + matrix.T) / 2
    return Crystal(crystal.lattice @ strain, crystal.frac_coords, crystal.atomic_numbers)


def displaced(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    shift = rng.normal(0, DISPLACEMENT_ANG, (crystal.n_atoms, 3)) @ np.linalg.inv(crystal.lattice)
    return Crystal(crystal.lattice, crystal.frac_coords + shift, crystal.atomic_numbers)


def training_crystals(config: TutorialConfig) -> list[Crystal]:
    """What one epoch goes over."""
    structures = tutorial_structures(config.variants, config.seed)
    return [supercell(one, (n, n, n)) for n in config.cells for one in structures] * config.repeats


def validation_crystals(config: TutorialConfig) -> list[Crystal]:
    """The same elements strained and displaced otherwise: the prototypes first, then their variants in turn."""
    structures = tutorial_structures(config.variants, config.seed, strain_seed=config.seed + 1)
    size = 1 + config.variants
    structures = [structures[i * size + k] for k in range(size) for i in range(len(PROTOTYPES))]
    return [supercell(one, (n, n, n)) for n in dict.fromkeys(config.cells) for one in structures]
