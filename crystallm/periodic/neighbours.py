"""Pairs of atoms of periodic crystals that lie within a cutoff, every image on its own, for a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Edges:
    """Ordered pairs of atoms within the cutoff, every periodic image on its own, an atom's own images included."""

    source: Tensor  # (E,) int64: j, who is seen
    target: Tensor  # (E,) int64: i, who sees
    vector: Tensor  # (E, 3) Å from i to j
    length: Tensor  # (E,) Å


class Neighbours:
    """Finds the edges of crystals whose cells stay the same while their atoms move."""

    def __init__(self, lattice: Tensor, n_atoms: Tensor, cutoff_ang: float):
        """lattice (B, 3, 3) rows, Å; n_atoms (B,) int64"""
        device, n = lattice.device, n_atoms
        self.cutoff_ang, self.lattice = cutoff_ang, lattice
        self.crystal = torch.repeat_interleave(torch.arange(len(n), device=device), n)  # (N,)
        # Pairs (i, j) within each crystal
        starts = n.cumsum(0) - n
        count = n[self.crystal]  # pairs that begin at each atom
        self.first = torch.repeat_interleave(torch.arange(len(count), device=device), count)
        within = torch.arange(len(self.first), device=device) - (count.cumsum(0) - count)[self.first]
        self.second = starts[self.crystal][self.first] + within
        pair_crystal = self.crystal[self.first]
        # Images that can be near: differences of fractions are rounded into [-1/2, 1/2]
        heights = 1 / torch.linalg.inv(lattice).norm(dim=1)  # (B, 3) Å between opposite faces
        reach = (cutoff_ang / heights + 0.5).floor().long().tolist()
        shifts, counts = [], []
        for a, b, c in reach:
            axes = [torch.arange(-r, r + 1, device=device) for r in (a, b, c)]
            shifts.append(torch.cartesian_prod(*axes))
            counts.append(len(shifts[-1]))
        images, n_images = torch.cat(shifts).to(lattice.dtype), torch.tensor(counts, device=device)
        of_pair = n_images[pair_crystal]
        self.pair = torch.repeat_interleave(torch.arange(len(of_pair), device=device), of_pair)  # (candidates,)
        place = torch.arange(len(self.pair), device=device) - (of_pair.cumsum(0) - of_pair)[self.pair]
        image = images[(n_images.cumsum(0) - n_images)[pair_crystal][self.pair] + place]
        self.is_self = (self.first[self.pair] == self.second[self.pair]) & (image == 0).all(dim=1)
        self.shift = torch.bmm(image[:, None, :], lattice[pair_crystal[self.pair]])[:, 0]  # (candidates, 3) Å

    def edges(self, frac_coords: Tensor) -> Edges:
        delta = frac_coords[self.second] - frac_coords[self.first]
        delta = delta - delta.round()
        nearest = torch.bmm(delta[:, None, :], self.lattice[self.crystal[self.first]])[:, 0]  # (pairs, 3) Å
        vector = nearest[self.pair] + self.shift
        square = (vector * vector).sum(dim=1)
        near = torch.nonzero((square < self.cutoff_ang**2) & ~self.is_self)[:, 0]
        pair = self.pair[near]
        return Edges(self.second[pair], self.first[pair], vector[near], square[near].sqrt())
