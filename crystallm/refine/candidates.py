"""Several structures from noise for each one that is asked for, of which the one that the network knows best is kept.

Atoms at random places in a large cell freeze in a glass, where those of a small one find their crystal. But crystals
repeat, and a network that sees neighbourhoods keeps a repeated noise repeated. So where a cell is given, candidates
have translations within it: each is drawn in a smaller cell, with as many atoms fewer, and repeated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from crystallm.crystal import Crystal, Ints
from crystallm.refine.batch import at_once
from crystallm.refine.compositions import Element, atomic_number
from crystallm.refine.diffusion import CrystalDiffusionModel
from crystallm.refine.supercells import divisions, divisors, supercell

MAX_INDEX = 64  # smaller cells in the given one; there are 10,795 ways of 64


def sample_best(
    model: CrystalDiffusionModel,
    batch_size: int,
    lattice: ArrayLike | None,
    species: Sequence[Element],
    candidates: int,
    seed: int,
    **settings: Any,
) -> list[Crystal]:
    """`batch_size` crystals, each the best known of `candidates`: whose noise the network tells best.

    `lattice` (3, 3), Å, or None; `species` of one crystal; `settings` as in `model.sample`. In a given cell a candidate
    is drawn in one 1 / m as large, and repeated; m divides the number of atoms of each element, is at most MAX_INDEX,
    and is drawn in proportion to its root. Without a cell each candidate is one of `model.sample`. Judged by
    `model.denoising_errors`. Raises ValueError as `model.sample`.
    """
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1, got {candidates}")
    if not len(species):
        raise ValueError(f"species says which atoms there are, got {species!r}")
    number = batch_size * candidates
    if lattice is None:
        atoms = [atomic_number(atom) for atom in species]
        found = []
        for places in at_once([len(atoms)] * number):
            found += model.sample(len(places), None, atoms, seed=(seed + places.start) % 2**63, **settings)
    else:
        found = _repeating(model, number, np.asarray(lattice, dtype=np.float64), species, seed, settings)
    if candidates == 1:
        return found
    errors = model.denoising_errors(found).reshape(batch_size, candidates)
    return [found[k * candidates + int(best)] for k, best in enumerate(errors.argmin(axis=1))]


def _repeating(
    model: CrystalDiffusionModel,
    number: int,
    lattice: np.ndarray,
    species: Sequence[Element],
    seed: int,
    settings: dict[str, Any],
) -> list[Crystal]:
    counts = Counter(atomic_number(atom) for atom in species)
    indices = [m for m in divisors(math.gcd(*counts.values())) if m <= MAX_INDEX]
    known = {m: divisions(lattice, m) for m in indices}
    rng = np.random.default_rng([seed, len(species)])
    effort = np.sqrt(indices)
    divided = rng.choice(indices, number, p=effort / effort.sum()).tolist()
    matrices: list[Ints] = []
    for m in divided:
        ways, weights = known[m]
        matrices.append(ways[rng.choice(len(ways), p=weights)])
    found: list[Crystal] = []
    for places in at_once(len(species) // m for m in divided):
        cells = np.array([np.linalg.solve(matrices[place], lattice) for place in places])
        atoms = [[z for z, n in counts.items() for _ in range(n // divided[place])] for place in places]
        small = model.sample(len(places), cells, atoms, seed=(seed + places.start) % 2**63, **settings)
        for place, crystal in zip(places, small, strict=True):
            whole = supercell(crystal, matrices[place])
            found.append(Crystal(lattice, whole.frac_coords, whole.atomic_numbers))  # the cell to its last digit
    return found
