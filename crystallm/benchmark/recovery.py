"""Whether the tutorial's diffusion model finds FCC, BCC and diamond from pure noise, in cells it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from crystallm.geometry import coordination_numbers
from crystallm.refine.diffusion import CrystalDiffusionModel, Sampler
from crystallm.refine.supercells import supercell
from crystallm.refine.tutorial import PROTOTYPES, Prototype
from crystallm.sample.diffused import CANDIDATES, DiffuseConfig, Diffused, diffuse

# Å: 3 % above the prototypes' own; variants may be strained by 5 %, but to other lengths
LATTICE_ANG = {"fcc": 4.18, "bcc": 2.95, "diamond": 3.66}


@dataclass(frozen=True)
class Recovery:
    name: str
    lattice_ang: float
    cells: int  # along each edge
    n_drawn: int
    n_recovered: int  # every atom has the neighbours of the prototype
    n_valid: int
    share_of_atoms: float  # that have them


def recover(
    model: CrystalDiffusionModel,
    prototype: Prototype,
    cells: int = 1,
    num: int = 20,
    seed: int = 0,
    sampler: Sampler = "predictor_corrector",
    corrector_steps: int = 5,
    candidates: int = CANDIDATES,
) -> Recovery:
    """Draw the prototype's element in `cells`³ of its conventional cells; settings as in sample.diffused."""
    a = LATTICE_ANG[prototype.name]
    wanted = supercell(prototype.crystal(lattice_ang=a), (cells, cells, cells))
    config = DiffuseConfig(
        tuple(wanted.symbols),
        (cells * a,),
        num,
        sampler=sampler,
        corrector_steps=corrector_steps if sampler == "predictor_corrector" else None,
        candidates=candidates,
        seed=seed,
    )
    drawn = list(diffuse(model, config))
    right = np.array([share_right(one, prototype) for one in drawn])
    n_valid = sum(one.valid for one in drawn)
    return Recovery(prototype.name, a, cells, num, int((right == 1).sum()), n_valid, float(right.mean()))


def share_right(one: Diffused, prototype: Prototype) -> float:
    """Of the atoms, those with the prototype's number of neighbours."""
    neighbours = coordination_numbers(one.crystal.lattice, one.crystal.frac_coords)
    return float((neighbours == prototype.coordination).mean())


def recovery_table(rows: list[Recovery]) -> str:
    lines = ["lattice   a (Å)  cells  atoms right  recovered  valid"]
    for row in rows:
        lines.append(
            f"{row.name:<8}  {row.lattice_ang:5.2f}  {row.cells}x{row.cells}x{row.cells}"
            f"  {100 * row.share_of_atoms:9.1f} %  {row.n_recovered:>3} of {row.n_drawn}  {row.n_valid:>3}"
        )
    return "\n".join(lines)


def run(model: CrystalDiffusionModel, cells: list[int], **settings: Any) -> str:
    """The table; settings as in `recover`."""
    return recovery_table([recover(model, one, n, **settings) for n in cells for one in PROTOTYPES])
