"""Records in, the same records out, each with its crystal or with the first check that it failed.

records, counts = run_filter(generated, FilterConfig(rules="default"))
counts.n_valid + sum(counts.rejected_by.values()) == counts.n_read
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from crystallm.checks.rules import CHECKS, Check, checks_by_cost, rule_set
from crystallm.cif import CIFError, parse_cif
from crystallm.parallel import Failure, map_processes
from crystallm.records import CIFRecord

logger = logging.getLogger(__name__)

NEEDS_SMACT = {"charge", "cdvae_composition"}


@dataclass(frozen=True)
class FilterConfig:
    rules: str = "default"  # default | crystallm | cdvae
    reject_on: tuple[str, ...] = ()  # checks to reject on besides: charge, bonds, …
    workers: int | None = 0  # processes; None one a core, 0 this process
    chunk_size: int = 16
    timeout_s: float | None = 120.0  # for one record; kept where there are workers to end

    def __post_init__(self) -> None:
        self.rejecting(), self.reporting()

    def rejecting(self) -> tuple[Check, ...]:
        names = tuple(dict.fromkeys((*rule_set(self.rules).rejects, *self.reject_on)))
        if not has_smact() and (missing := NEEDS_SMACT.intersection(names)):
            raise ImportError(f"{', '.join(sorted(missing))} needs smact: pip install 'crystallm[charge]'")
        return checks_by_cost(names)

    def reporting(self) -> tuple[Check, ...]:
        """Checks that are counted and do not reject; charge balance only where smact is installed."""
        names = [name for name in rule_set(self.rules).reports if name not in self.reject_on]
        if not has_smact() and NEEDS_SMACT.intersection(names):
            logger.warning("smact is not installed: charge balance is not reported")
            names = [name for name in names if name not in NEEDS_SMACT]
        return checks_by_cost(tuple(names))


def has_smact() -> bool:
    return importlib.util.find_spec("smact") is not None


@dataclass
class FilterCounts:
    n_read: int = 0
    n_valid: int = 0
    rejected_by: Counter[str] = field(default_factory=Counter)

    def count(self, rejected_by: str | None) -> None:
        self.n_read += 1
        if rejected_by is None:
            self.n_valid += 1
        else:
            self.rejected_by[rejected_by] += 1


class Judged(NamedTuple):
    record: CIFRecord
    passed: dict[str, bool]  # by check, in the order run; {} where the record was not parsed


def parse_record(record: CIFRecord) -> CIFRecord:
    """Fills `crystal` and `header`, or `rejected_by` with the reason that CIFError names. What is rejected stays so."""
    if record.rejected_by is not None:
        return record
    try:
        crystal, header = parse_cif(record.cif)
    except CIFError as err:
        return replace(record, rejected_by=err.reason, reason=err.message)
    return replace(record, crystal=crystal, header=header)


def filter_record(record: CIFRecord, checks: tuple[Check, ...]) -> CIFRecord:
    """Stops at the first check that fails."""
    record = parse_record(record)
    if record.rejected_by is not None:
        return record
    for check in checks:
        if (reason := check.function(record)) is not None:
            return replace(record, rejected_by=check.name, reason=reason)
    return record


def judge_record(record: CIFRecord, rejecting: tuple[Check, ...], reporting: tuple[Check, ...] = ()) -> Judged:
    """Runs every check, so that each has a rate; `rejected_by` is still the first that fails of those that reject."""
    record = parse_record(record)
    passed: dict[str, bool] = {}
    if record.rejected_by is None:
        judged = record
        for check in (*rejecting, *reporting):
            reason = check.function(record)
            passed[check.name] = reason is None
            if reason is not None and check in rejecting and judged.rejected_by is None:
                judged = replace(record, rejected_by=check.name, reason=reason)
            if reason is not None and check.gate:
                break
        record = judged
    return Judged(record, passed)


def filter_records(records: Iterable[CIFRecord], config: FilterConfig | None = None) -> Iterator[CIFRecord]:
    """A stream of as many records as came in, in their order."""
    config = config or FilterConfig()
    function = partial(_filter_by_names, names=tuple(check.name for check in config.rejecting()))
    return (
        record_of_failure(record, result) if isinstance(result, Failure) else result
        for record, result in map_records(function, records, config)
    )


def run_filter(
    records: Iterable[CIFRecord], config: FilterConfig | None = None
) -> tuple[list[CIFRecord], FilterCounts]:
    """All records, and how many fell to which check first."""
    counts = FilterCounts()
    filtered = list(filter_records(records, config))
    for record in filtered:
        counts.count(record.rejected_by)
    return filtered, counts


def map_records(function, records: Iterable[CIFRecord], config: FilterConfig):  # type: ignore[no-untyped-def]
    """(record, function(record) or Failure), in order."""
    kept, sent = itertools.tee(records)
    timeout_s = config.timeout_s if config.workers != 0 else None
    results = map_processes(function, sent, config.workers, config.chunk_size, timeout_s=timeout_s)
    return zip(kept, results, strict=True)


def record_of_failure(record: CIFRecord, failure: Failure) -> CIFRecord:
    """A check that raised, or killed or outlasted its process, costs its record and says so."""
    return replace(record, crystal=None, header=None, rejected_by="error", reason=str(failure))


def _filter_by_names(record: CIFRecord, names: tuple[str, ...]) -> CIFRecord:
    # Names travel to the worker processes, functions would not where a caller registers one of its own.
    return filter_record(record, tuple(CHECKS[name] for name in names))
