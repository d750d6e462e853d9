"""What a canonical text states: an asymmetric unit, read from text, written as text, expanded to a crystal.

Needs numpy only, so that samples can be read where pymatgen, spglib and moyo are not installed.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass, field, replace

import numpy as np

from crystallm.crystal import Crystal, formula_text, lattice_from_parameters
from crystallm.space_groups import SpaceGroup, space_group, space_group_symbols
from tokenizer.elements import ATOMIC_NUMBERS

COORDINATE_DECIMALS = 3  # of a canonical text
# A half goes up, and so does what lies a hair below it: 1/16 sits on a rounding boundary in every description.
_GUARD = 1e-3


def round_to_steps(values: np.ndarray, steps: int) -> np.ndarray:
    """In whole steps, of which there are `steps` to the unit; int64."""
    return np.floor(values * steps + 0.5 + _GUARD).astype(np.int64)


class CanonicalError(ValueError):
    """A crystal that has no canonical text, or a text that is not canonical. `reason` is a short name for counts."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type[CanonicalError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class Site:
    symbol: str
    letter: str
    frac: tuple[float, float, float]  # as the text states them; SpaceGroup restores 1/3 from 0.333


@dataclass(frozen=True)
class AsymmetricUnit:
    """What a canonical text states."""

    formula: tuple[tuple[str, int], ...]  # reduced, in formula order
    formula_units: int  # in the primitive cell
    space_group_number: int
    cell: tuple[float, float, float, float, float, float]  # Å and degrees, conventional cell
    sites: tuple[Site, ...]
    properties: dict[str, float] = field(default_factory=dict)  # condition lines by name, unit in the name

    @property
    def group(self) -> SpaceGroup:
        return space_group(self.space_group_number)

    @property
    def reduced_formula(self) -> str:
        return formula_text(dict(self.formula))

    @property
    def multiplicities(self) -> tuple[int, ...]:
        """Of each site, in the conventional cell."""
        return tuple(self.group.position(site.letter).multiplicity for site in self.sites)

    def to_text(self, coordinate_decimals: int = COORDINATE_DECIMALS) -> str:
        """Coordinates are to lie on the grid of so many decimals already; see `on_grid`."""
        a, b, c, alpha, beta, gamma = self.cell
        head = [f"# {name} {value:+.2f}" for name, value in self.properties.items()]
        places = coordinate_decimals
        sites = [" ".join([s.symbol, s.letter, *(f"{value:.{places}f}" for value in s.frac)]) for s in self.sites]
        lines = [
            *head,
            f"data_{self.reduced_formula}",
            f"_crystallm_primitive_formula_units {self.formula_units}",
            f"_symmetry_space_group_name_H-M {self.group.symbol}",
            f"_cell_length_a {a:.2f}",
            f"_cell_length_b {b:.2f}",
            f"_cell_length_c {c:.2f}",
            f"_cell_angle_alpha {alpha:.1f}",
            f"_cell_angle_beta {beta:.1f}",
            f"_cell_angle_gamma {gamma:.1f}",
            "loop_",
            "_atom_site_type_symbol",
            "_atom_site_Wyckoff_symbol",
            "_atom_site_fract_x",
            "_atom_site_fract_y",
            "_atom_site_fract_z",
            *sites,
        ]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_text(cls, text: str) -> AsymmetricUnit:
        """Raises CanonicalError with the first line that does not fit."""
        return _read_text(text)

    def on_grid(self, coordinate_decimals: int = COORDINATE_DECIMALS) -> AsymmetricUnit:
        """With the free coordinates rounded to so many decimals, and what they determine computed from them."""
        steps = 10**coordinate_decimals
        sites = []
        for site in self.sites:
            free = round_to_steps(np.array(site.frac), steps) / steps
            exact = self.group.position(site.letter).coordinates(free)
            x, y, z = (round_to_steps(exact, steps) % steps / steps).tolist()
            sites.append(Site(site.symbol, site.letter, (x, y, z)))
        return replace(self, sites=tuple(sites))

    def to_crystal(self) -> Crystal:
        """The atoms of the conventional cell, special coordinates exact. Raises CanonicalError for an impossible
        cell.
        """
        try:
            lattice = lattice_from_parameters(*self.cell)
        except ValueError as err:
            raise CanonicalError("bad_cell", f"data_{self.reduced_formula}: {err}") from err
        points, numbers = [], []
        for site in self.sites:
            orbit = self.group.position(site.letter).orbit(np.array(site.frac))
            points.append(orbit)
            numbers += [ATOMIC_NUMBERS[site.symbol]] * len(orbit)
        return Crystal(lattice, np.concatenate(points), np.array(numbers))


def to_primitive(crystal: Crystal, group: SpaceGroup) -> Crystal:
    """One lattice point's share of a conventional cell in the setting of `group`."""
    if group.n_centring == 1:
        return crystal
    identity = (group.rotations == np.eye(3, dtype=int)).all(axis=(1, 2))
    basis = primitive_basis(group.number)  # (3, 3) rows in fractions of the conventional cell
    frac = crystal.frac_coords @ np.linalg.inv(basis)
    shifts = group.translations[identity] @ np.linalg.inv(basis)
    assert np.allclose(shifts, np.rint(shifts))
    frac -= np.floor(frac + 1e-6)
    kept: list[int] = []  # the first of each set of points that now coincide
    for z in np.unique(crystal.atomic_numbers):
        members = np.flatnonzero(crystal.atomic_numbers == z)
        delta = frac[members][:, None] - frac[members][None]
        same = (np.abs(delta - np.rint(delta)) < 1e-5).all(-1)
        kept += members[same.argmax(axis=1) == np.arange(len(members))].tolist()
    if len(kept) * group.n_centring != crystal.n_atoms:
        raise CanonicalError("symmetry", f"{crystal.n_atoms} atoms do not repeat with the centring of {group.symbol}")
    kept.sort()
    return Crystal(basis @ crystal.lattice, frac[kept], crystal.atomic_numbers[kept])


@functools.cache
def primitive_basis(number: int) -> np.ndarray:
    """(3, 3) rows of the primitive cell in fractions of the conventional one."""
    group = space_group(number)
    identity = (group.rotations == np.eye(3, dtype=int)).all(axis=(1, 2))
    vectors = np.concatenate([group.translations[identity], np.eye(3)])
    vectors = np.concatenate([vectors, vectors - 1, [v - e for v in group.translations[identity] for e in np.eye(3)]])
    vectors = vectors[(np.abs(vectors).max(axis=1) <= 1) & (np.abs(vectors).sum(axis=1) > 0)]
    vectors = vectors[np.argsort((vectors**2).sum(axis=1), kind="stable")]
    for triple in itertools.combinations(range(len(vectors)), 3):
        basis = vectors[list(triple)]
        if np.isclose(np.linalg.det(basis), 1 / group.n_centring):
            return basis
    raise AssertionError(f"no primitive basis for group {number}")


_HEAD = re.compile(
    r"(?P<properties>(?:# [a-z0-9_]+ [+-]\d+\.\d\d\n)*)"
    r"data_(?P<formula>(?:[A-Z][a-z]?\d*)+)\n"
    r"_crystallm_primitive_formula_units (?P<units>[1-9]\d*)\n"
    r"_symmetry_space_group_name_H-M (?P<group>\S+)\n"
    r"_cell_length_a (?P<a>\d+\.\d+)\n_cell_length_b (?P<b>\d+\.\d+)\n_cell_length_c (?P<c>\d+\.\d+)\n"
    r"_cell_angle_alpha (?P<alpha>\d+\.\d+)\n_cell_angle_beta (?P<beta>\d+\.\d+)\n"
    r"_cell_angle_gamma (?P<gamma>\d+\.\d+)\n"
    r"loop_\n_atom_site_type_symbol\n_atom_site_Wyckoff_symbol\n"
    r"_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
)
_SITE = re.compile(r"([A-Z][a-z]?) ([A-Za-z]) (\d\.\d+) (\d\.\d+) (\d\.\d+)")


def is_canonical(text: str) -> bool:
    """Whether this is meant as a text of the language model, which only its own rules expand; from_text tells."""
    return "\n_crystallm_primitive_formula_units" in text and "_atom_site_Wyckoff_symbol" in text and "_xyz" not in text


def _read_text(text: str) -> AsymmetricUnit:
    head = _HEAD.match(text)
    if head is None:
        raise CanonicalError("syntax", f"not the head of a canonical CIF: {text[:60]!r}…")
    name = f"data_{head['formula']}"
    symbol = head["group"]
    if symbol not in space_group_symbols():
        raise CanonicalError("syntax", f"{name}: {symbol!r} is not the short symbol of a space group")
    group = space_group(symbol)
    sites = []
    for number, line in enumerate(text[head.end() :].splitlines(), 1):
        match = _SITE.fullmatch(line)
        if match is None:
            raise CanonicalError("syntax", f"{name}, site {number}: want 'O c 0.000 0.500 0.500', got {line[:60]!r}")
        element, letter, x, y, z = match.groups()
        if element not in ATOMIC_NUMBERS:
            raise CanonicalError("unknown_element", f"{name}, site {number}: {element!r} is no element")
        if letter not in {p.letter for p in group.wyckoff}:
            raise CanonicalError("syntax", f"{name}, site {number}: {symbol} has no Wyckoff position {letter!r}")
        sites.append(Site(element, letter, (float(x), float(y), float(z))))
    if not sites:
        raise CanonicalError("no_atoms", f"{name}: no site follows the head")
    formula = tuple((el, int(count or 1)) for el, count in re.findall(r"([A-Z][a-z]?)(\d*)", head["formula"]))
    if unknown := [el for el, _ in formula if el not in ATOMIC_NUMBERS]:
        raise CanonicalError("unknown_element", f"{name}: {unknown[0]!r} is no element")
    properties = {line.split()[1]: float(line.split()[2]) for line in head["properties"].splitlines()}
    a, b, c, alpha, beta, gamma = (float(head[key]) for key in ("a", "b", "c", "alpha", "beta", "gamma"))
    return AsymmetricUnit(
        formula, int(head["units"]), group.number, (a, b, c, alpha, beta, gamma), tuple(sites), properties
    )
