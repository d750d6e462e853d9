"""Functions of the vector between two atoms: radial waves and spherical harmonics."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

N_SPECIES = 119  # by atomic number; 0 stays unused


def spherical_harmonics(unit: Tensor) -> Tensor:
    """(E, 3) unit vectors -> (E, 9): real, of orders 0, 1 and 2, each order's squares adding up to 1"""
    x, y, z = unit.unbind(dim=1)
    root = 3**0.5
    second = (root * x * y, root * y * z, z * z - (x * x + y * y) / 2, root * x * z, root / 2 * (x * x - y * y))
    return torch.stack([torch.ones_like(x), x, y, z, *second], dim=1)


class Radial(nn.Module):
    """Bessel functions of the distance under a smooth envelope (DimeNet, Gasteiger et al. 2020, eqs. 7 and 8)."""

    frequencies: Tensor

    def __init__(self, n_radial: int, cutoff_ang: float):
        super().__init__()
        self.cutoff_ang = cutoff_ang
        frequencies = math.pi / cutoff_ang * torch.arange(1, n_radial + 1)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, length: Tensor) -> Tensor:
        """(E,) Å -> (E, n_radial), all 0 at the cutoff"""
        x = length / self.cutoff_ang
        envelope = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
        waves = torch.sin(length[:, None] * self.frequencies) / length.clamp(min=1e-3)[:, None]
        return (2 / self.cutoff_ang) ** 0.5 * waves * envelope[:, None]
