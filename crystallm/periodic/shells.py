"""The neighbours of each atom in one row of a matrix, so that sums over them are products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from crystallm.periodic.basis import spherical_harmonics
from crystallm.periodic.neighbours import Edges

TYPICAL_NEIGHBOURS = 30.0  # within 5 Å; sums over neighbours are divided by its root


class Shells:
    def __init__(self, edges: Edges, n_atoms: int):
        count = torch.bincount(edges.target, minlength=n_atoms)  # (N,)
        self.n_atoms, self.width = n_atoms, max(1, int(count.max())) if n_atoms else 1
        order = torch.arange(len(edges.target), device=count.device)
        within = order - (count.cumsum(0) - count)[edges.target]  # edges come sorted by target
        self.place = edges.target * self.width + within  # (E,) in (n_atoms * width)
        self.is_there = torch.arange(self.width, device=count.device) < count[:, None]  # (N, width) bool
        self.unit = edges.vector / edges.length.clamp(min=1e-3)[:, None]  # (E, 3)
        self.harmonics = self.rows(spherical_harmonics(self.unit)).transpose(1, 2)  # (N, 9, width)

    def rows(self, values: Tensor) -> Tensor:
        """(E, C) -> (N, width, C), 0 where there is no neighbour"""
        padded = values.new_zeros(self.n_atoms * self.width, values.shape[1])
        return padded.index_copy(0, self.place, values).view(self.n_atoms, self.width, -1)

    def sums(self, messages: Tensor) -> Tensor:
        """(E, C) -> (N, 9, C): of the messages to each atom, times the harmonics of where they come from"""
        return torch.bmm(self.harmonics.to(messages.dtype) * TYPICAL_NEIGHBOURS**-0.5, self.rows(messages))
