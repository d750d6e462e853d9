"""Refinement that never makes a record worse in silence: refine, check again, keep what passed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from crystallm.checks.filter import FilterConfig, filter_records
from crystallm.geometry import shortest_distance
from crystallm.records import CIFRecord
from crystallm.refine.checkpoint import load_refiner
from crystallm.refine.diffusion import CrystalDiffusionModel
from crystallm.refine.records import RefineConfig, refine_records
from crystallm.resources import resource_path
from crystallm.train.distribution import pick_device

BUNDLED_REFINER = "resources/refiner"
RECORDS_AT_ONCE = 2048
COMPARED = ("duplicate", "known")  # rejected beside other crystals, which no check of one record sees
ROUNDING_ANG = 1e-5  # of the coordinates in a CIF


def load(path: str | Path | None = None, device: str = "auto") -> tuple[CrystalDiffusionModel, dict[str, Any]]:
    """(model, info) of a refiner's checkpoint; the bundled one where none is named."""
    return load_refiner(resource_path(BUNDLED_REFINER) if path is None else path, pick_device(device))


def refine_checked(
    records: Iterable[CIFRecord],
    model: CrystalDiffusionModel,
    config: RefineConfig,
    checks: FilterConfig,
    model_hash: str = "",
    min_distance_ang: float | None = None,
) -> Iterator[CIFRecord]:
    """Records that were checked -> as many, in order, refined and checked by the same rules.

    `min_distance_ang` between any two atoms is wanted of what is refined, besides what the checks want.
    In provenance["refined"], "failed" says why a record stayed as it was, which passed and would not have passed
    refined; "mended" which check a record had failed that passes now. A record without a crystal comes back untouched,
    and so does a duplicate or a known one: the checks, which look at one record at a time, would let it pass.
    """
    waiting = iter(records)
    while before := list(itertools.islice(waiting, RECORDS_AT_ONCE)):
        after = filter_records(refine_records(before, model, config, model_hash), checks)
        if min_distance_ang is not None:
            after = (_kept_apart(record, min_distance_ang) for record in after)
        yield from (_better(old, new) for old, new in zip(before, after, strict=True))


def _kept_apart(record: CIFRecord, min_distance_ang: float) -> CIFRecord:
    if record.rejected_by is not None or record.crystal is None:
        return record
    found = shortest_distance(record.crystal.lattice, record.crystal.frac_coords)
    if found >= min_distance_ang - ROUNDING_ANG:
        return record
    reason = f"atoms {found:.3f} Å apart, {min_distance_ang:g} Å is asked for"
    return replace(record, rejected_by="distance", reason=reason)


def _better(old: CIFRecord, new: CIFRecord) -> CIFRecord:
    if new.provenance == old.provenance or old.rejected_by in COMPARED:
        return old
    if old.rejected_by is None and new.rejected_by is not None:
        return _noted(old, new, failed=f"{new.rejected_by}: {new.reason}")
    return _noted(new, new, mended=old.rejected_by) if old.rejected_by and new.rejected_by is None else new


def _noted(record: CIFRecord, refined: CIFRecord, **note: str) -> CIFRecord:
    return replace(record, provenance=record.provenance | {"refined": refined.provenance["refined"] | note})
