"""What a user reads after sampling: a table of the crystals, and why the others fell."""

from __future__ import annotations

import collections
import re
import secrets
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.checks.filter import FilterCounts
from crystallm.cif import parse_cif
from crystallm.geometry import shortest_distance
from crystallm.output import check_output
from crystallm.records import CIFRecord, check_records_output, write_records
from crystallm.rejections import Rejections
from crystallm.sample.generate import GenerateConfig, Generator
from crystallm.sample.known import known_crystals
from crystallm.sample.scorers import computed
from crystallm.sample.search import SearchConfig, SearchResult, search
from crystallm.sample.selection import polymorph_table, write_polymorphs
from crystallm.sample.steering import property_label

if TYPE_CHECKING:
    from crystallm.sample.ranking import Ranking

MAX_SHOWN = 50  # lines of a table

COLUMNS = (
    ("id", ""),
    ("formula", ""),
    ("space group", ""),
    ("a", "Å"),
    ("b", "Å"),
    ("c", "Å"),
    ("alpha", "°"),
    ("beta", "°"),
    ("gamma", "°"),
    ("Z", "prim."),  # formula units in the primitive cell
    ("V/atom", "Å³"),
    ("density", "g/cm³"),
    ("shortest", "Å"),
    ("log p", "nats"),
    ("known", "as"),
)


def table(
    records: Sequence[CIFRecord],
    find_known: Callable[[str], str | None] | None = None,
    ranking: Ranking | None = None,
) -> str:
    """One line for each valid record; `find_known` gives the id of a known crystal that a canonical text describes.

    With `ranking` a column of its values stands after the formula.
    """
    rows: list[tuple[str, ...]] = list(zip(*COLUMNS, strict=True))
    valid = [record for record in records if record.rejected_by is None]
    rows += [_row(record, find_known) for record in valid]
    if ranking is not None:
        cells = [*ranking.label, *map(ranking.cell, valid)]
        rows = [(*row[:2], cell, *row[2:]) for row, cell in zip(rows, cells, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _row(record: CIFRecord, find_known: Callable[[str], str | None] | None) -> tuple[str, ...]:
    if not record.text:
        return _row_without_text(record)
    unit = AsymmetricUnit.from_text(record.text)
    crystal = record.crystal or unit.to_crystal()
    a, b, c, alpha, beta, gamma = unit.cell
    known = "-" if find_known is None else find_known(record.text) or "new"
    return (
        record.id,
        unit.reduced_formula,
        f"{unit.group.symbol} ({unit.space_group_number})",
        *(f"{length:.2f}" for length in (a, b, c)),
        *(f"{angle:.1f}" for angle in (alpha, beta, gamma)),
        str(unit.formula_units),
        f"{crystal.volume_ang3 / crystal.n_atoms:.1f}",
        f"{crystal.density_g_per_cm3:.2f}",
        f"{shortest_distance(crystal.lattice, crystal.frac_coords):.2f}",
        f"{record.scores['log_likelihood_nats']:.1f}",
        known,
    )


def _row_without_text(record: CIFRecord) -> tuple[str, ...]:
    """Of a crystal in another form than ours that the canonical text cannot describe: as the model wrote it."""
    crystal, header = parse_cif(record.cif)
    return (
        record.id,
        crystal.reduced_formula,
        f"{header.space_group_symbol} ({header.space_group_number})",
        *(f"{length:.2f}" for length in crystal.cell[:3]),
        *(f"{angle:.1f}" for angle in crystal.cell[3:]),
        "-",
        f"{crystal.volume_ang3 / crystal.n_atoms:.1f}",
        f"{crystal.density_g_per_cm3:.2f}",
        f"{shortest_distance(crystal.lattice, crystal.frac_coords):.2f}",
        f"{record.scores['log_likelihood_nats']:.1f}",
        "-",
    )


class Tally:
    """What a summary tells of records, none of them kept."""

    def __init__(
        self, records: Iterable[CIFRecord] = (), asked: Mapping[str, float] | None = None, drawn: bool = True
    ) -> None:
        """`asked`: properties by their full names; those that can be computed are, of the valid records.

        `drawn`: just now, so that dead ends on the way are told of.
        """
        self.drawn = drawn
        self.counts = FilterCounts()
        self.asked = {name: value for name, value in (asked or {}).items() if computed(name) is not None}
        self.obtained: dict[str, array[float]] = {name: array("d") for name in self.asked}
        self.n_restarts = 0
        self.refined = Counter[str]()  # taken | of these: mended, rejected before; moved, to another space group
        self.rejections, self.not_taken = Rejections(), Rejections()  # the latter: kept as they were, not refined
        collections.deque(self.through(records), maxlen=0)

    def add(self, record: CIFRecord) -> None:
        self.counts.count(record.rejected_by)
        self.n_restarts += record.provenance.get("restarts", 0)
        if record.rejected_by is not None:
            self.rejections.add(record.id, record.rejected_by, record.reason)
        else:
            for name, values in self.obtained.items():
                scorer = computed(name)
                assert scorer is not None
                values.extend(scorer.function([record]))
        if refined := record.provenance.get("refined"):
            self.refined["mended"] += "mended" in refined
            if failed := refined.get("failed"):
                self.not_taken.add(record.id, *failed.split(": ", 1))
            else:
                self.refined["taken"] += 1
                self.refined["moved"] += "space_group_before" in refined

    def through(self, records: Iterable[CIFRecord]) -> Iterator[CIFRecord]:
        for record in records:
            self.add(record)
            yield record

    def to_write(self, records: Iterable[CIFRecord], keep_rejected: bool) -> Iterator[CIFRecord]:
        """The valid ones, or all; every one is counted."""
        return (record for record in self.through(records) if keep_rejected or record.rejected_by is None)

    def summary(self) -> str:
        """`kept 7 of 8`, and a line for each reason, with its first case."""
        again = f"; dead ends drawn again: {self.n_restarts}" if self.drawn and self.n_restarts else ""
        lines = [f"kept {self.counts.n_valid} of {self.counts.n_read}{again}", *self.rejections.lines()]
        n_failed = self.not_taken.counts.total()
        if self.refined["taken"] or n_failed:
            said = {"mended": "rejected before", "moved": "in another space group now"}
            notes = [f"{self.refined[key]} of them {what}" for key, what in said.items() if self.refined[key]]
            about = f" ({', '.join(notes)})" if notes else ""
            failed = f"; {n_failed} kept as they were, since the refined crystal failed a check:" if n_failed else ""
            lines += [f"refined {self.refined['taken']}{about}{failed}", *self.not_taken.lines()]
        return "\n".join(lines)

    def obtained_summary(self) -> str:
        """`density asked 2.10 g/cm³, obtained 2.05 (1.90 to 2.31)`, median and extremes; a line a property."""
        lines = []
        for name, value in self.asked.items():
            label, unit = property_label(name)
            values = np.array(self.obtained[name])
            if len(values):
                obtained = f"{np.median(values):.2f} ({values.min():.2f} to {values.max():.2f})"
                lines.append(f"{label} asked {value:.2f} {unit}, obtained {obtained}")
        return "\n".join(lines)


def run(config: GenerateConfig, settings: SearchConfig | None = None, ranking: Ranking | None = None) -> Tally:
    """Generate or, with `settings`, search; print, write: what bin/sample.py does.

    Samples are written as they are drawn, and only the valid ones that the table shows are kept until the end; with
    `ranking` all are kept until they are in order. ValueError and FileExistsError for an output that would replace
    something, before anything is drawn: see `check_records_output`.
    """
    polymorphs = _polymorphs_path(config.out) if config.out is not None and settings else None
    if config.out is not None:
        check_records_output(config.out, [config.known] if config.known else [], config.overwrite)
    if polymorphs is not None:
        check_output(polymorphs, overwrite=config.overwrite)
    generator = Generator.load(config.model, config.device)
    if config.seed is None:
        config = replace(config, seed=secrets.randbits(32))
    known = known_crystals(config.known, generator.info)
    find_known = None if known is None else known.find
    note = f"known as: {known.note}; or new" if known else "known: - where nothing tells what this model was trained on"
    results = search(config.prompt, settings, config) if settings else []
    found = (record for result in results for record in result.records)
    steering = generator.steering(config)
    tally, shown = Tally(asked=steering.settings.get("properties")), list[CIFRecord]()
    drawn: Iterable[CIFRecord] = found if settings else generator.stream(config)
    if ranking is not None:
        drawn = ranking.order(list(drawn))
    passing: Iterable[CIFRecord] = _counted(drawn, config.keep_rejected, tally, shown)
    passing = tqdm(passing, unit=" crystals", leave=False, delay=5, disable=None)  # on a terminal, where it takes long
    n_passed = sum(1 for _ in passing) if config.out is None else write_records(config.out, passing, config.overwrite)
    for result in results:
        print(search_summary(result, find_known))
    if shown and not settings:
        print(table(shown, find_known, ranking))
        if more := tally.counts.n_valid - len(shown):
            print(f"… and {more:,} more{', not written: no --out' if config.out is None else f' in {config.out}'}")
    print(tally.summary())
    for line in filter(None, (steering.summary(), tally.obtained_summary())):
        print(line)
    print(f"seed {config.seed}; {note}")
    if generator.form.note:
        print(generator.form.note)
    if config.out is not None:
        print(f"{n_passed} written to {config.out}")
    if polymorphs is not None:
        write_polymorphs(polymorphs, [(result.prompt, result.polymorphs) for result in results])
        print(f"polymorphs written to {polymorphs}")
    return tally


def _polymorphs_path(out: str) -> Path:
    """Beside the records: a folder of CIFs holds CIFs only."""
    path = Path(out).resolve()
    stem = re.sub(r"\.(?:parquet|tar|tar\.gz|tgz)$", "", path.name, flags=re.IGNORECASE)
    return path.with_name(f"{stem}.polymorphs.csv")


def _counted(
    records: Iterable[CIFRecord], keep_rejected: bool, tally: Tally, shown: list[CIFRecord]
) -> Iterator[CIFRecord]:
    """Those to write; the first valid ones are put into `shown`."""
    for record in tally.to_write(records, keep_rejected):
        if record.rejected_by is None and len(shown) < MAX_SHOWN:
            shown.append(record)
        yield record


def search_summary(result: SearchResult, find_known: Callable[[str], str | None] | None = None) -> str:
    """The distinct crystals, and the answer among them."""
    rows = result.polymorphs
    lines = [f"{result.prompt or 'unprompted'}: {len(rows)} distinct crystals", ""]
    if result.answer is None:
        lines.append("no answer: no record is valid")
    else:
        n_valid, n_formulas = sum(row.n for row in rows), len({row.formula for row in rows})
        lines += [polymorph_table(rows), ""]
        if n_formulas > 1:
            lines.append(f"the samples are of {n_formulas} different formulas: these crystals are not polymorphs")
        if n_valid > 1 and all(row.n == row.n_agreeing == 1 for row in rows):
            lines.append(f"no two of the {n_valid} samples agree")
        n_agreeing = rows[0].n_agreeing
        n_others = max(0, n_agreeing - rows[0].n)
        others = f"; the vote takes {n_others} of other rows for this crystal" if n_others else ""
        lines.append(f"answer, by {result.selected_by} ({n_agreeing} of {n_valid} samples{others}):")
        lines += [table([result.records[result.answer]], find_known), ""]
    lines.append(f"cost: {result.n_structures} structures, {result.n_tokens} tokens")
    return "\n".join(lines)
