"""Whether a diffusion model finds known crystals from pure noise, told the cell and the atoms in it.

FCC, BCC and diamond, in cells that the tutorial's model was not trained on; or any crystals, in conventional cells.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crystallm.asymmetric_unit import CanonicalError
from crystallm.benchmark.datasets import Reference
from crystallm.canonical import canonicalize
from crystallm.crystal import Crystal
from crystallm.geometry import coordination_numbers
from crystallm.matching import distance_to, reduce_crystal
from crystallm.refine.diffusion import CrystalDiffusionModel, Sampler
from crystallm.refine.supercells import supercell
from crystallm.refine.tutorial import PROTOTYPES, Prototype
from crystallm.sample.diffused import DiffuseConfig, Diffused, diffuse
from crystallm.text_table import text_table

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
    candidates: int | None = None,
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


def recovery_table(rows: Sequence[Recovery]) -> str:
    header = ["lattice", "a (Å)", "cells", "atoms right", "recovered", "valid"]
    body = [
        [
            row.name,
            f"{row.lattice_ang:.2f}",
            f"{row.cells}x{row.cells}x{row.cells}",
            f"{100 * row.share_of_atoms:.1f} %",
            f"{row.n_recovered} of {row.n_drawn}",
            str(row.n_valid),
        ]
        for row in rows
    ]
    return text_table(header, body)


def recover_prototypes(model: CrystalDiffusionModel, cells: Sequence[int], **settings: Any) -> str:
    """The table; settings as in `recover`."""
    return recovery_table([recover(model, one, n, **settings) for n in cells for one in PROTOTYPES])


# ---------------------------------------------------------------- known crystals


@dataclass(frozen=True)
class Found:
    """Of crystals drawn in conventional cells, one for each, those that match."""

    candidates: int
    n_cells: int
    n_matched: int
    mean_distance: float  # of these, in units of (volume / n_atoms) ** (1/3); nan where none matches
    cpu_s: float


def conventional_cells(references: Sequence[Reference], max_atoms: int) -> list[Crystal]:
    """Of the crystals that can be read and described, those with no more atoms in them."""
    cells = []
    for one in references:
        with contextlib.suppress(CanonicalError):
            if one.crystal is not None:
                cells.append(canonicalize(one.crystal).to_crystal())
    return [cell for cell in cells if cell.n_atoms <= max_atoms]


def find_known(
    model: CrystalDiffusionModel, cells: Sequence[Crystal], candidates: int, num_steps: int | None, seed: int
) -> Found:
    """One structure for each cell, of which the model is told lattice and species."""
    start, distances = time.process_time(), []
    for place, cell in enumerate(cells):
        a, b, c, *angles = cell.cell.tolist()
        config = DiffuseConfig(
            tuple(cell.symbols),
            (a, b, c, *angles),
            num_steps=num_steps,
            seed=seed + place,
            candidates=candidates,
        )
        [one] = diffuse(model, config)
        distances.append(distance_to(one.crystal, reduce_crystal(cell)))
    matched = [distance for distance in distances if not math.isnan(distance)]
    mean = float(np.mean(matched)) if matched else math.nan
    return Found(candidates, len(cells), len(matched), mean, time.process_time() - start)


def found_table(rows: Sequence[Found]) -> str:
    header = ["candidates", "matched", "%", "mean distance", "CPU s a structure"]
    body = [
        [
            str(row.candidates),
            f"{row.n_matched} of {row.n_cells}",
            f"{100 * row.n_matched / row.n_cells:.1f}",
            f"{row.mean_distance:.3f}",
            f"{row.cpu_s / row.n_cells:.2f}",
        ]
        for row in rows
    ]
    return text_table(header, body)
