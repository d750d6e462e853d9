"""One record as read → its canonical text and what is known of it, or the reason why it has none."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError, to_primitive
from crystallm.canonical import canonicalize
from crystallm.cif import CIFError, parse_cif
from crystallm.crystal import Crystal, same_proportions
from crystallm.matching import SAME, fits, reduce_crystal
from crystallm.records import CIFRecord
from tokenizer import CIFTokenizer, Grammar, GrammarError
from tokenizer.elements import ATOMIC_NUMBERS


@dataclass(frozen=True)
class CleanOptions:
    """What a structure must fulfil to stay in."""

    vocabulary: str = "cif"
    max_sites: int | None = None  # in the primitive cell
    excluded_formulas: frozenset[str] = frozenset()
    check_round_trip: bool = False  # the expanded text must match the structure read (StructureMatcher, 2-5 ms)


@dataclass(frozen=True, slots=True)
class CleanRecord:
    """A row of the preparation: canonical text and facts, or `rejected_by` and `reason`."""

    id: str
    source: str
    text: str = ""
    reduced_formula: str = ""
    space_group_number: int = 0
    n_atoms: int = 0  # in the primitive cell
    n_sites: int = 0  # in the cell as given
    n_tokens: int = 0
    split: str = ""
    properties: dict[str, float] = field(default_factory=dict)
    rejected_by: str | None = None
    reason: str = ""


class _Rejected(ValueError):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def clean_record(record: CIFRecord, options: CleanOptions) -> CleanRecord:
    """Parse, canonicalise, check that the vocabulary can write it. A record rejected before passes through."""
    source, split = str(record.provenance.get("source", "")), str(record.provenance.get("split", ""))
    if record.rejected_by:
        return CleanRecord(record.id, source, split=split, rejected_by=record.rejected_by, reason=record.reason)
    try:
        crystal, header = parse_cif(record.cif or record.text)
        _check_formula(header.formula_sum, crystal)
        if crystal.reduced_formula in options.excluded_formulas:
            raise _Rejected("excluded_formula", crystal.reduced_formula)
        unit = canonicalize(crystal)
        n_atoms = unit.formula_units * sum(count for _, count in unit.formula)
        if options.max_sites is not None and n_atoms > options.max_sites:
            raise _Rejected(
                "too_many_sites", f"{n_atoms} atoms in the primitive cell, the limit is {options.max_sites}"
            )
        text = unit.to_text()
        n_tokens = _count_tokens(text, options.vocabulary)
        if options.check_round_trip:
            _check_round_trip(crystal, unit)
    except (CIFError, CanonicalError, _Rejected) as err:
        return CleanRecord(record.id, source, split=split, rejected_by=err.reason, reason=err.message)
    properties = record.scores | {
        "density_g_per_cm3": crystal.density_g_per_cm3,
        "volume_per_atom_ang3": crystal.volume_ang3 / crystal.n_atoms,
    }
    return CleanRecord(
        record.id,
        source,
        text,
        unit.reduced_formula,
        unit.space_group_number,
        n_atoms,
        crystal.n_atoms,
        n_tokens,
        split,
        properties,
    )


def _check_formula(stated: Mapping[str, float] | None, crystal: Crystal) -> None:
    """Atoms without coordinates, hydrogens mostly, and atoms put in the wrong places show in the formula.

    What is no formula of elements, "NACL", tells nothing.
    """
    stated = {symbol: count for symbol, count in (stated or {}).items() if count}
    if stated and stated.keys() <= ATOMIC_NUMBERS.keys() and not same_proportions(stated, crystal.composition):
        formula = " ".join(f"{symbol}{count:g}" for symbol, count in stated.items())
        raise _Rejected("formula", f"the formula stated is {formula}, the sites hold {crystal.reduced_formula}")


def formula_of(record: CIFRecord) -> str | None:
    """The reduced formula, or None where there is no crystal to be read."""
    try:
        return None if record.rejected_by else parse_cif(record.cif or record.text)[0].reduced_formula
    except CIFError:
        return None


@functools.cache
def _grammar(vocabulary: str) -> Grammar:
    return Grammar(CIFTokenizer(vocabulary))


def _count_tokens(text: str, vocabulary: str) -> int:
    grammar = _grammar(vocabulary)
    ids = grammar.tokenizer.encode(text)
    try:
        grammar.states(ids)
    except GrammarError as err:
        raise _Rejected("not_representable", str(err)) from err
    return len(ids)


def _check_round_trip(crystal: Crystal, unit: AsymmetricUnit) -> None:
    expanded = to_primitive(unit.to_crystal(), unit.group)
    if not fits(reduce_crystal(crystal), reduce_crystal(expanded), SAME):
        raise _Rejected(
            "round_trip", f"{unit.reduced_formula} in {unit.group.symbol}: what the text expands to does not match"
        )
