"""Text to crystal: `parse_cif` takes CIFs as people have them, and canonical ones.

A CIF that does not describe one ordered crystal raises CIFError, whose `reason` names the cause. Reading canonical text
needs numpy only; gemmi reads the syntax of all others.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from crystallm.asymmetric_unit import AsymmetricUnit, CanonicalError, is_canonical
from crystallm.cif_symmetry import (
    METRIC_TOLERANCE,
    NUMBER_TAGS,
    SITE_TOLERANCE_ANG,
    SYMBOL_TAGS,
    Expected,
    expand_as_expected,
    site_distance,
    stated_settings,
)
from crystallm.cif_text import (
    CARTN_MATRIX_TAGS,
    CARTN_TAGS,
    CARTN_VECTOR_TAGS,
    CELL_TAGS,
    FRACT_TAGS,
    MAX_CIF_BYTES,
    MULTIPLICITY_TAGS,
    REASONS,
    CIFError,
    Table,
    column,
    decode_cif,
    integers,
    number,
    read_table,
    split_cif,
    string_value,
    unquote,
)
from crystallm.cif_write import read_provenance, write_cif
from crystallm.crystal import Crystal, lattice_from_parameters
from tokenizer.elements import ATOMIC_NUMBERS, SYMBOLS

__all__ = [
    "MAX_CIF_BYTES",
    "REASONS",
    "CIFError",
    "CIFHeader",
    "decode_cif",
    "is_canonical",
    "parse_cif",
    "read_provenance",
    "split_cif",
    "write_cif",
]

Floats = NDArray[np.float64]

MAX_ATOMS = 10_000
_MAX_SITE_SYMMETRY = 48
_SAME_PLACE = 1e-4  # in cell edges: entries of one mixed-valence site
# Occupancies of refined structures carry rounding, "0.9999".
_OCCUPANCY_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class CIFHeader:
    """What the text states, whether or not the crystal agrees; None where it says nothing."""

    block: str = ""
    formula_sum: dict[str, float] | None = None
    formula_units: int | None = None
    space_group_symbol: str | None = None  # as spelled in the file
    space_group_number: int | None = None
    site_labels: tuple[str, ...] = ()  # the sites as listed, before expansion
    site_letters: tuple[str, ...] | None = None
    site_multiplicities: tuple[int, ...] | None = None  # stated
    found_multiplicities: tuple[int, ...] = ()  # as the operators gave them, in the cell of the file
    multiplicity_tag: str | None = None  # that stated them
    n_operators: int = 1
    is_canonical: bool = False
    properties: dict[str, float] = field(default_factory=dict)  # condition lines of a canonical text


def parse_cif(text: str | bytes, block: str | None = None) -> tuple[Crystal, CIFHeader]:
    """The crystal in the cell that the CIF gives, and what the CIF states about it. Raises CIFError.

    `block` names the data block where several hold a crystal; those without cell and atoms do not count.
    """
    text = decode_cif(text).replace("\r\n", "\n")
    if is_canonical(text):
        return _parse_canonical(text)
    name, table = read_table(text, block)
    try:
        return _parse_table(name, table)
    except CIFError as err:
        raise CIFError(err.reason, f"block {name!r}: {err.message}") from None


def _parse_canonical(text: str) -> tuple[Crystal, CIFHeader]:
    try:
        unit = AsymmetricUnit.from_text(text)
        crystal = unit.to_crystal()
    except CanonicalError as err:
        raise CIFError(err.reason, str(err)) from None
    group, multiplicities = unit.group, unit.multiplicities
    labels = [site.symbol + site.letter for site, n in zip(unit.sites, multiplicities, strict=True) for _ in range(n)]
    _check_overlap(crystal.lattice, crystal.frac_coords, crystal.atomic_numbers, labels)
    formula_units = unit.formula_units * group.n_centring
    header = CIFHeader(
        block=unit.reduced_formula,
        formula_sum={symbol: float(count * formula_units) for symbol, count in unit.formula},
        formula_units=formula_units,
        space_group_symbol=group.symbol,
        space_group_number=group.number,
        site_labels=tuple(site.symbol for site in unit.sites),
        site_letters=tuple(site.letter for site in unit.sites),
        site_multiplicities=multiplicities,
        found_multiplicities=multiplicities,
        n_operators=len(group.rotations),
        is_canonical=True,
        properties=dict(unit.properties),
    )
    return crystal, header


def _parse_table(name: str, table: Table) -> tuple[Crystal, CIFHeader]:
    cell = _cell(table)
    try:
        lattice = lattice_from_parameters(*cell)
    except ValueError as err:
        raise CIFError("bad_cell", str(err)) from None
    formula_sum = _formula_sum(string_value(table, "_chemical_formula_sum"))
    labels, elements = _elements(table, formula_sum)
    if len(labels) > MAX_ATOMS:
        raise CIFError("too_large", f"{len(labels):,} sites, at most {MAX_ATOMS:,} atoms are read")
    frac_coords = _coordinates(table, lattice, labels)
    kept = _check_sites(table, labels, elements, frac_coords)
    letters = _site_values(table, len(labels), "_atom_site_wyckoff_symbol", "_atom_site_wyckoff_label")
    multiplicities = _multiplicities(table, len(labels))
    if len(kept) < len(labels):
        labels, elements, frac_coords = [labels[i] for i in kept], [elements[i] for i in kept], frac_coords[kept]
        letters = letters and [letters[i] for i in kept]
        multiplicities = multiplicities and [multiplicities[i] for i in kept]
    formula_units = integers(table, "_cell_formula_units_z")
    atomic_numbers = np.array(elements)
    stated = stated_settings(table)
    # At least this many atoms, as a site's symmetry has 48 operations at most; no memory is taken for more.
    settings = [s for s in stated if len(labels) * s.n <= _MAX_SITE_SYMMETRY * MAX_ATOMS]
    if not settings:
        raise CIFError(
            "too_large",
            f"{len(labels):,} sites under {stated[0].n} operators, at most {MAX_ATOMS:,} atoms are read",
        )
    if len(settings) == 1 and settings[0].n == 1:
        operations, coords, site_index = settings[0], frac_coords, np.arange(len(labels))
    else:
        compositions = _compositions(formula_sum, formula_units[0] if formula_units else None)
        expected = Expected(multiplicities, compositions, formula_sum)
        tolerance = max(SITE_TOLERANCE_ANG, _rounding(table) * max(cell[:3]))
        operations, coords, site_index = expand_as_expected(
            settings, expected, lattice, labels, atomic_numbers, frac_coords, tolerance
        )
    if len(coords) > MAX_ATOMS:
        raise CIFError("too_large", f"{len(coords):,} atoms in the cell, at most {MAX_ATOMS:,} are read")
    _check_overlap(
        lattice,
        coords,
        atomic_numbers[site_index],
        [labels[i] for i in site_index.tolist()],
        lambda i, j: site_distance(operations, lattice, frac_coords[site_index[i]], frac_coords[site_index[j]]),
    )
    crystal = Crystal(lattice, coords, atomic_numbers[site_index])
    numbers = integers(table, *NUMBER_TAGS)
    header = CIFHeader(
        block=name,
        formula_sum=formula_sum,
        formula_units=formula_units[0] if formula_units else None,
        space_group_symbol=string_value(table, *SYMBOL_TAGS),
        space_group_number=numbers[0] if numbers else None,
        site_labels=tuple(labels),
        site_letters=tuple(letters) if letters else None,
        site_multiplicities=tuple(multiplicities) if multiplicities else None,
        found_multiplicities=tuple(np.bincount(site_index, minlength=len(labels)).tolist()),
        multiplicity_tag=next((tag for tag in MULTIPLICITY_TAGS if tag in table), None) if multiplicities else None,
        n_operators=operations.n,
    )
    return crystal, header


def _compositions(formula_sum: dict[str, float] | None, formula_units: int | None) -> list[dict[str, float]]:
    """Of the cell: formula sum times Z; or, where Z divides the sum, as pymatgen writes it, the sum alone."""
    if not formula_sum or not formula_units:
        return []
    compositions = [{symbol: n * formula_units for symbol, n in formula_sum.items()}]
    if all(n % formula_units == 0 for n in formula_sum.values()):
        compositions.append(formula_sum)
    return compositions


def _cell(table: Table) -> tuple[float, ...]:
    missing = [tag for tag in CELL_TAGS if string_value(table, tag) is None]
    if missing:
        raise CIFError("no_cell", f"no value for {', '.join(missing)}; wanted three lengths and three angles")
    cell = []
    for tag in CELL_TAGS:
        try:
            cell.append(number(table[tag][0]))
        except ValueError:
            raise CIFError("bad_cell", f"{tag} is {table[tag][0]!r}, wanted a number") from None
    return tuple(cell)


def _formula_sum(text: str | None) -> dict[str, float] | None:
    counts: dict[str, float] = {}
    for symbol, count in re.findall(r"([A-Z][a-z]?)\s*(\d+\.?\d*|\.\d+)?", text or ""):
        symbol = "H" if symbol in ("D", "T") else symbol
        counts[symbol] = counts.get(symbol, 0.0) + (float(count) if count else 1.0)
    return counts or None


def _site_values(table: Table, n_sites: int, *tags: str) -> list[str] | None:
    """Of the first of these tags that is there, one value for each site."""
    values = column(table, *tags)
    if values is not None and len(values) != n_sites:
        raise CIFError("syntax", f"{len(values)} values of {tags[0]}; wanted one for each of {n_sites} sites")
    return values


def _multiplicities(table: Table, n_sites: int) -> list[int] | None:
    stated = _site_values(table, n_sites, *MULTIPLICITY_TAGS)
    try:
        return [int(float(value)) for value in stated] if stated else None
    except (ValueError, OverflowError):  # '?', or no number: nothing is stated
        return None


def _elements(table: Table, formula_sum: Mapping[str, float] | None) -> tuple[list[str], list[int]]:
    """Labels and atomic numbers of the sites as listed."""
    types = column(table, "_atom_site_type_symbol")
    labels = column(table, "_atom_site_label")
    if types is None and labels is None:
        raise CIFError("no_atoms", "neither _atom_site_type_symbol nor _atom_site_label")
    typed = types is not None
    types = types if types is not None else labels
    labels = labels if labels is not None else types
    assert types is not None and labels is not None
    if len(types) != len(labels):
        raise CIFError("syntax", f"{len(types)} atom types and {len(labels)} labels; wanted as many of both")
    elements = []
    formula = tuple(formula_sum or ())
    for text, label in zip(types, labels, strict=True):
        by_label = not typed or (text in ("?", ".") and label != text)
        elements.append(_element_of_label(label, formula) if by_label else _element_of_type(text))
    return labels, elements


@functools.lru_cache(4096)
def _element_of_type(text: str) -> int:
    """Fe, Fe3+, O-2, FE -> atomic number."""
    match = _TYPE_SYMBOL.fullmatch(text)
    symbol = match[1].capitalize() if match else ""
    if symbol in ATOMIC_NUMBERS:
        # NI is nickel, but PO4, NO and NH4 are no polonium, nobelium and nihonium
        molecule = text[:2].isupper() and symbol != text[:1] and (text[2:].isdigit() or ATOMIC_NUMBERS[symbol] > 101)
        if not molecule:
            return ATOMIC_NUMBERS[symbol]
    if symbol in ("D", "T"):  # isotopes of hydrogen
        return 1
    _no_element("atom type", text)


_TYPE_SYMBOL = re.compile(r"([A-Za-z]{1,3})[\d.+\-()]*")


@functools.lru_cache(4096)
def _element_of_label(text: str, formula: tuple[str, ...]) -> int:
    """Fe1A, O2', Ow1 -> atomic number. Of "CA1" the formula decides whether it is C or Ca; without one, it is Ca."""
    letters = match[0] if (match := re.match(r"[A-Za-z]+", text)) else ""
    spellings = [letters[:2].capitalize(), letters[:1].upper()]
    known = [s for s in spellings if s in ATOMIC_NUMBERS or s == "D"]
    if not known or _VACANCY.fullmatch(letters):
        _no_element("label", text)
    symbol = next((s for s in known if s in formula), known[0])
    return 1 if symbol == "D" else ATOMIC_NUMBERS[symbol]


_VACANCY = re.compile(r"va|vac|vacancy|x|xx|□", re.IGNORECASE)


def _no_element(what: str, text: str) -> NoReturn:
    if _VACANCY.fullmatch(text.strip("0123456789+-")):
        raise CIFError("vacancy", f"{what} {text!r} is a vacancy; wanted sites that hold one whole atom each")
    raise CIFError("unknown_element", f"{what} {text!r} begins with no element symbol; wanted H, He, ..., Og")


def _coordinates(table: Table, lattice: Floats, labels: Sequence[str]) -> Floats:
    """(n, 3), fractional"""
    tags = next((tags for tags in (FRACT_TAGS, CARTN_TAGS) if tags[0] in table), None)
    if tags is None:
        raise CIFError("no_atoms", "neither _atom_site_fract_x nor _atom_site_Cartn_x")
    columns = []
    for tag in tags:
        values = table.get(tag)
        if values is None or len(values) != len(labels):
            got = "no values" if values is None else f"{len(values)} values"
            raise CIFError("bad_coordinate", f"{got} of {tag}; wanted one for each of {len(labels)} sites")
        try:
            columns.append([float(value) for value in values])
        except ValueError:
            columns.append([_coordinate(value, tag, label) for value, label in zip(values, labels, strict=True)])
    coords = np.array(columns).T
    if not np.isfinite(coords).all():
        site = int(np.flatnonzero(~np.isfinite(coords).all(axis=1))[0])
        raise CIFError("bad_coordinate", f"site {labels[site]!r} is at {coords[site].tolist()}; wanted finite numbers")
    return coords if tags is FRACT_TAGS else _from_cartesian(table, lattice, coords)


def _from_cartesian(table: Table, lattice: Floats, coords: Floats) -> Floats:
    """(n, 3) Å -> fractional: by the matrix and vector that the file states, else with a along x and b in the xy plane.

    These are the axes of ASE, gemmi and the PDB, not those of `lattice`.
    """
    basis, origin = np.linalg.cholesky(lattice @ lattice.T), np.zeros(3)  # lower triangular, rows a, b, c
    if string_value(table, CARTN_MATRIX_TAGS[0]) is not None:
        values = [_cartesian_axis(table, tag) for tag in CARTN_MATRIX_TAGS]
        stated = np.array(values).reshape(3, 3).T  # columns are a, b, c in the dictionary
        metric, lengths = lattice @ lattice.T, np.linalg.norm(lattice, axis=1)
        if not (np.abs(stated @ stated.T - metric) <= METRIC_TOLERANCE * np.outer(lengths, lengths)).all():
            raise CIFError("bad_coordinate", f"{CARTN_MATRIX_TAGS[0]} and the others, {values}, do not fit the cell")
        basis = stated
        if string_value(table, CARTN_VECTOR_TAGS[0]) is not None:
            origin = np.array([_cartesian_axis(table, tag) for tag in CARTN_VECTOR_TAGS])
    return (coords - origin) @ np.linalg.inv(basis)


def _cartesian_axis(table: Table, tag: str) -> float:
    text = string_value(table, tag)
    try:
        return number(text or "")
    except ValueError:
        raise CIFError("bad_coordinate", f"{tag} is {text!r}; wanted a number, as of the others") from None


def _coordinate(value: str, tag: str, label: str) -> float:
    try:
        return number(value)
    except ValueError:
        raise CIFError("bad_coordinate", f"{tag} of site {label!r} is {value!r}; wanted a number") from None


def _rounding(table: Table) -> float:
    """How far apart, in cell edges, the images of a point can come to lie because it is written with few decimals.

    0.33 for 1/3 is off by 0.0033, and -y, x - y doubles that. More than 0.02 is never forgiven.
    """
    values = [unquote(value) for tag in FRACT_TAGS for value in table.get(tag, ())]
    decimals = max((len(value.partition(".")[2].partition("(")[0]) for value in values), default=8)
    return min(0.02, 2 * 10.0**-decimals)


def _check_sites(table: Table, labels: Sequence[str], elements: Sequence[int], frac_coords: Floats) -> list[int]:
    """Indices of the sites to keep: dummy atoms go, and so do second entries of one mixed-valence element."""
    kept = list(range(len(labels)))
    flags = _site_values(table, len(labels), "_atom_site_calc_flag")
    if flags:
        kept = [i for i in kept if flags[i].lower() != "dum"]  # codespell:ignore dum
    if not kept:
        raise CIFError("no_atoms", "the list of atoms is empty")
    hydrogens = _site_values(table, len(labels), "_atom_site_attached_hydrogens")
    for i in kept:
        if hydrogens and hydrogens[i] not in ("0", ".", "?"):
            raise CIFError("implicit_hydrogens", f"{hydrogens[i]} hydrogens without coordinates at site {labels[i]!r}")
    values = _site_values(table, len(labels), "_atom_site_occupancy")
    if values is None or all(values[i] == "1" for i in kept):
        return kept
    occupancies = [_occupancy(value, label) for value, label in zip(values, labels, strict=True)]
    partial = [i for i in kept if not abs(occupancies[i] - 1) <= _OCCUPANCY_TOLERANCE]  # nan is partial, too
    seen, dropped = set[int](), set[int]()
    near = _neighbours(frac_coords[partial])
    for k, first in enumerate(partial):
        if first in seen:
            continue
        others = [i for i in (partial[j] for j in near(k)) if i not in seen]
        delta = frac_coords[others] - frac_coords[first]
        same_place = np.abs(delta - np.rint(delta)).max(axis=1) < _SAME_PLACE
        group = [i for i, same in zip(others, same_place, strict=True) if same]
        total = sum(occupancies[i] for i in group)
        if len({elements[i] for i in group}) > 1 or not abs(total - 1) <= 0.01:
            raise CIFError(
                "partial_occupancy",
                f"site {labels[first]!r} is occupied by {occupancies[first]:g}; wanted 1, an ordered crystal",
            )
        seen.update(group)
        dropped.update(group[1:])
    return [i for i in kept if i not in dropped]


def _neighbours(points: Floats) -> Callable[[int], list[int]]:
    """Of a point (n, 3) those that may lie within _SAME_PLACE, itself among them, in order: by boxes, not by pairs."""
    n_boxes = 1000  # along an edge
    corners = np.array(list(itertools.product((-_SAME_PLACE, _SAME_PLACE), repeat=3)))
    own = np.floor(points * n_boxes).astype(np.int64) % n_boxes
    reached = np.floor((points[:, None] + corners) * n_boxes).astype(np.int64) % n_boxes  # (n, 8, 3)
    boxes: dict[tuple[int, ...], list[int]] = {}
    for k, box in enumerate(map(tuple, own.tolist())):
        boxes.setdefault(box, []).append(k)
    return lambda k: sorted(j for box in set(map(tuple, reached[k].tolist())) for j in boxes.get(box, ()))


def _occupancy(value: str, label: str) -> float:
    if value in ("?", "."):  # the dictionary's default
        return 1.0
    try:
        return number(value)
    except ValueError:
        raise CIFError("partial_occupancy", f"occupancy of site {label!r} is {value!r}; wanted 1") from None


def _check_overlap(
    lattice: Floats,
    coords: Floats,
    elements: NDArray[np.int64],
    labels: Sequence[str],
    distance_as_listed: Callable[[int, int], float] | None = None,
) -> None:
    """Two atoms within SITE_TOLERANCE_ANG of each other are at one place.

    `distance_as_listed`: of two of the atoms, Å, for the message, where sites were moved onto special positions.
    """
    # |delta| along an axis, times the distance between the cell's faces across it, is a lower bound of the distance.
    reach = SITE_TOLERANCE_ANG * np.linalg.norm(np.linalg.inv(lattice), axis=0)  # (3,), in cell edges
    first, second, third = np.argsort(reach).tolist()
    for start in range(0, len(coords), 256):  # rows at a time: 2,000 atoms make four million pairs
        delta = coords[start : start + 256, first, None] - coords[:, first]
        i, j = np.nonzero(np.abs(delta - np.rint(delta)) < reach[first])
        i += start
        for axis in (second, third):
            i, j = i[i < j], j[i < j]
            delta = coords[i, axis] - coords[j, axis]
            near = np.abs(delta - np.rint(delta)) < reach[axis]
            i, j = i[near], j[near]
        vectors = coords[i] - coords[j]
        distances = np.linalg.norm((vectors - np.rint(vectors)) @ lattice, axis=1)
        for pair in np.flatnonzero(distances < SITE_TOLERANCE_ANG)[:1]:
            both = " and ".join(f"{labels[k]!r} ({SYMBOLS[elements[k] - 1]})" for k in (i[pair], j[pair]))
            distance = distance_as_listed(i[pair], j[pair]) if distance_as_listed else distances[pair]
            raise CIFError("overlap", f"sites {both} are {distance:.3f} Å apart; wanted one atom at a place")
