"""From a noisy crystal to the noise in it: a message-passing network over atoms and their periodic neighbours.

It sees species, the noise level, and the vectors between atoms and all images of their neighbours within a cutoff;
so whatever leaves these alone (turning the crystal, another origin, an atom moved by a lattice vector, another order,
another cell of the same crystal) leaves its answer alone, or turns with the crystal.

Each layer sums messages times spherical harmonics of their directions, one product of matrices for each atom; the
squared length of each sum, which no rotation changes, updates the atom (the atomic basis of ACE, Drautz 2019, and its
power spectrum). With vector messages an atom also tells each neighbour how far its own sums of the first order point
along the line between them, which no rotation changes either. The answer is made of the sums of the first order
(displacements) and the second (strain).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crystallm.periodic.basis import N_SPECIES, Radial
from crystallm.periodic.neighbours import Edges
from crystallm.periodic.precision import exactly
from crystallm.periodic.shells import Shells
from crystallm.refine.batch import CrystalBatch

DATA_SCALE_ANG = 0.5  # displacements that are still worth knowing; beyond, the noise says nothing of where an atom was


class Noise(NamedTuple):
    """Of unit variance where it is noise of the diffusion; what the network answers."""

    cart: Tensor  # (N, 3), to be multiplied by sigma (Å)
    strain: Tensor  # (B, 3, 3) symmetric, to be multiplied by the strain's width


class Denoiser(nn.Module):
    def __init__(
        self, hidden_dim: int, num_layers: int, cutoff_ang: float, n_radial: int = 16, vector_messages: bool = False
    ):
        super().__init__()
        self.species = nn.Embedding(N_SPECIES, hidden_dim)
        self.level = nn.Sequential(nn.Linear(32, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim))
        self.flags = nn.Embedding(4, hidden_dim)  # symmetric or not, cell free or not
        self.radial = Radial(n_radial, cutoff_ang)
        self.layers = nn.ModuleList(
            [Interaction(hidden_dim, n_radial, vector_messages and i > 0) for i in range(num_layers)]
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.displace = nn.Linear(hidden_dim, num_layers * hidden_dim)
        self.shear = nn.Linear(hidden_dim, num_layers * hidden_dim)
        self.swell = nn.Linear(hidden_dim, 1)

    def forward(self, batch: CrystalBatch, edges: Edges, sigma_ang: Tensor, cell_is_free: Tensor) -> Noise:
        """sigma_ang (B,), cell_is_free (B,) bool -> the noise of coordinates and cell"""
        level = self.level(sinusoids(sigma_ang.log())) + self.flags(2 * batch.is_symmetric + cell_is_free.long())
        atoms = self.species(batch.atomic_numbers) + level[batch.crystal]  # (N, C)
        with exactly(batch.lattice.device):
            shells = Shells(edges, len(atoms))
            radial = self.radial(edges.length)  # (E, R)
        vectors: list[Tensor] = []
        tensors: list[Tensor] = []
        for layer in self.layers:
            atoms, sums = layer(atoms, edges.source, radial, shells, vectors[-1] if vectors else None)
            vectors.append(sums[:, 1:4])  # (N, 3, C)
            tensors.append(sums[:, 4:9])  # (N, 5, C)
        state = self.norm(atoms)
        cart = (torch.cat(vectors, dim=2) @ self.displace(state)[:, :, None])[:, :, 0].float()  # (N, 3)
        scale = DATA_SCALE_ANG / torch.hypot(sigma_ang, torch.full_like(sigma_ang, DATA_SCALE_ANG))  # (B,)
        shear = (torch.cat(tensors, dim=2) @ self.shear(state)[:, :, None])[:, :, 0].float()  # (N, 5)
        swell = self.swell(state).float()[:, :, None] * torch.eye(3, device=state.device)
        return Noise(batch.centred(cart) * scale[batch.crystal][:, None], batch.mean(symmetric_tensor(shear) + swell))


def symmetric_tensor(second: Tensor) -> Tensor:
    """(N, 5) of order 2 -> (N, 3, 3) symmetric and traceless; spherical_harmonics of u gives u uᵀ - 1/3 times 3/2"""
    xy, yz, zz, xz, difference = second.unbind(dim=1)
    half = 3**0.5 / 2
    rows = [
        -zz / 2 + half * difference, half * xy, half * xz,
        half * xy, -zz / 2 - half * difference, half * yz,
        half * xz, half * yz, zz,
    ]  # fmt: skip
    return torch.stack(rows, dim=1).view(-1, 3, 3)


class Interaction(nn.Module):
    def __init__(self, width: int, n_radial: int, vector_messages: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.source = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.filter = nn.Linear(n_radial, width, bias=False)
        self.update = nn.Sequential(nn.Linear(4 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.vector_messages = vector_messages
        if vector_messages:
            self.vector_source = nn.Linear(width, width, bias=False)
            self.vector_filter = nn.Linear(n_radial, width, bias=False)

    def forward(
        self, atoms: Tensor, source: Tensor, radial: Tensor, shells: Shells, vectors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """atoms (N, C), radial (E, R), vectors (N, 3, C) -> atoms (N, C), and the sums that updated them (N, 9, C)"""
        own = self.norm(atoms)
        messages = self.source(own).index_select(0, source) * self.filter(radial)  # (E, C)
        if self.vector_messages and vectors is not None:
            pointing = torch.einsum("ea,eac->ec", shells.unit, self.vector_source(vectors).index_select(0, source))
            messages = messages + pointing * self.vector_filter(radial)
        sums = shells.sums(messages)
        lengths = [part.square().sum(dim=1) for part in (sums[:, 1:4], sums[:, 4:9])]
        return atoms + self.update(torch.cat([own, sums[:, 0], *lengths], dim=1)), sums


def sinusoids(values: Tensor) -> Tensor:
    """(B,) -> (B, 32)"""
    frequencies = torch.exp(torch.linspace(math.log(0.2), math.log(5.0), 16, device=values.device))
    angles = values[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
