"""A second structure encoder: crystal graph convolutions of PyTorch Geometric, through the same interface.

CGCNN's layer (Xie and Grossman, Phys. Rev. Lett. 120, 145301, 2018, eq. 5) over the edges that the transformer sees,
with radial functions of their length; it knows distances, no angles.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crystallm.periodic.basis import N_SPECIES, Radial
from crystallm.periodic.neighbours import Neighbours
from crystallm.periodic.precision import exactly
from crystallm.properties.encoding import Encoding
from crystallm.properties.structure import AtomsEncoder, AtomsPart, Places, StructureConfig


class GraphEncoder(AtomsEncoder):
    """Crystals -> one token for each atom. ImportError without torch_geometric."""

    def __init__(self, config: StructureConfig):
        super().__init__(config)
        try:
            from torch_geometric.nn import CGConv
        except ImportError as err:
            raise ImportError(
                "the structure encoder 'cgcnn' needs torch_geometric: install crystallm with its extra `graph`"
            ) from err
        self.species = nn.Embedding(N_SPECIES, config.width)
        self.radial = Radial(config.n_radial, config.cutoff_ang)
        layers: list[Any] = [CGConv(config.width, config.n_radial, aggr="mean") for _ in range(config.n_layer)]
        self.blocks = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, part: AtomsPart) -> Encoding:
        with exactly(part.lattice.device):
            edges = Neighbours(part.lattice, part.n_atoms, self.config.cutoff_ang).edges(part.frac_coords)
            ends = torch.stack([edges.source, edges.target])  # (2, E): messages go from the first to the second
            radial = self.radial(edges.length)
            atoms: Tensor = self.species(part.atomic_numbers)
            for block in self.blocks:
                atoms = block(atoms, ends, radial)
        places = Places(part.n_atoms)
        return Encoding(places.per_crystal(self.norm(atoms)), places.mask)
