"""How far the generated crystals' densities, volumes and numbers of elements lie from those of a reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from crystallm.crystal import Crystal

Floats = NDArray[np.float64]

FEATURES = ("density_g_per_cm3", "volume_per_atom_ang3", "n_elements")


def features_of(crystal: Crystal) -> dict[str, float]:
    return {
        "density_g_per_cm3": crystal.density_g_per_cm3,
        "volume_per_atom_ang3": crystal.volume_ang3 / crystal.n_atoms,
        "n_elements": float(len(np.unique(crystal.atomic_numbers))),
    }


def wasserstein_distances(generated: Mapping[str, Floats], reference: Mapping[str, Floats]) -> dict[str, float | None]:
    """By feature, in its own unit; None where one side is empty."""
    from scipy.stats import wasserstein_distance

    return {
        name: float(wasserstein_distance(generated[name], reference[name]))
        if len(generated[name]) and len(reference[name])
        else None
        for name in FEATURES
    }
