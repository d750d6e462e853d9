"""Crystals of different size in flat tensors, without padding, and the pairs of atoms that see each other."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from crystallm.crystal import Crystal
from crystallm.refine.orbits import Orbits, free_orbits

ATOMS_AT_ONCE = 640  # in one batch; more is slower on a CPU, whose cache they leave


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


def at_once(n_atoms: Iterable[int]) -> Iterator[range]:
    """Places of crystals of `n_atoms`, in order: as many as have ATOMS_AT_ONCE atoms together, or one."""
    start, end, total = 0, 0, 0
    for end, n in enumerate(n_atoms):
        if end > start and total + n > ATOMS_AT_ONCE:
            yield range(start, end)
            start, total = end, 0
        total += n
    if total:
        yield range(start, end + 1)


def _ranges(counts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The places, in arrays of all items one after another, of the items of the chosen ones."""
    starts, sizes = (np.cumsum(counts) - counts)[chosen], counts[chosen]
    return np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
