"""Cell and distances: is there room for the atoms, and do they keep it."""

from __future__ import annotations

import numpy as np

from crystallm.crystal import Crystal
from crystallm.geometry import distance_violations, reduce_lattice, shortest_distances
from crystallm.records import CIFRecord
from tokenizer.elements import SYMBOLS

LENGTHS_ANG, ANGLES_DEG = (0.5, 1000.0), (10.0, 170.0)  # CrystaLLM's limits
# Of 128,796 Materials Project crystals the densest has 4.4 Å³ an atom (FeH4); 22 have more than 1,000, atoms alone in a
# box.
VOLUMES_PER_ATOM_ANG3 = (1.0, 1000.0)
MAX_ATOMS = 3000  # the distances among as many take seconds and 200 MB

CDVAE_MIN_DISTANCE_ANG = 0.5
CDVAE_MIN_VOLUME_ANG3 = 0.1


def crystal_of(record: CIFRecord) -> Crystal:
    """For checks, which run on parsed records only."""
    assert record.crystal is not None, f"{record.id}: checked before it was parsed"
    return record.crystal


def check_sensible(record: CIFRecord) -> str | None:
    """CrystaLLM's `is_sensible`: edges from 0.5 to 1000 Å, angles from 10 to 170°."""
    cell = crystal_of(record).cell
    for name, value in zip(("a", "b", "c"), cell[:3].tolist(), strict=True):
        if not LENGTHS_ANG[0] <= value <= LENGTHS_ANG[1]:
            return f"cell length {name} is {value:.3g} Å, outside {LENGTHS_ANG[0]}-{LENGTHS_ANG[1]} Å"
    for name, value in zip(("alpha", "beta", "gamma"), cell[3:].tolist(), strict=True):
        if not ANGLES_DEG[0] <= value <= ANGLES_DEG[1]:
            return f"cell angle {name} is {value:.4g}°, outside {ANGLES_DEG[0]}-{ANGLES_DEG[1]}°"
    return None


def check_cell(record: CIFRecord) -> str | None:
    """A volume per atom that matter can have, whatever cell describes it, and atoms few enough to be checked."""
    crystal = crystal_of(record)
    if crystal.n_atoms > MAX_ATOMS:
        return f"{crystal.n_atoms} atoms in the cell, at most {MAX_ATOMS} are checked"
    volume = crystal.volume_ang3 / crystal.n_atoms
    low, high = VOLUMES_PER_ATOM_ANG3
    if not low <= volume <= high:
        return f"{volume:.3g} Å³ per atom, outside {low:g}-{high:g} Å³"
    try:
        shortest = float(np.linalg.norm(reduce_lattice(crystal.lattice)[0], axis=1).min())
    except ValueError as err:
        return str(err)
    if shortest < LENGTHS_ANG[0]:
        return f"the lattice repeats after {shortest:.3g} Å, below {LENGTHS_ANG[0]} Å"
    return None


def check_distances(record: CIFRecord) -> str | None:
    """No two atoms, images included, closer than `geometry.min_allowed_distance` lets their elements come."""
    crystal = crystal_of(record)
    contacts = distance_violations(crystal.lattice, crystal.frac_coords, crystal.atomic_numbers)
    if not contacts:
        return None
    worst = contacts[0]
    pair = "-".join(SYMBOLS[crystal.atomic_numbers[k] - 1] for k in (worst.i, worst.j))
    others = f", and {len(contacts) - 1} more" if len(contacts) > 1 else ""
    return f"{pair} {worst.distance_ang:.2f} Å apart, at least {worst.allowed_ang:.2f} Å wanted{others}"


def check_cdvae_structure(record: CIFRecord) -> str | None:
    """CDVAE: no two different sites closer than 0.5 Å, a volume of 0.1 Å³ or more. A site's own images do not count."""
    crystal = crystal_of(record)
    if crystal.volume_ang3 < CDVAE_MIN_VOLUME_ANG3:
        return f"the cell has {crystal.volume_ang3:.3g} Å³, below {CDVAE_MIN_VOLUME_ANG3} Å³"
    if crystal.n_atoms > MAX_ATOMS:
        return f"{crystal.n_atoms} atoms in the cell, at most {MAX_ATOMS} are checked"
    distances = shortest_distances(crystal.lattice, crystal.frac_coords)
    np.fill_diagonal(distances, np.inf)
    shortest = float(distances.min())
    return (
        None
        if shortest >= CDVAE_MIN_DISTANCE_ANG
        else f"two sites {shortest:.2f} Å apart, below {CDVAE_MIN_DISTANCE_ANG} Å"
    )
