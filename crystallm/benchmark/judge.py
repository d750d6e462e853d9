"""What worker processes do for a benchmark: check the samples of a target, match them, select among them.

Everything here takes and returns plain data, so that it travels between processes and into parquet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from crystallm.checks.filter import FilterConfig, parse_record
from crystallm.checks.rules import Check
from crystallm.crystal import Crystal
from crystallm.matching import distance_to, reduce_crystal, rms_of_reduced
from crystallm.records import CIFRecord

CDVAE_CHECKS = ("cdvae_composition", "cdvae_structure")


@dataclass(frozen=True, eq=False)
class Task:
    id: str
    cif: str  # of the reference
    crystal: Crystal | None  # None where the row cannot be read
    records: tuple[CIFRecord, ...]  # in the order drawn, not yet checked
    select: tuple[str, ...] = ()  # ways to select one of them


@dataclass(eq=False)
class Judged:
    """Of one target. The lists run over its samples; "" stands for a check that was passed."""

    id: str
    rms: list[float] = field(default_factory=list)  # nan: no match
    rejected_by: list[str] = field(default_factory=list)  # by the default rules
    reason: list[str] = field(default_factory=list)
    cdvae_rejected_by: list[str] = field(default_factory=list)
    restarts: list[int] = field(default_factory=list)
    selected: list[int] = field(default_factory=list)  # by way to select; -1: none
    select_cpu_s: list[float] = field(default_factory=list)
    checks_cpu_s: float = 0.0
    match_cpu_s: float = 0.0
    wall_s: float = 0.0
    errors: list[str] = field(default_factory=list)  # what the matcher or a selection could not do: a miss
    reference_failed: list[str] = field(default_factory=list)  # CDVAE's checks that the true structure fails
    reference_text: str = ""  # canonical; "" where it has none
    lost: str = ""  # why nothing could be said of this target: unread row, refused prompt, failed worker


def lost(target: str, why: str, num: int = 0, n_select: int = 0, rejected_by: str = "error") -> Judged:
    """A target without a result: all its samples are misses."""
    return Judged(
        target,
        rms=[math.nan] * num,
        rejected_by=[rejected_by] * num,
        reason=[why] * num,
        cdvae_rejected_by=[rejected_by] * num,
        restarts=[0] * num,
        selected=[-1] * n_select,
        select_cpu_s=[0.0] * n_select,
        lost=why,
    )


def judge_target(task: Task) -> Judged:
    wall, cpu = time.perf_counter(), time.process_time()
    result = Judged(task.id, reference_text=_canonical_text(task.crystal))
    reference = parse_record(CIFRecord(task.id, task.cif))
    rules = {name: FilterConfig(name).rejecting() for name in ("default", "cdvae")}
    result.reference_failed = [] if reference.rejected_by else _failures(reference, rules["cdvae"])
    checked: list[CIFRecord] = []
    crystals: list[Crystal | None] = []
    for record in task.records:
        # What the sampler rejected stays so: it has no end, or describes no cell.
        parsed = parse_record(record)
        by_default, by_cdvae = (_first_failure(parsed, checks) for checks in (rules["default"], rules["cdvae"]))
        checked.append(by_default)
        crystals.append(sample_crystal(record, parsed))
        result.rejected_by.append(by_default.rejected_by or "")
        result.reason.append(by_default.reason)
        result.cdvae_rejected_by.append(by_cdvae.rejected_by or "")
        result.restarts.append(int(record.provenance.get("restarts", 0)))
    result.checks_cpu_s = time.process_time() - cpu
    cpu = time.process_time()
    result.rms, result.errors = _distances(task, crystals)
    result.match_cpu_s = time.process_time() - cpu
    for way in task.select:
        from crystallm.sample.selection import select

        cpu = time.process_time()
        try:
            index = select(checked, by=way) if checked else None
        except Exception as err:  # clusters call the matcher too
            index = None
            result.errors.append(f"select by {way}: {type(err).__name__}: {err}")
        result.selected.append(-1 if index is None else index)
        result.select_cpu_s.append(time.process_time() - cpu)
    result.wall_s = time.perf_counter() - wall
    return result


def _distances(task: Task, crystals: Sequence[Crystal | None]) -> tuple[list[float], list[str]]:
    """Distances to the reference, and what went wrong; equal samples are matched once."""
    if task.crystal is None:
        return [math.nan] * len(crystals), []
    reference = reduce_crystal(task.crystal)
    known: dict[str, float] = {}
    rms, errors = [], []
    for record, crystal in zip(task.records, crystals, strict=True):
        key = record.text or record.cif
        if key not in known:
            try:
                known[key] = math.nan if crystal is None else distance_to(crystal, reference)
            except Exception as err:  # pymatgen and LAPACK raise nearly anything for a degenerate cell
                known[key] = math.nan
                errors.append(f"{record.id}: {type(err).__name__}: {err}")
        rms.append(known[key])
    return rms, errors


def _first_failure(parsed: CIFRecord, checks: Sequence[Check]) -> CIFRecord:
    if parsed.rejected_by is not None:
        return parsed
    for check in checks:
        if (reason := check.function(parsed)) is not None:
            return replace(parsed, rejected_by=check.name, reason=reason)
    return parsed


def _failures(parsed: CIFRecord, checks: Sequence[Check]) -> list[str]:
    return [check.name for check in checks if check.function(parsed) is not None]


def sample_crystal(record: CIFRecord, parsed: CIFRecord | None = None) -> Crystal | None:
    """Of any sample that ended: the primitive cell of a canonical text, else the cell of the full CIF."""
    from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError, is_canonical, to_primitive

    if record.rejected_by is not None:
        return None
    if not is_canonical(record.text):
        return (parsed or parse_record(record)).crystal
    try:
        unit = AsymmetricUnit.from_text(record.text)
        return to_primitive(unit.to_crystal(), unit.group)
    except CanonicalError:
        return None


def _canonical_text(crystal: Crystal | None) -> str:
    from crystallm.asymmetric_unit import CanonicalError
    from crystallm.canonical import canonicalize

    try:
        return "" if crystal is None else canonicalize(crystal).to_text()
    except CanonicalError:
        return ""


# ---------------------------------------------------------------- polymorphs: samples of one row, structures of another


@dataclass(frozen=True, eq=False)
class Block:
    """Predictions and references of one formula, all against all but a row's own."""

    references: tuple[tuple[int, Crystal], ...]  # (row, crystal)
    predictions: tuple[tuple[int, int, CIFRecord], ...]  # (row, sample, record)


@dataclass(eq=False)
class BlockMatches:
    matches: list[tuple[int, int, int, float]] = field(default_factory=list)  # reference row, row, sample, rms
    errors: list[str] = field(default_factory=list)
    cpu_s: float = 0.0


def match_block(block: Block) -> BlockMatches:
    cpu, result = time.process_time(), BlockMatches()
    references = [(row, reduce_crystal(crystal)) for row, crystal in block.references]
    sizes = {len(reference.atomic_numbers) for _, reference in references}
    for row, sample, record in block.predictions:
        crystal = sample_crystal(record)
        if crystal is None or not any(crystal.n_atoms % size == 0 for size in sizes):
            continue
        try:
            reduced = reduce_crystal(crystal)
            for reference_row, reference in references:
                if reference_row != row and not math.isnan(rms := rms_of_reduced(reduced, reference)):
                    result.matches.append((reference_row, row, sample, rms))
        except Exception as err:  # as above
            result.errors.append(f"{record.id}: {type(err).__name__}: {err}")
    result.cpu_s = time.process_time() - cpu
    return result
