"""Refinement that never makes a record worse in silence: refine, check again, keep what passed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crystallm.checks.filter import FilterConfig, filter_records
from crystallm.records import CIFRecord
from crystallm.refine.checkpoint import load_refiner
from crystallm.refine.diffusion import CrystalDiffusionModel
from crystallm.refine.records import RefineConfig, refine_records
from crystallm.resources import resource_path
from crystallm.sample.generate import pick_device

BUNDLED_REFINER = "resources/refiner"
RECORDS_AT_ONCE = 2048


def load(path: str | Path | None = None, device: str = "auto") -> tuple[CrystalDiffusionModel, dict[str, Any]]:
    """(model, info) of a refiner's checkpoint; the bundled one where none is named."""
    return load_refiner(resource_path(BUNDLED_REFINER) if path is None else path, pick_device(device))


@dataclass
class RefineCounts:
    refined: int = 0  # taken
    repaired: int = 0  # of these, rejected before and valid now
    kept: int = 0  # valid before, not after: the original stays
    untouched: int = 0  # without a crystal

    def __str__(self) -> str:
        text = f"refined {self.refined}"
        if self.repaired:
            text += f", {self.repaired} of them rejected before"
        if self.kept:
            text += f"; {self.kept} kept as they were, since the refined crystal failed a check"
        return text + (f"; {self.untouched} without a crystal" if self.untouched else "")


def refine_checked(
    records: Iterable[CIFRecord],
    model: CrystalDiffusionModel,
    config: RefineConfig,
    checks: FilterConfig,
    model_hash: str = "",
    counts: RefineCounts | None = None,
) -> Iterator[CIFRecord]:
    """Records that were checked -> as many, in order, refined and checked by the same rules.

    One that passed and fails when refined comes back as it was; provenance["refined"]["failed"] says why.
    """
    counts = RefineCounts() if counts is None else counts
    waiting = iter(records)
    while before := list(itertools.islice(waiting, RECORDS_AT_ONCE)):
        after = list(filter_records(refine_records(before, model, config, model_hash), checks))
        for old, new in zip(before, after, strict=True):
            if "refined" not in new.provenance or new.provenance == old.provenance:
                counts.untouched += 1
                yield old
            elif old.rejected_by is None and new.rejected_by is not None:
                counts.kept += 1
                why = {"refined": new.provenance["refined"] | {"failed": f"{new.rejected_by}: {new.reason}"}}
                yield replace(old, provenance=old.provenance | why)
            else:
                counts.refined += 1
                counts.repaired += old.rejected_by is not None and new.rejected_by is None
                yield new
