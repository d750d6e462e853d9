"""Crystals of different size in flat tensors, without padding, and the pairs of atoms that see each other."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from crystallm.crystal import Crystal
from crystallm.refine.orbits import Orbits, free_orbits


@dataclass(frozen=True, eq=False)
class CrystalBatch:
    """B crystals with N atoms in all. Fractional rows: cart = frac @ lattice."""

    lattice: Tensor  # (B, 3, 3) rows, Å
    frac_coords: Tensor  # (N, 3)
    atomic_numbers: Tensor  # (N,) int64
    crystal: Tensor  # (N,) int64, ascending: to which crystal an atom belongs
    n_atoms: Tensor  # (B,) int64
    leader: Tensor  # (N,) int64: the atom whose displacement decides (refine/orbits.py)
    follow: Tensor  # (N, 3, 3): displacement = displacement[leader] @ follow, fractional
    n_free: Tensor  # (N,) int64: directions in which an atom's site lets it move
    rotations: Tensor  # (n_ops, 3, 3) fractional, of all crystals
    rotation_crystal: Tensor  # (n_ops,) int64
    is_symmetric: Tensor  # (B,) bool: more than the identity is asked of it

    @property
    def n_crystals(self) -> int:
        return len(self.n_atoms)

    def to(self, device: torch.device | str) -> CrystalBatch:
        return replace(self, **{name: tensor.to(device) for name, tensor in vars(self).items()})

    def mean(self, values: Tensor) -> Tensor:
        """(N, …) of the atoms -> (B, …) means of the crystals"""
        sums = values.new_zeros(self.n_crystals, *values.shape[1:]).index_add_(0, self.crystal, values)
        return sums / self.n_atoms.to(values.dtype).view(-1, *[1] * (values.ndim - 1))

    def centred(self, values: Tensor) -> Tensor:
        """(N, 3) less the mean of each crystal: a shift of the origin changes nothing"""
        return values - self.mean(values)[self.crystal]

    def moved(self, cart: Tensor) -> CrystalBatch:
        """The atoms displaced by (N, 3) Å."""
        frac = self.frac_coords + torch.bmm(cart[:, None, :], torch.linalg.inv(self.lattice)[self.crystal])[:, 0]
        return replace(self, frac_coords=frac - frac.floor())

    def strained(self, strain: Tensor) -> CrystalBatch:
        """The cells L exp(strain), strain (B, 3, 3) symmetric; fractions are kept."""
        return replace(self, lattice=self.lattice @ torch.linalg.matrix_exp(strain))

    def following(self, cart: Tensor) -> Tensor:
        """(N, 3) Å -> (N, 3) Å: what the leaders' displacements mean for all, as symmetry has it"""
        lattice = self.lattice[self.crystal]
        frac = torch.bmm(cart[:, None, :], torch.linalg.inv(lattice))[self.leader]  # (N, 1, 3)
        return torch.bmm(torch.bmm(frac, self.follow), lattice)[:, 0]

    def allowed_strain(self, strain: Tensor) -> Tensor:
        """(B, 3, 3) symmetric -> the part that keeps the point group, averaged over its rotations"""
        lattice = self.lattice[self.rotation_crystal]
        turn = torch.linalg.inv(lattice) @ self.rotations @ lattice  # (n_ops, 3, 3) cart' = cart @ turn
        turned = turn.transpose(1, 2) @ strain[self.rotation_crystal] @ turn
        sums = torch.zeros_like(strain).index_add_(0, self.rotation_crystal, turned)
        return sums / torch.bincount(self.rotation_crystal, minlength=self.n_crystals)[:, None, None]

    @property
    def n_strain(self) -> Tensor:
        """(B,) strains that the point group allows, 1 (cubic) to 6: the number of times it holds the trivial
        representation in the symmetric square."""
        trace = self.rotations.diagonal(dim1=1, dim2=2).sum(dim=1)
        squared = (self.rotations @ self.rotations).diagonal(dim1=1, dim2=2).sum(dim=1)
        sums = trace.new_zeros(self.n_crystals).index_add_(0, self.rotation_crystal, (trace**2 + squared) / 2)
        return (sums / torch.bincount(self.rotation_crystal, minlength=self.n_crystals)).round()

    def crystals(self) -> list[Crystal]:
        lattice, frac = self.lattice.double().cpu().numpy(), self.frac_coords.double().cpu().numpy()
        numbers, ends = self.atomic_numbers.cpu().numpy(), np.cumsum(self.n_atoms.cpu().numpy())[:-1]
        parts = zip(lattice, np.split(frac, ends), np.split(numbers, ends), strict=True)
        return [Crystal(*part) for part in parts]


def make_batch(crystals: Sequence[Crystal], orbits: Sequence[Orbits | None] | None = None) -> CrystalBatch:
    """float32 on the CPU. None among `orbits`: this crystal's atoms move freely. ValueError for no crystal."""
    given = orbits or [None] * len(crystals)
    packed = pack(crystals, [one or free_orbits(c.n_atoms) for c, one in zip(crystals, given, strict=True)])
    return packed.batch(np.arange(len(crystals)), np.array([one is not None for one in given]))


@dataclass(frozen=True, eq=False)
class PackedCrystals:
    """Many crystals and their orbits in flat arrays: what training keeps in memory and on disk."""

    lattice: np.ndarray  # (B, 3, 3) float32
    n_atoms: np.ndarray  # (B,) int64
    frac_coords: np.ndarray  # (N, 3) float32
    atomic_numbers: np.ndarray  # (N,) int64
    leader: np.ndarray  # (N,) int64, within the crystal
    follow: np.ndarray  # (N, 3, 3) float32
    n_free: np.ndarray  # (N,) int64
    n_rotations: np.ndarray  # (B,) int64
    rotations: np.ndarray  # (n_ops, 3, 3) float32

    def __len__(self) -> int:
        return len(self.n_atoms)

    @functools.cached_property
    def n_edges(self) -> np.ndarray:
        """(B,) about how many pairs of atoms lie within 1 Å³ of each other: n_atoms² / volume"""
        return self.n_atoms**2 / np.abs(np.linalg.det(self.lattice.astype(np.float64)))

    def batch(self, chosen: np.ndarray, symmetric: np.ndarray) -> CrystalBatch:
        """The crystals `chosen` (n,), with their symmetry where `symmetric` (n,) bool; else all atoms move freely."""
        if not len(chosen):
            raise ValueError("a batch needs at least one crystal, got none")
        counts = self.n_atoms[chosen]
        atoms, first = _ranges(self.n_atoms, chosen), np.repeat(np.cumsum(counts) - counts, counts)
        ops = _ranges(self.n_rotations, chosen)
        op_crystal = np.repeat(np.arange(len(chosen)), self.n_rotations[chosen])
        bound = np.repeat(symmetric, counts)  # (N,)
        starts = np.searchsorted(op_crystal, np.arange(len(chosen)))
        kept = symmetric[op_crystal] | np.isin(np.arange(len(ops)), starts)  # the identity stays: it comes first
        arrays = {
            "lattice": self.lattice[chosen],
            "frac_coords": self.frac_coords[atoms],
            "atomic_numbers": self.atomic_numbers[atoms],
            "crystal": np.repeat(np.arange(len(chosen)), counts),
            "n_atoms": counts,
            "leader": np.where(bound, self.leader[atoms] + first, np.arange(len(atoms))),
            "follow": np.where(bound[:, None, None], self.follow[atoms], np.eye(3, dtype=np.float32)),
            "n_free": np.where(bound, self.n_free[atoms], 3),
            "rotations": self.rotations[ops[kept]],
            "rotation_crystal": op_crystal[kept],
            "is_symmetric": symmetric,
        }
        return CrystalBatch(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})


def pack(crystals: Sequence[Crystal], orbits: Sequence[Orbits]) -> PackedCrystals:
    """ValueError for no crystal."""
    if not crystals:
        raise ValueError("a batch needs at least one crystal, got none")

    def joined(arrays: Sequence[np.ndarray], dtype: type = np.float32) -> np.ndarray:
        return np.concatenate(arrays).astype(dtype)

    return PackedCrystals(
        lattice=joined([c.lattice[None] for c in crystals]),
        n_atoms=np.array([c.n_atoms for c in crystals]),
        frac_coords=joined([c.frac_coords for c in crystals]),
        atomic_numbers=joined([c.atomic_numbers for c in crystals], np.int64),
        leader=joined([one.leader for one in orbits], np.int64),
        follow=joined([one.follow for one in orbits]),
        n_free=joined([one.n_free for one in orbits], np.int64),
        n_rotations=np.array([len(one.rotations) for one in orbits]),
        rotations=joined([one.rotations for one in orbits]),
    )


def _ranges(counts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The places, in arrays of all items one after another, of the items of the chosen ones."""
    starts, sizes = (np.cumsum(counts) - counts)[chosen], counts[chosen]
    return np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())


MAX_CANDIDATES = 20_000_000  # pairs of atoms and images of one crystal: 1 GB


@dataclass(frozen=True, eq=False)
class Edges:
    """Ordered pairs of atoms within the cutoff, every periodic image on its own, an atom's own images included."""

    source: Tensor  # (E,) int64: j, who is seen
    target: Tensor  # (E,) int64: i, who sees
    vector: Tensor  # (E, 3) Å from i to j
    length: Tensor  # (E,) Å


class Neighbours:
    """Finds the edges of crystals whose cells stay the same while their atoms move.

    ValueError for a cell so flat that its images within the cutoff would fill the memory, or that is not finite.
    """

    def __init__(self, batch: CrystalBatch, cutoff_ang: float):
        self.cutoff_ang, self.lattice, self.crystal = cutoff_ang, batch.lattice, batch.crystal
        device, n = batch.lattice.device, batch.n_atoms
        # Pairs (i, j) within each crystal
        starts = n.cumsum(0) - n
        count = n[batch.crystal]  # pairs that begin at each atom
        self.first = torch.repeat_interleave(torch.arange(len(count), device=device), count)
        within = torch.arange(len(self.first), device=device) - (count.cumsum(0) - count)[self.first]
        self.second = starts[batch.crystal][self.first] + within
        pair_crystal = batch.crystal[self.first]
        # Images that can be near: differences of fractions are rounded into [-1/2, 1/2]
        inverse, _ = torch.linalg.inv_ex(batch.lattice)  # not finite for a cell without a volume in float32
        heights = 1 / inverse.norm(dim=1)  # (B, 3) Å between opposite faces
        reaches = (cutoff_ang / heights + 0.5).floor()
        candidates = n**2 * (2 * reaches + 1).prod(dim=1)  # (B,)
        if (bad := torch.nonzero(~(candidates <= MAX_CANDIDATES))[:, 0]).numel():
            k = int(bad[0])
            faces = ", ".join(f"{height:.2g}" for height in heights[k].tolist())
            raise ValueError(
                f"crystal {k}: {int(n[k])} atoms in a cell whose opposite faces are {faces} Å apart see "
                f"{float(candidates[k]):.2g} images within {cutoff_ang:g} Å; wanted at most {MAX_CANDIDATES:,}"
            )
        reach = reaches.long().tolist()
        shifts, counts = [], []
        for a, b, c in reach:
            axes = [torch.arange(-r, r + 1, device=device) for r in (a, b, c)]
            shifts.append(torch.cartesian_prod(*axes))
            counts.append(len(shifts[-1]))
        images, n_images = torch.cat(shifts).to(batch.lattice.dtype), torch.tensor(counts, device=device)
        of_pair = n_images[pair_crystal]
        self.pair = torch.repeat_interleave(torch.arange(len(of_pair), device=device), of_pair)  # (candidates,)
        place = torch.arange(len(self.pair), device=device) - (of_pair.cumsum(0) - of_pair)[self.pair]
        image = images[(n_images.cumsum(0) - n_images)[pair_crystal][self.pair] + place]
        self.is_self = (self.first[self.pair] == self.second[self.pair]) & (image == 0).all(dim=1)
        self.shift = torch.bmm(image[:, None, :], batch.lattice[pair_crystal[self.pair]])[:, 0]  # (candidates, 3) Å

    def edges(self, frac_coords: Tensor) -> Edges:
        delta = frac_coords[self.second] - frac_coords[self.first]
        delta = delta - delta.round()
        nearest = torch.bmm(delta[:, None, :], self.lattice[self.crystal[self.first]])[:, 0]  # (pairs, 3) Å
        vector = nearest[self.pair] + self.shift
        square = (vector * vector).sum(dim=1)
        near = torch.nonzero((square < self.cutoff_ang**2) & ~self.is_self)[:, 0]
        pair = self.pair[near]
        return Edges(self.second[pair], self.first[pair], vector[near], square[near].sqrt())
