"""When two crystals are the same, and an index of known ones: does the training data hold a crystal that matches?

    known = KnownCrystals.from_records(read_sources(["my_cifs/"]))
    known.find(canonicalize(crystal).to_text())   # "mp-22862", or None

Equal canonical texts are equal crystals. Different texts of one formula and one number of formula units are compared
with pymatgen's StructureMatcher at its defaults, volume scaled: the definition that published novelty rates use.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from crystallm.asymmetric_unit import CanonicalError
from crystallm.canonical import canonicalize
from crystallm.checks.match_index import CrystalIndex, composition_of, matches
from crystallm.cif import CIFError, parse_cif
from crystallm.parallel import map_processes
from crystallm.records import CIFRecord

COLUMNS = ("reduced_formula", "id", "text")


def canonical_text(record: CIFRecord) -> str:
    """Without condition lines; "" where the record has no canonical description."""
    if record.rejected_by is not None:
        return ""
    if record.text:
        return strip_conditions(record.text)
    try:
        return canonicalize(record.crystal or parse_cif(record.cif)[0]).to_text()
    except (CIFError, CanonicalError):
        return ""


def strip_conditions(text: str) -> str:
    while text.startswith("#"):
        text = text.partition("\n")[2]
    return text


def head_of(text: str) -> tuple[str, str, str]:
    """The lines of a canonical text that state the formula, the formula units and the space group."""
    formula, units, group = text.split("\n", 3)[:3]
    return formula, units, group


def formula_of(text: str) -> str:
    return text.partition("\n")[0].removeprefix("data_")


def same_crystal(first: str, second: str) -> bool:
    """Of two canonical texts."""
    if first == second:
        return True
    return composition_of(first) == composition_of(second) and matches(first, second)


class KnownCrystals:
    """Canonical texts by formula."""

    criterion = "that matches"

    def __init__(self, table: Any, n_left_out: int = 0) -> None:
        """`table` is a pyarrow table of COLUMNS, in any order; `n_left_out` records have no description."""
        self.n_left_out = n_left_out
        self._table = table.select(COLUMNS).sort_by([(name, "ascending") for name in COLUMNS])
        self._rows: dict[str, range] = {}
        self._last = "", CrystalIndex()  # of the formula asked for last
        start = 0
        for formula, group in itertools.groupby(self._table.column("reduced_formula").to_pylist()):
            count = sum(1 for _ in group)
            self._rows[formula] = range(start, start + count)
            start += count

    @classmethod
    def from_records(cls, records: Iterable[CIFRecord], workers: int | None = 0) -> KnownCrystals:
        """Records without a canonical description are left out, and counted."""
        import pyarrow as pa

        kept, sent = itertools.tee(records)
        texts = zip(kept, map_processes(canonical_text, sent, workers), strict=True)
        found = [(record.id, text if isinstance(text, str) else "") for record, text in texts]
        rows = [(formula_of(text), record_id, text) for record_id, text in found if text]
        columns = [pa.array([row[k] for row in rows], pa.string()) for k in range(len(COLUMNS))]
        return cls(pa.table(columns, names=list(COLUMNS)), len(found) - len(rows))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def find(self, text: str) -> str | None:
        """The id of a known crystal that this canonical text describes too."""
        text = strip_conditions(text)
        formula = formula_of(text)
        if self._last[0] != formula:  # samples come sorted
            self._last = formula, self._index(formula)
        return self._last[1].find(text)

    def _index(self, formula: str) -> CrystalIndex:
        rows = self._rows.get(formula, range(0))
        table = self._table.slice(rows.start, len(rows))
        index = CrystalIndex()
        for text, record_id in zip(table.column("text").to_pylist(), table.column("id").to_pylist(), strict=True):
            index.add(text, record_id)
        return index
