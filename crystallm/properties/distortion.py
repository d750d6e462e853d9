"""How far a crystal is from the relaxed ones: a property that any corpus teaches, since distorting a crystal labels it.

A predictor trained on relaxed crystals alone can give an unphysical one too low an energy. With a share of the training
crystals distorted by known amounts it also says how far off the crystal before it is, and who ranks can mind that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from crystallm.crystal import Crystal
from crystallm.properties.samples import SampleSet

DISTORTION = "distortion_ang"
SCALE_ANG = 0.3  # in which its errors count
STIFFNESS = 4.0  # eV/Å² an atom: an energy is ranked with half of it times the squared distortion on top


@dataclass(frozen=True)
class DistortionConfig:
    share: float = 0.0  # of the training crystals; their other labels are not used. Above 0 adds the property
    max_displacement_ang: float = 0.6  # root mean square over the atoms
    max_swelling: float = 0.12  # standard deviation of the relative change of lengths, all alike
    max_shear: float = 0.06  # and of that in each component besides

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"distortion.share must be in [0, 1), got {self.share}")


def distort(crystal: Crystal, config: DistortionConfig, rng: np.random.Generator) -> tuple[Crystal, float]:
    """The crystal with atoms displaced and the cell strained, and by how much (Å).

    The amount is the root mean square displacement, and the strain's Frobenius norm times the cube root of the volume
    per atom, added as squares. Widths are drawn uniformly up to the largest, so that slight distortions occur, too.
    """
    size = rng.random(2)
    cart = rng.normal(size=(crystal.n_atoms, 3)) * (size[0] * config.max_displacement_ang / 3**0.5)
    cart -= cart.mean(axis=0)
    shear = rng.normal(size=(3, 3)) * (size[1] * config.max_shear)
    strain = (shear + shear.T) / 2 + np.eye(3) * rng.normal() * (size[1] * config.max_swelling)
    lattice = crystal.lattice @ (np.eye(3) + strain)
    frac = crystal.frac_coords + cart @ np.linalg.inv(lattice)
    spacing = (crystal.volume_ang3 / crystal.n_atoms) ** (1 / 3)
    amount = float(np.sqrt((cart**2).sum(axis=1).mean() + (np.linalg.norm(strain) * spacing) ** 2))
    return Crystal(lattice, frac, crystal.atomic_numbers), amount


def with_distortion(samples: SampleSet) -> SampleSet:
    """The samples with the property, 0 for each: they are relaxed."""
    return replace(samples, targets={**samples.targets, DISTORTION: np.zeros(len(samples))})
