"""What a CIF says of its composition, three times over, against the atoms it lists; and whether charges can balance."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

from crystallm.checks.geometric import crystal_of
from crystallm.cif import CIFHeader
from crystallm.cif_text import MULTIPLICITY_TAGS
from crystallm.crystal import formula_text, reduce_composition, same_proportions
from crystallm.records import CIFRecord
from tokenizer.elements import ATOMIC_NUMBERS

Composition = dict[str, float]

_STRUCTURAL = re.compile(r"^\s*_chemical_formula_structural[ \t]+(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
_FORMULA_PART = re.compile(r"([A-Z][a-z]?)(\d*\.?\d*)")
# smact tries the product of all elements' charges: 0.7 s for the slowest of 4,000 MP formulas, one of nine elements.
MAX_CHARGED_ELEMENTS = 10


def header_of(record: CIFRecord) -> CIFHeader:
    assert record.header is not None, f"{record.id}: checked before it was parsed"
    return record.header


def check_formula(record: CIFRecord) -> str | None:
    """Every formula that the CIF states has the proportions of the atoms that it lists; a canonical text, their number.

    `data_` is a name: it is taken for a formula where no sum is stated, and it reads as a formula and as none of the
    usual labels ("I", "B2").
    """
    crystal, header = crystal_of(record), header_of(record)
    content: Composition = dict(Counter(crystal.symbols))
    if header.is_canonical and header.formula_sum != content:
        stated = _plain_text(header.formula_sum or {})
        return f"the head states {stated} in the cell, the sites hold {_plain_text(crystal.composition)}"
    formulas = {
        "data_": None if header.formula_sum else _data_formula(header.block, content),
        "_chemical_formula_sum": header.formula_sum,
        "_chemical_formula_structural": _plain_formula(_structural_formula(record.cif)),
    }
    for tag, formula in formulas.items():
        if formula and not same_proportions(formula, content):
            return f"{tag} says {_text(formula)}, the sites hold {crystal.reduced_formula}"
    return None


def check_multiplicity(record: CIFRecord) -> str | None:
    """Every stated site multiplicity is the number of atoms that the site's operators give it.

    SHELXL-97 writes the order of the site's symmetry under the older of the two tags: 1 for a general position.
    """
    header = header_of(record)
    if header.site_multiplicities is None:
        return None
    pairs = list(zip(header.site_multiplicities, header.found_multiplicities, strict=True))
    if header.multiplicity_tag == MULTIPLICITY_TAGS[0] and all(n * m == header.n_operators for n, m in pairs):
        return None
    for label, stated, found in zip(
        header.site_labels, header.site_multiplicities, header.found_multiplicities, strict=True
    ):
        if stated != found:
            return f"site {label} states multiplicity {stated}, its operators give it {found} atoms"
    return None


def check_stated_formula(record: CIFRecord) -> str | None:
    """CrystaLLM: the reduced formulas of `data_`, the sum and the structural formula are stated and agree.

    CIFs with Wyckoff letters are not of its dialect, which has none: they need no structural formula.
    """
    header = header_of(record)
    formulas = {
        "data_": header.block,
        "_chemical_formula_sum": _plain_text(header.formula_sum or {}),
        "_chemical_formula_structural": _structural_formula(record.cif),
    }
    reduced = {}
    for tag, formula in formulas.items():
        if not formula:
            if tag == "_chemical_formula_structural" and header.site_letters is not None:
                continue
            return f"{tag} states no formula"
        reduced[tag] = _pymatgen_reduced(formula)
        if reduced[tag] is None:
            return f"{tag} says {formula!r}, which is no formula"
    if len(set(reduced.values())) > 1:
        return ", ".join(f"{tag} says {formula}" for tag, formula in reduced.items())
    return None


def check_stated_multiplicity(record: CIFRecord) -> str | None:
    """CrystaLLM: the multiplicities, summed by element, are the counts of the formula sum; both are stated.

    In CIFs with Wyckoff letters, not of its dialect, the sum may be that of one of the Z formula units, as the standard
    has it.
    """
    crystal, header = crystal_of(record), header_of(record)
    if header.formula_sum is None or header.site_multiplicities is None:
        return (
            "the CIF states no formula sum" if header.formula_sum is None else "the CIF states no site multiplicities"
        )
    first_atom = np.cumsum([0, *header.found_multiplicities[:-1]])  # the atoms of a site stand together
    summed: Counter[str] = Counter()
    for atom, multiplicity in zip(first_atom.tolist(), header.site_multiplicities, strict=True):
        summed[crystal.symbols[atom]] += multiplicity
    if dict(summed) == header.formula_sum:
        return None
    units = header.formula_units if header.site_letters is not None and header.formula_units else 1
    if dict(summed) == {symbol: count * units for symbol, count in header.formula_sum.items()}:
        return None
    return (
        f"multiplicities add up to {_plain_text(dict(summed))}, the formula sum says {_plain_text(header.formula_sum)}"
    )


def check_charge(record: CIFRecord) -> str | None:
    """smact: whole charges known of the elements (ICSD 2024) balance, with the cations the less electronegative.

    Elements alone and alloys pass; intermetallics with metalloids often do not, so it rejects only where asked.
    """
    return _charge_reason(crystal_of(record).reduced_formula, None)


def check_cdvae_composition(record: CIFRecord) -> str | None:
    """CDVAE's use of smact, with the list of charges smact had in 2014-22."""
    return _charge_reason(crystal_of(record).reduced_formula, "smact14")


def _charge_reason(formula: str, charges: str | None) -> str | None:
    n_elements = len(_FORMULA_PART.findall(formula))
    if n_elements > MAX_CHARGED_ELEMENTS:
        return f"{n_elements} elements: more combinations of charges than can be tried"
    return None if charges_balance(formula, charges) else f"no charges known of its elements balance in {formula}"


@functools.lru_cache(100_000)
def charges_balance(reduced_formula: str, charges: str | None) -> bool:
    """`smact_validity`; `charges` names one of smact's lists, None its default. ImportError without smact."""
    try:
        from smact.screening import smact_validity
    except ImportError:
        raise ImportError("charge balance needs smact: pip install 'crystallm[charge]'") from None
    return bool(smact_validity(reduced_formula, oxidation_states_set=charges))


def _structural_formula(cif: str) -> str | None:
    match = _STRUCTURAL.search(cif)
    text = match[1].strip("'\" ") if match else ""
    return text if text not in ("", "?", ".") else None


def _data_formula(block: str, content: Composition) -> Composition | None:
    formula = _plain_formula(block)
    # data_I and data_B2 name the first compound of a paper; of elements alone they may be formulas.
    return formula if formula and (len(formula) > 1 or len(content) == 1) else None


def _plain_formula(text: str | None) -> Composition | None:
    """{"Ca": 1, "Ti": 1, "O": 3} of "CaTiO3" or "Ca Ti O3"; None for what is not simply elements and counts."""
    text = re.sub(r"\s+", "", text or "")
    parts = _FORMULA_PART.findall(text)
    if not parts or "".join(symbol + count for symbol, count in parts) != text:
        return None
    counts: Counter[str] = Counter()
    for symbol, count in parts:
        symbol = "H" if symbol in ("D", "T") else symbol
        if symbol not in ATOMIC_NUMBERS or count == ".":
            return None
        counts[symbol] += float(count) if count else 1.0  # type: ignore[assignment]
    return dict(counts) if all(counts.values()) else None


def _text(composition: Composition) -> str:
    if all(float(count).is_integer() for count in composition.values()):
        return formula_text(reduce_composition({symbol: int(count) for symbol, count in composition.items()})[0])
    return _plain_text(composition)


def _plain_text(composition: Mapping[str, float]) -> str:
    return "".join(f"{symbol}{count:g}" for symbol, count in composition.items())


@functools.lru_cache(10_000)
def _pymatgen_reduced(formula: str) -> str | None:
    from pymatgen.core import Composition as PymatgenComposition

    try:
        return str(PymatgenComposition(formula).reduced_formula)
    except ValueError:
        return None
