"""Records through the diffusion model: what a language model wrote, with its free coordinates (and cell) refined."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError
from crystallm.canonical import canonicalize
from crystallm.cif import CIFError, parse_cif
from crystallm.cif_write import write_cif
from crystallm.crystal import Crystal
from crystallm.records import CIFRecord
from crystallm.refine.batch import at_once
from crystallm.refine.diffusion import CrystalDiffusionModel
from crystallm.refine.units import UnitCrystal

RECORDS_AT_ONCE = 2048  # read and sorted by size


@dataclass(frozen=True)
class RefineConfig:
    # How far from right the atoms are thought to be, before. On MP-20 validation samples 0.5 Å takes as much off the
    # RMSE as 0.7, and less off the cell's error; 0.9 to 1 Å a little more off both, and a match lost. 12 steps in
    # place of 6: one point of RMSE more, for a quarter more time. A cell that is free helps both.
    start_sigma_ang: float = 0.7
    num_steps: int = 12
    free_cell: bool = True
    add_noise: bool = False  # draw noise of that width first
    seed: int = 0  # of that noise

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"at least 1 step of refinement is wanted, got {self.num_steps}")
        if not 0 < self.start_sigma_ang < math.inf:
            raise ValueError(f"sigma, how far off atoms may be, is a length above 0 Å, got {self.start_sigma_ang}")


def refine_records(
    records: Iterable[CIFRecord], model: CrystalDiffusionModel, config: RefineConfig, model_hash: str = ""
) -> Iterator[CIFRecord]:
    """Each record in order: refined, or as it was where it has no crystal.

    A refined one has a new `cif` and `text`, how far its atoms moved (root mean square, Å) in `scores`, and the
    settings in its provenance; what checks said before is forgotten, and they are not run here. The space group that
    its text states is kept. A CIF without such a text keeps the group found in its atoms, and where these have moved to
    more symmetric places gets the group found then: provenance["refined"] has the one before.
    """
    window: list[CIFRecord] = []
    for record in records:
        window.append(record)
        if len(window) == RECORDS_AT_ONCE:
            yield from _refine_window(window, model, config, model_hash)
            window = []
    yield from _refine_window(window, model, config, model_hash)


def _refine_window(
    records: list[CIFRecord], model: CrystalDiffusionModel, config: RefineConfig, model_hash: str
) -> list[CIFRecord]:
    done = list(records)
    units = {k: unit for k, record in enumerate(records) if (unit := unit_of(record)) is not None}
    settings = {"sigma_ang": config.start_sigma_ang, "num_steps": config.num_steps, "free_cell": config.free_cell}
    if config.add_noise:
        settings |= {"add_noise": True, "seed": config.seed}
    about = {"model_hash": model_hash, **settings}
    for k, new in zip(units, refine_units(list(units.values()), model, config), strict=True):
        old = units[k].crystal
        shift = new.frac_coords - old.frac_coords
        moved_ang = float(np.sqrt(np.mean(np.sum(((shift - np.rint(shift)) @ new.lattice) ** 2, axis=1))))
        done[k] = _refined(records[k], units[k].with_result(new.lattice, new.frac_coords), moved_ang, about)
    return done


def refine_units(units: Sequence[UnitCrystal], model: CrystalDiffusionModel, config: RefineConfig) -> list[Crystal]:
    """The primitive cells, refined, in order."""
    refined: dict[int, Crystal] = {}
    for chosen in _batches(units):
        after = model.refine(
            [units[k].crystal for k in chosen],
            [units[k].orbits for k in chosen],
            config.start_sigma_ang,
            config.num_steps,
            config.free_cell,
            config.add_noise,
            config.seed,
        )
        refined.update(zip(chosen, after, strict=True))
    return [refined[k] for k in range(len(units))]


def unit_of(record: CIFRecord) -> UnitCrystal | None:
    """None for what has no crystal: a sample without an end, a CIF that cannot be read or described."""
    try:
        if record.text:
            return UnitCrystal.of(AsymmetricUnit.from_text(record.text))
        return UnitCrystal.of(canonicalize(parse_cif(record.cif)[0]))
    except (CanonicalError, CIFError):
        return None


def _batches(units: Sequence[UnitCrystal]) -> Iterator[list[int]]:
    """Places of crystals with like numbers of neighbours."""
    order = sorted(range(len(units)), key=lambda k: units[k].crystal.n_atoms / units[k].crystal.volume_ang3)
    for places in at_once(units[k].crystal.n_atoms for k in order):
        yield [order[place] for place in places]


def _refined(record: CIFRecord, unit: AsymmetricUnit, moved_ang: float, about: dict[str, Any]) -> CIFRecord:
    found: AsymmetricUnit | CanonicalError
    try:
        found = canonicalize(unit.to_crystal())
    except CanonicalError as err:
        found = err
    before = unit.group.symbol
    if not record.text and isinstance(found, AsymmetricUnit) and found.group.symbol != before:
        unit, about = found, about | {"space_group_before": before}
    provenance = record.provenance | {"refined": about}
    changed = replace(
        record,
        cif=write_cif(unit, provenance),
        provenance=provenance,
        scores=record.scores | {"refined_by_ang": moved_ang},
        crystal=None,
        header=None,
        rejected_by=None,
        reason="",
    )
    if isinstance(found, AsymmetricUnit):
        return replace(changed, text=found.to_text())
    return replace(changed, text="", rejected_by=found.reason, reason=f"after refinement: {found}")
