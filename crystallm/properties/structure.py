"""A transformer over the atoms of periodic crystals: every image of every neighbour is attended to on its own.

An atom i weighs its neighbours' images by exp(q_i · k_j + f(r)) times an envelope that ends smoothly at the cutoff, and
a constant for nobody, so that an atom alone is no special case and a second shell dilutes the first. What it gathers
with these weights is values of the neighbours, radial functions of their distances, and, head by head, spherical
harmonics of their directions, whose squared sums no rotation changes. So species, distances and angles are seen;
origin, order, orientation and the choice of the cell are not: a supercell's atoms get the same vectors.

Attention to all images as in Crystalformer (Taniai et al., ICLR 2024), with a cutoff in place of its Gaussian sums.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from crystallm.crystal import Crystal
from crystallm.periodic.basis import N_SPECIES, Radial
from crystallm.periodic.neighbours import Edges, Neighbours
from crystallm.periodic.precision import exactly
from crystallm.periodic.shells import Shells
from crystallm.properties.encoding import Encoder, Encoding

N_ANGULAR = 4  # radial functions that the harmonics are multiplied by
MAX_LOGIT = 40.0  # exp of it and sums of such stay far within float32


@dataclass(frozen=True)
class StructureConfig:
    encoder: Literal["transformer", "cgcnn"] = "transformer"  # cgcnn: a graph network (graph.py; the extra `graph`)
    width: int = 128
    n_layer: int = 3
    n_head: int = 8
    n_radial: int = 16
    cutoff_ang: float = 5.0
    max_atoms: int = 500  # a crystal with more is refused
    dropout: float = 0.0  # of what each layer adds to its atoms

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        for name in ("width", "n_layer", "n_head", "n_radial", "cutoff_ang", "max_atoms"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.width % self.n_head:
            raise ValueError(f"width must be divisible by n_head (={self.n_head}), got {self.width}")


@dataclass(frozen=True, eq=False)
class AtomsPart:
    """B crystals with N atoms in all."""

    lattice: Tensor  # (B, 3, 3) rows, Å
    frac_coords: Tensor  # (N, 3)
    atomic_numbers: Tensor  # (N,) int64
    n_atoms: Tensor  # (B,) int64
    known: dict[tuple[float, int], Surroundings] = field(default_factory=dict, init=False)

    def to(self, device: torch.device | str) -> AtomsPart:
        tensors = (self.lattice, self.frac_coords, self.atomic_numbers, self.n_atoms)
        return AtomsPart(*(tensor.to(device) for tensor in tensors))

    def around(self, radial: Radial) -> Surroundings:
        """Reckoned once for encoders of one cutoff and number of waves, as the members of an ensemble are."""
        kind = radial.cutoff_ang, len(radial.frequencies)
        if kind not in self.known:
            with exactly(self.lattice.device):
                edges = Neighbours(self.lattice, self.n_atoms, radial.cutoff_ang).edges(self.frac_coords)
                self.known[kind] = Surroundings(edges, self.n_atoms, radial)
        return self.known[kind]


class AtomsEncoder(Encoder):
    """What encoders of structures have in common: crystals in, one token for each atom out."""

    modality = "structure"
    reads = "crystal"

    def __init__(self, config: StructureConfig):
        super().__init__()
        self.config, self.width = config, config.width

    def collate(self, items: Sequence[Crystal]) -> AtomsPart:
        """ValueError for a crystal with too many atoms."""
        for item in items:
            if not 1 <= item.n_atoms <= self.config.max_atoms:
                raise ValueError(f"{item.n_atoms} atoms in the cell, wanted 1 to {self.config.max_atoms}")
        return AtomsPart(
            torch.from_numpy(np.stack([item.lattice for item in items]).astype(np.float32)),
            torch.from_numpy(np.concatenate([item.frac_coords for item in items]).astype(np.float32)),
            torch.from_numpy(np.concatenate([item.atomic_numbers for item in items]).astype(np.int64)),
            torch.tensor([item.n_atoms for item in items]),
        )


class StructureEncoder(AtomsEncoder):
    """The periodic transformer."""

    def __init__(self, config: StructureConfig | None = None):
        super().__init__(config or StructureConfig())
        config = self.config
        self.species = nn.Embedding(N_SPECIES, config.width)
        self.radial = Radial(config.n_radial, config.cutoff_ang)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.species.weight, std=0.5)

    def forward(self, part: AtomsPart) -> Encoding:
        around = part.around(self.radial)
        if torch.is_autocast_enabled(part.lattice.device.type):  # once, not in each layer
            around = around.cast(torch.get_autocast_dtype(part.lattice.device.type))
        atoms = self.species(part.atomic_numbers)  # (N, C)
        for block in self.blocks:
            atoms = block(atoms, around)
        return Encoding(around.per_crystal(self.norm(atoms)), around.mask)


class Places:
    """Atoms one after another, and in a row for each crystal."""

    def __init__(self, n_atoms: Tensor):
        self.shape = (len(n_atoms), int(n_atoms.max()))  # (B, most)
        self.mask = torch.arange(self.shape[1], device=n_atoms.device) < n_atoms[:, None]  # (B, most)
        self.slot = self.mask.flatten().nonzero()[:, 0]  # (N,) each atom's place among (B * most)

    def per_crystal(self, atoms: Tensor) -> Tensor:
        """(N, C) -> (B, most, C), 0 where no atom is"""
        padded = atoms.new_zeros(self.mask.numel(), atoms.shape[1]).index_copy(0, self.slot, atoms)
        return padded.view(*self.shape, -1)

    def per_atom(self, values: Tensor) -> Tensor:
        """(B, most, C) -> (N, C)"""
        return values.flatten(0, 1).index_select(0, self.slot)


class Surroundings(Places):
    """What all layers need to know of where the atoms are, reckoned once a batch."""

    def __init__(self, edges: Edges, n_atoms: Tensor, radial: Radial):
        super().__init__(n_atoms)
        shells = Shells(edges, len(self.slot))
        self.shells = shells
        # Where the pair (i, j) of an edge stands among (B * most * most)
        most = self.shape[1]
        self.pair = self.slot[edges.target] * most + self.slot[edges.source] % most  # (E,)
        self.radial = radial(edges.length)  # (E, R)
        x = edges.length / radial.cutoff_ang
        self.envelope = (1 - x * x).clamp(min=0)[:, None] ** 3  # (E, 1)
        angular = shells.harmonics.transpose(1, 2)[..., None] * shells.rows(self.radial)[:, :, None, :N_ANGULAR]
        ones = shells.is_there.to(angular.dtype)[:, :, None]
        # (N, width, 1 + R + 9 * N_ANGULAR), 0 where there is no neighbour
        self.gathered = torch.cat([ones, shells.rows(self.radial), angular.flatten(2)], dim=2)

    def cast(self, dtype: torch.dtype) -> Surroundings:
        """The same with what products are taken of in another type"""
        other = copy.copy(self)
        other.radial, other.gathered = self.radial.to(dtype), self.gathered.to(dtype)
        return other


class Block(nn.Module):
    def __init__(self, config: StructureConfig):
        super().__init__()
        c, h, r = config.width, config.n_head, config.n_radial
        self.n_head, self.n_radial = h, r
        self.norm = nn.LayerNorm(c)
        self.query_key_value = nn.Linear(c, 3 * c)
        self.distance = nn.Linear(r, h)  # f(r) of each head
        n_invariant = h * (r + 2 * N_ANGULAR)
        self.gather = nn.Linear(n_invariant, c, bias=False)
        self.out = nn.Linear(c, c)
        self.norm_mlp = nn.LayerNorm(c)
        self.mlp = nn.Sequential(nn.Linear(c, 2 * c), nn.SiLU(), nn.Linear(2 * c, c))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, atoms: Tensor, around: Surroundings) -> Tensor:
        """(N, C) -> (N, C)"""
        (b, most), h = around.shape, self.n_head
        q, k, v = around.per_crystal(self.query_key_value(self.norm(atoms))).view(b, most, 3, h, -1).unbind(2)
        scale = q.shape[-1] ** -0.5
        alike = torch.einsum("bihd,bjhd->bijh", q * scale, k).reshape(-1, h)  # (B * most * most, H)
        logits = alike.index_select(0, around.pair) + self.distance(around.radial)  # (E, H)
        weights = logits.float().clamp(max=MAX_LOGIT).exp() * around.envelope  # (E, H), not yet divided by their sum
        # Values: the weights of all images of a pair together, then one product a crystal
        of_pairs = weights.new_zeros(b * most * most, h).index_add(0, around.pair, weights)
        values = torch.einsum("bijh,bjhd->bihd", of_pairs.view(b, most, most, h).to(v.dtype), v)
        gathered = torch.einsum("nwh,nwg->nhg", around.shells.rows(weights), around.gathered)
        sums, gathered = gathered[:, :, :1] + 1, gathered[:, :, 1:]  # and exp(0) for nobody
        values = around.per_atom(values.flatten(2)).unflatten(1, (h, -1)) / sums
        radial, angular = (gathered / sums).split([self.n_radial, 9 * N_ANGULAR], dim=2)
        angular = angular.unflatten(2, (9, N_ANGULAR))
        first, second = angular[:, :, 1:4].square().sum(2), angular[:, :, 4:].square().sum(2)  # (N, H, N_ANGULAR)
        invariant = torch.cat([radial, first, second], dim=2).flatten(1)
        atoms = atoms + self.dropout(self.out(values.flatten(1)) + self.gather(invariant))
        return atoms + self.dropout(self.mlp(self.norm_mlp(atoms)))
