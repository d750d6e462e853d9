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


MAX_CANDIDATES = 20_000_000  # pairs of atoms and images of one crystal: 80 MB, some of it twice


class Neighbours:
    """Finds the edges of crystals whose cells stay the same while their atoms move.

    ValueError for a cell so flat that its images within the cutoff would fill the memory, or that is not finite.
    """

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
        self.n_pairs = (n * n).tolist()
        # Images that can be near: differences of fractions are rounded into [-1/2, 1/2], so a pair's nearest vector
        # is at most half the sum of the cell's edges long
        inverse, _ = torch.linalg.inv_ex(lattice)  # not finite for a cell without a volume in float32
        heights = 1 / inverse.norm(dim=1)  # (B, 3) Å between opposite faces
        reaches = (cutoff_ang / heights + 0.5).floor()
        candidates = n**2 * (2 * reaches + 1).prod(dim=1)  # (B,)
        if (bad := torch.nonzero(~(candidates <= MAX_CANDIDATES))[:, 0]).numel():
            k = int(bad[0])
            faces = ", ".join(f"{height:.2g}" for height in heights[k].tolist())
            which = f"crystal {k}: " if len(n) > 1 else ""
            raise ValueError(
                f"{which}{int(n[k])} atoms in a cell whose opposite faces are {faces} Å apart see "
                f"{float(candidates[k]):.2g} images within {cutoff_ang:g} Å; wanted at most {MAX_CANDIDATES:,}"
            )
        reach = reaches.long().tolist()
        farthest = (cutoff_ang + lattice.norm(dim=2).sum(dim=1) / 2).tolist()
        self.shifts: list[Tensor] = []  # of each crystal (n_images, 3) Å, the zero shift first
        for (a, b, c), cell, limit in zip(reach, lattice, farthest, strict=True):
            axes = [torch.arange(-r, r + 1, device=device) for r in (a, b, c)]
            shifts = torch.cartesian_prod(*axes).to(lattice.dtype) @ cell
            length = shifts.norm(dim=1)
            self.shifts.append(shifts[length.argsort(stable=True)][: int((length < limit).sum())])

    def edges(self, frac_coords: Tensor) -> Edges:
        delta = frac_coords[self.second] - frac_coords[self.first]
        delta = delta - delta.round()
        nearest = torch.bmm(delta[:, None, :], self.lattice[self.crystal[self.first]])[:, 0]  # (pairs, 3) Å
        is_self = self.first == self.second
        pairs, shifts, start = [], [], 0
        for own, images in zip(nearest.split(self.n_pairs), self.shifts, strict=True):
            # |d + s|² - |s|² as one product; a little beyond the cutoff, so that rounding loses no pair
            square = torch.addmm(images.square().sum(dim=1), own, images.T, alpha=2) + own.square().sum(1, keepdim=True)
            square[:, 0].masked_fill_(is_self[start : start + len(own)], torch.inf)
            pair, image = torch.nonzero(square < self.cutoff_ang**2 + 0.01, as_tuple=True)
            pairs.append(pair + start)
            shifts.append(images[image])
            start += len(own)
        pair = torch.cat(pairs)
        vector = nearest[pair] + torch.cat(shifts)
        length = vector.norm(dim=1)
        near = torch.nonzero(length < self.cutoff_ang)[:, 0]
        pair = pair[near]
        return Edges(self.second[pair], self.first[pair], vector[near], length[near])
