"""CIFs in, rates out: validity by check, uniqueness, novelty, and distances of distributions, a reference set beside.

evaluation = evaluate(EvaluateConfig(paths=("generated/",), reference=("test.parquet",)))
evaluation.generated.rates["distance"], evaluation.novelty
"""

from __future__ import annotations

import itertools
import os
import time
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystallm.checks.filter import FilterConfig, FilterCounts, Judged, judge_record, map_records, record_of_failure
from crystallm.checks.known import canonical_text
from crystallm.checks.rules import CHECKS
from crystallm.data.readers import read_sources
from crystallm.metrics.distributions import FEATURES, features_of, wasserstein_distances
from crystallm.metrics.novelty import UNKNOWN, Comparison, compare_rows
from crystallm.metrics.spill import SpilledList
from crystallm.output import check_output
from crystallm.parallel import Failure
from crystallm.records import CIFRecord

REPORT_ROWS = 10_000  # in one group of the report's rows


@dataclass(frozen=True)
class EvaluateConfig:
    paths: tuple[str, ...]  # folders, CIFs, tables, archives
    reference: tuple[str, ...] = ()  # real crystals to compare with
    rules: str = "default"  # default | crystallm | cdvae
    reject_on: tuple[str, ...] = ()  # checks to reject on besides: charge, bonds, …
    compare: bool = True  # uniqueness and novelty, which need canonical texts
    cif_column: str = "cif"
    workers: int | None = None  # processes; None one a core, 0 this process

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("paths must name at least one folder, file or archive")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be 0 (this process) or more, got {self.workers}")

    @property
    def filter(self) -> FilterConfig:
        return FilterConfig(self.rules, self.reject_on, self.workers)


class Row(NamedTuple):
    """What an evaluation keeps of a record."""

    id: str
    rejected_by: str | None
    reason: str
    passed: dict[str, bool]  # by check; {} where the record was not parsed
    features: dict[str, float]  # {} where the record was not parsed
    formula: str
    text: str  # canonical; "" where not asked for or not to be had


@dataclass
class SetResult:
    """Of one set of records. A record that a check did not see, not parsed or stopped before, does not pass it.

    A row takes 1.7 kB as an object, so they lie on disk; 25 bytes of each stay in memory.
    """

    counts: FilterCounts
    rates: dict[str, float]  # by check, "parse" first: share of n_read that passes
    rows: SpilledList[Row] = field(repr=False)
    features: dict[str, array[float]] = field(repr=False)  # of the rows that were parsed
    valid: array[int] = field(repr=False)  # which of these are valid: 1 or 0

    def feature(self, name: str, valid_only: bool) -> NDArray[np.float64]:
        values = np.array(self.features[name], dtype=np.float64)
        return values[np.array(self.valid, dtype=bool)] if valid_only else values

    def to_dict(self) -> dict[str, Any]:
        counts = self.counts
        return {
            "n_read": counts.n_read,
            "n_valid": counts.n_valid,
            "validity": counts.n_valid / counts.n_read if counts.n_read else None,
            "rates": self.rates,
            "rejected_by": dict(counts.rejected_by.most_common()),
        }


@dataclass
class Share:
    """`n` of `out_of`; `n_unknown` of these could not be compared and are not counted in n."""

    n: int
    out_of: int
    n_unknown: int = 0

    @property
    def rate(self) -> float | None:
        return self.n / self.out_of if self.out_of else None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rate": self.rate}


@dataclass
class Evaluation:
    rules: str
    rejecting: tuple[str, ...]
    reporting: tuple[str, ...]
    generated: SetResult
    reference: SetResult | None = None
    uniqueness: Share | None = None  # of the valid ones: different crystals
    novelty: Share | None = None  # of the valid ones: crystals that the reference does not hold
    unique_and_novel: Share | None = None  # of all read
    distances: dict[str, float | None] | None = None  # Wasserstein, valid generated against parsed reference
    comparison: Comparison | None = field(default=None, repr=False)  # of each generated row
    seconds: float = 0.0
    checks_cpu_seconds: float = 0.0  # of the generated set's checks, worker processes included

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "rules": self.rules,
            "rejecting": list(self.rejecting),
            "reporting": list(self.reporting),
            **self.generated.to_dict(),
            "uniqueness": self.uniqueness and self.uniqueness.to_dict(),
            "novelty": self.novelty and self.novelty.to_dict(),
            "unique_and_novel": self.unique_and_novel and self.unique_and_novel.to_dict(),
            "distances": self.distances,
            "reference": self.reference and self.reference.to_dict(),
            "seconds": round(self.seconds, 2),
            "checks_cpu_seconds": round(self.checks_cpu_seconds, 2),
        }


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Reads the paths as `data.readers` does, so that what cannot be read is counted too.

    Raises ValueError for a reference without a crystal, to which nothing can be compared.
    """
    generated = read_sources(config.paths, config.cif_column)
    reference = read_sources(config.reference, config.cif_column) if config.reference else None
    return evaluate_records(generated, reference, config)


def evaluate_records(
    generated: Iterable[CIFRecord], reference: Iterable[CIFRecord] | None, config: EvaluateConfig
) -> Evaluation:
    start, cpu_start = time.perf_counter(), sum(os.times()[:4])
    rules = config.filter
    result = Evaluation(
        config.rules,
        tuple(check.name for check in rules.rejecting()),
        tuple(check.name for check in rules.reporting()),
        judge_set(generated, rules, None if config.compare else frozenset()),
    )
    result.checks_cpu_seconds = sum(os.times()[:4]) - cpu_start
    if reference is not None:
        formulas = frozenset(row.formula for row in result.generated.rows if row.text)
        result.reference = judge_set(reference, rules, formulas)
        if not len(result.reference.valid):
            names = f" {', '.join(config.reference)}" if config.reference else ""
            raise ValueError(f"the reference{names} holds no readable crystal")
        result.distances = wasserstein_distances(
            {name: result.generated.feature(name, valid_only=True) for name in FEATURES},
            {name: result.reference.feature(name, valid_only=False) for name in FEATURES},
        )
    if config.compare:
        _compare(result, config.workers)
    result.seconds = time.perf_counter() - start
    return result


def judge_set(records: Iterable[CIFRecord], rules: FilterConfig, formulas: frozenset[str] | None) -> SetResult:
    """Runs all checks on all records; canonical texts of the given formulas (None: of all valid crystals)."""
    checks = (*rules.rejecting(), *rules.reporting())
    names = tuple(check.name for check in rules.rejecting()), tuple(check.name for check in rules.reporting())
    counts, rows, n_parsed, passed = FilterCounts(), SpilledList[Row](), 0, Counter[str]()
    features = {name: array("d") for name in FEATURES}
    valid = array("b")
    for record, result in map_records(partial(_row_of, names=names, formulas=formulas), records, rules):
        if isinstance(result, Failure):
            failed = record_of_failure(record, result)
            result = Row(record.id, failed.rejected_by, failed.reason, {}, {}, "", "")
        counts.count(result.rejected_by)
        rows.append(result)
        passed.update(name for name, ok in result.passed.items() if ok)
        if result.features:
            n_parsed += 1
            valid.append(result.rejected_by is None)
            for name, values in features.items():
                values.append(result.features[name])
    rates = {"parse": n_parsed, **{check.name: passed[check.name] for check in checks}}
    shares = {name: n / max(1, len(rows)) for name, n in rates.items()}
    return SetResult(counts, shares, rows, features, valid)


def _row_of(record: CIFRecord, names: tuple[tuple[str, ...], tuple[str, ...]], formulas: frozenset[str] | None) -> Row:
    if record.rejected_by in CHECKS and record.cif:  # by an earlier run, with other rules perhaps
        record = replace(record, rejected_by=None, reason="")
    judged: Judged = judge_record(record, *(tuple(CHECKS[name] for name in part) for part in names))
    record, crystal = judged.record, judged.record.crystal
    if crystal is None:
        return Row(record.id, record.rejected_by, record.reason, {}, {}, "", "")
    formula = crystal.reduced_formula
    wanted = record.rejected_by is None if formulas is None else formula in formulas
    text = canonical_text(replace(record, rejected_by=None, text="")) if wanted else ""
    return Row(record.id, record.rejected_by, record.reason, judged.passed, features_of(crystal), formula, text)


def _compare(result: Evaluation, workers: int | None) -> None:
    rows, reference = result.generated.rows, result.reference
    known = None if reference is None else (row.text for row in reference.rows)
    compared = result.comparison = compare_rows((row.text for row in rows), known, len(rows), workers)
    n_read, n_valid = result.generated.counts.n_read, result.generated.counts.n_valid
    is_first = compared.first == np.arange(len(rows))
    n_unknown = n_valid - int((compared.first != UNKNOWN).sum())
    result.uniqueness = Share(int(is_first.sum()), n_valid, n_unknown)
    if compared.novel is not None:
        n_uncompared = n_valid - int((compared.novel != UNKNOWN).sum())
        is_novel = compared.novel == 1
        result.novelty = Share(int(is_novel.sum()), n_valid, n_uncompared)
        result.unique_and_novel = Share(int((is_first & is_novel).sum()), n_read, max(n_unknown, n_uncompared))


def check_report(path: str | Path, inputs: Iterable[str | Path] = (), overwrite: bool = False) -> None:
    """ValueError for what is no parquet file, else as check_output."""
    if Path(path).suffix.lower() != ".parquet":
        raise ValueError(f"{path}: wanted .parquet, got {Path(path).suffix!r}")
    check_output(path, inputs, overwrite)


def write_report(evaluation: Evaluation, path: str | Path) -> None:
    """A parquet file with a row for each record: what rejected it, which checks it passes, what it is.

    Raises ValueError for another ending; see check_report.
    """
    check_report(path, overwrite=True)
    import pyarrow as pa
    import pyarrow.parquet as pq

    checks = (*evaluation.rejecting, *evaluation.reporting)
    kinds = {bool: pa.bool_(), float: pa.float64(), str: pa.string()}
    fields = [("id", str), ("valid", bool), ("rejected_by", str), ("reason", str)]
    fields += [(f"passes_{name}", bool) for name in checks] + [("reduced_formula", str)]
    fields += [*((name, float) for name in FEATURES), ("unique", bool), ("novel", bool), ("text", str)]
    schema = pa.schema([(name, kinds[kind]) for name, kind in fields])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        rows = enumerate(evaluation.generated.rows)
        while part := list(itertools.islice(rows, REPORT_ROWS)):
            writer.write_table(pa.Table.from_pylist([_report_row(evaluation, k, row) for k, row in part], schema))


def _report_row(evaluation: Evaluation, number: int, row: Row) -> dict[str, Any]:
    compared = evaluation.comparison
    first = UNKNOWN if compared is None else compared.first[number]
    novel = UNKNOWN if compared is None or compared.novel is None else compared.novel[number]
    return {
        "id": row.id,
        "valid": row.rejected_by is None,
        "rejected_by": row.rejected_by,
        "reason": row.reason,
        **{f"passes_{name}": row.passed.get(name) for name in (*evaluation.rejecting, *evaluation.reporting)},
        "reduced_formula": row.formula,
        **{name: row.features.get(name) for name in FEATURES},
        "unique": None if first == UNKNOWN else bool(first == number),
        "novel": None if novel == UNKNOWN else bool(novel),
        "text": row.text,
    }
