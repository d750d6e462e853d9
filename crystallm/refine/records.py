"""Records through the diffusion model: what a language model wrote, with its free coordinates (and cell) refined.

A space group holds atoms at places where no force pulls, also where the crystal would rather distort: a perovskite
drawn in Pm-3m stays there. With `free_symmetry` each crystal is refined without its space group as well, what the
network knows better is kept, and what has moved to more symmetric places gets the group found there.
"""

from __future__ import annotations

import contextlib
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
# Chosen on Perov-5's validation rows. Atoms moved by 0.1 Å distort crystals that are right as they are, and the network
# likes it: the best of 20 gains nothing then. By 0.7 Å they come back, or find another arrangement, told by its errors.
SHAKEN_ANG = 0.7
ADVANTAGE = 0.1  # of the space group, in denoising errors


@dataclass(frozen=True)
class RefineConfig:
    # How far from right the atoms are thought to be, before. On MP-20 validation samples 0.5 Å takes as much off the
    # RMSE as 0.7, and less off the cell's error; 0.9 to 1 Å a little more off both, and a match lost. 12 steps in
    # place of 6: one point of RMSE more, for a quarter more time. A cell that is free helps both.
    start_sigma_ang: float = 0.7
    num_steps: int = 12
    free_cell: bool = True
    free_symmetry: int = 0  # attempts with every atom free, from places off by SHAKEN_ANG
    seed: int = 0  # of these places

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"at least 1 step of refinement is wanted, got {self.num_steps}")
        if not 0 < self.start_sigma_ang < math.inf:
            raise ValueError(f"sigma, how far off atoms may be, is a length above 0 Å, got {self.start_sigma_ang}")
        if self.free_symmetry < 0:
            raise ValueError(f"free_symmetry is a number of attempts, got {self.free_symmetry}")


def refine_records(
    records: Iterable[CIFRecord], model: CrystalDiffusionModel, config: RefineConfig, model_hash: str = ""
) -> Iterator[CIFRecord]:
    """Each record in order: refined, or as it was where it has no crystal.

    A refined one has a new `cif` and `text`, how far its atoms moved (root mean square, Å) in `scores`, and the
    settings in its provenance; what checks said before is forgotten, and they are not run here. The space group that
    its text states is kept. A CIF without such a text, and with `free_symmetry` any record, gets the group found in its
    atoms where this has become another: provenance["refined"] has the one before.
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
    if config.free_symmetry:
        settings |= {"free_symmetry": config.free_symmetry, "seed": config.seed}
    about = {"model_hash": model_hash, **settings}
    bound = refine_units(list(units.values()), model, config)
    better = distorted(list(units.values()), bound, model, config)
    for place, (k, new) in enumerate(zip(units, bound, strict=True)):
        crystal, after = better.get(place) or (new, units[k].with_result(new.lattice, new.frac_coords))
        shift = crystal.frac_coords - units[k].crystal.frac_coords
        moved_ang = float(np.sqrt(np.mean(np.sum(((shift - np.rint(shift)) @ crystal.lattice) ** 2, axis=1))))
        found_group = config.free_symmetry > 0 or not records[k].text
        done[k] = _refined(records[k], units[k].unit, after, found_group, moved_ang, about)
    return done


def refine_units(units: Sequence[UnitCrystal], model: CrystalDiffusionModel, config: RefineConfig) -> list[Crystal]:
    """The primitive cells, refined, in order. Their space groups are kept."""
    refined: dict[int, Crystal] = {}
    for chosen in _batches(units):
        crystals, orbits = [units[k].crystal for k in chosen], [units[k].orbits for k in chosen]
        after = model.refine(crystals, orbits, config.start_sigma_ang, config.num_steps, config.free_cell)
        refined.update(zip(chosen, after, strict=True))
    return [refined[k] for k in range(len(units))]


def distorted(
    units: Sequence[UnitCrystal], bound: Sequence[Crystal], model: CrystalDiffusionModel, config: RefineConfig
) -> dict[int, tuple[Crystal, AsymmetricUnit]]:
    """Of the places where an attempt without the space group has come out better than `bound`, refined within it: the
    primitive cell, its atoms in the order of before, and its description in the group that it has now.

    Judged by `model.denoising_errors`, with an advantage for the group of ADVANTAGE: two ways down to one crystal
    differ by chance, and one that keeps the symmetry ends at special positions exactly.
    """
    if not config.free_symmetry:
        return {}
    least = model.denoising_errors(bound) - ADVANTAGE
    best: dict[int, tuple[Crystal, AsymmetricUnit]] = {}
    for attempt in range(config.free_symmetry):
        found: dict[int, Crystal] = {}
        for number, chosen in enumerate(_batches(units)):
            seed = int(np.random.default_rng([config.seed, attempt, number]).integers(2**31))
            settings = (config.start_sigma_ang, config.num_steps, config.free_cell, SHAKEN_ANG, seed)
            found.update(zip(chosen, model.refine([units[k].crystal for k in chosen], None, *settings), strict=True))
        errors = model.denoising_errors([found[k] for k in range(len(units))])
        for k in np.flatnonzero(errors < least).tolist():
            with contextlib.suppress(CanonicalError):  # what cannot be described is no answer: the one before stays
                best[k] = found[k], canonicalize(found[k])
                least[k] = errors[k]
    return best


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


def _refined(
    record: CIFRecord,
    before: AsymmetricUnit,
    unit: AsymmetricUnit,
    found_group: bool,
    moved_ang: float,
    about: dict[str, Any],
) -> CIFRecord:
    """`found_group`: it is written in the group that its atoms have now, whatever it was before."""
    found: AsymmetricUnit | CanonicalError
    try:
        found = canonicalize(unit.to_crystal())
    except CanonicalError as err:
        found = err
    if found_group and isinstance(found, AsymmetricUnit) and found.group.symbol != unit.group.symbol:
        unit = found
    if unit.group.symbol != before.group.symbol:
        about = about | {"space_group_before": before.group.symbol}
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
