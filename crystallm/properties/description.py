"""A crystal in words: composition, symmetry, cell and the surroundings of its sites, as short sentences.

Everything said follows from the structure, and nothing depends on how the structure was given: lengths are those of the
symmetrised crystal in its standard cell, Wyckoff letters the smallest among the equivalent choices of origin and axes.
What cannot be found is left out.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crystallm.asymmetric_unit import primitive_basis
from crystallm.crystal import Crystal, reduce_composition
from crystallm.elements import element_table
from crystallm.geometry import neighbour_pairs, reduce_lattice, shortest_distances
from crystallm.properties.oxidation import guess_oxidation_states
from crystallm.properties.wordings import word
from crystallm.resources import resource_path
from crystallm.space_groups import SpaceGroup
from crystallm.symmetry import SymmetricSites, SymmetryError, find_symmetric_sites
from tokenizer.elements import ATOMIC_NUMBERS, ELEMENT_RANK, SYMBOLS

Describer = Literal["builtin", "robocrys"]
Scope = Literal["global", "local"]

MAX_SITE_SENTENCES = 12
# Neighbours stand within this share beyond the nearest one; where the nearest is of clearly another electronegativity,
# only such neighbours count, and these may be farther: closer to CrystalNN's numbers than one shell for all.
SHELL, POLAR_SHELL = 0.15, 0.25
POLAR_DIFFERENCE = 0.5
MAX_PROTOTYPE_SITES, MAX_PROTOTYPE_ELEMENTS = 10, 4
_SAME_ANG = 1e-4  # what lies this close to a limit is within it, in every description of a crystal alike
_LOWEST_WITH_LETTERS = 16  # below, letters change with the choice of axes, of which there are infinitely many


@dataclass(frozen=True)
class Sentence:
    text: str
    scope: Scope  # "local": of one kind of site
    kind: str  # a key of crystallm.properties.wordings.WORDINGS, or "robocrys"
    atoms: tuple[int, ...] = ()  # of the crystal that was described, where the sentence is about some of them
    facts: Mapping[str, str] = field(default_factory=dict)  # what its wordings state; empty: it has one wording


@dataclass(frozen=True)
class Description:
    sentences: tuple[Sentence, ...]

    def __str__(self) -> str:
        return " ".join(sentence.text for sentence in self.sentences)

    def to_json(self) -> str:
        rows = [[s.text, s.scope, s.kind, list(s.atoms), dict(s.facts)] for s in self.sentences]
        return json.dumps(rows, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Description:
        rows: list[list[Any]] = json.loads(text)
        return cls(tuple(Sentence(t, scope, kind, tuple(atoms), facts) for t, scope, kind, atoms, facts in rows))


def describe(crystal: Crystal, by: Describer = "builtin") -> Description:
    """The crystal in words. `robocrys` is Robocrystallographer, some hundred times slower, and needs its package.

    Both give the same text for every description of a crystal, but for borderline symmetry. Raises ImportError where
    robocrys is asked for and not installed.
    """
    if by == "builtin":
        return Description(tuple(_sentences(crystal)))
    if by == "robocrys":
        return _by_robocrys(crystal)
    raise ValueError(f"a crystal is described by 'builtin' or 'robocrys', got {by!r}")


def _sentence(kind: str, atoms: Iterable[int] = (), /, **facts: str) -> Sentence:
    scope: Scope = "local" if kind == "site" else "global"
    return Sentence(word(kind, facts), scope, kind, tuple(atoms), facts)


def _sentences(crystal: Crystal) -> Iterator[Sentence]:
    composition = reduce_composition(crystal.composition)[0]
    try:
        sites = find_symmetric_sites(crystal)
    except SymmetryError:  # then the description has no sentence of symmetry, and every atom is a site
        sites = None
    oxidation = guess_oxidation_states(composition)
    surroundings = (
        _surroundings_of_atoms(crystal, oxidation) if sites is None else _surroundings_of_sites(sites, oxidation)
    )
    kind = "formula" if len(composition) > 1 else "element"
    facts = {"formula": crystal.reduced_formula}
    yield _sentence(kind, **facts, **({"n_elements": str(len(composition))} if kind == "formula" else {}))
    rows = _smallest_rows(sites, surroundings)
    if sites is not None:
        group = sites.group
        yield _sentence("symmetry", symbol=group.symbol, number=str(group.number), system=group.crystal_system)
        if prototype := _prototype(group, rows):
            yield _sentence("prototype", prototype=prototype)
    yield _sentence("families", families=_families(composition))
    if difference := _electronegativity_difference(composition):
        yield _sentence("electronegativity", difference=difference)
    yield _sentence(
        "density",
        density=_rounded(crystal.density_g_per_cm3, 2),
        volume=_rounded(crystal.volume_ang3 / crystal.n_atoms, 2),
    )
    if sites is not None:
        setting, lengths = _cell(sites)
        yield _sentence("cell", setting=setting, lengths=lengths)
        n_points = sum(sites.group.wyckoff[letter].multiplicity for letter in sites.letters)
        n_atoms = _count(n_points // sites.group.n_centring, "atom")
        yield _sentence("size", atoms=n_atoms, sites=_count(len(sites.letters), "distinct site"))
    yield from _site_sentences(sites, rows, surroundings, oxidation)


def _rounded(value: float, decimals: int) -> str:
    """A half goes up, and so does what lies a hair below it: 3.905 comes out as 3.90499999 in one cell of two."""
    steps = 10**decimals
    return f"{math.floor(value * steps + 0.5 + 1e-6) / steps:.{decimals}f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# Composition

_FAMILIES = {
    "alkali metal": "Li Na K Rb Cs Fr",
    "alkaline earth metal": "Be Mg Ca Sr Ba Ra",
    "post-transition metal": "Al Ga In Sn Tl Pb Bi Nh Fl Mc Lv",
    "metalloid": "B Si Ge As Sb",
    "nonmetal": "H C N P",
    "chalcogen": "O S Se Te Po",
    "halogen": "F Cl Br I At Ts",
    "noble gas": "He Ne Ar Kr Xe Rn Og",
    "lanthanide": "La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu",
    "actinide": "Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr",
}


@functools.cache
def _family_of() -> dict[str, str]:
    named = {symbol: family for family, symbols in _FAMILIES.items() for symbol in symbols.split()}
    return {symbol: named.get(symbol, "transition metal") for symbol in SYMBOLS}


def _families(composition: Mapping[str, int]) -> str:
    """alkali metal (Na) and halogen (Cl)"""
    members: dict[str, list[str]] = {}
    for symbol in composition:
        members.setdefault(_family_of()[symbol], []).append(symbol)
    return _listed([f"{family} ({', '.join(symbols)})" for family, symbols in members.items()])


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _electronegativity_difference(composition: Mapping[str, int]) -> str | None:
    values = element_table()["electronegativity"][[ATOMIC_NUMBERS[symbol] - 1 for symbol in composition]]
    if len(values) == 1 or np.isnan(values).any():
        return None
    return _rounded(float(values.max() - values.min()), 2)


# Cell


def _cell(sites: SymmetricSites) -> tuple[str, str]:
    """("conventional", "a = 5.64 Å"): what the crystal system leaves free, in a form that no choice of axes changes.

    Orthorhombic edges stand in the order of their lengths. Monoclinic and triclinic cells are not unique: there it is
    the reduced primitive cell.
    """
    group, metric = sites.group, sites.metric_ang2
    if group.crystal_system in ("triclinic", "monoclinic"):
        primitive = primitive_basis(group.number) @ np.linalg.cholesky(metric)
        reduced, _ = reduce_lattice(primitive)
        lengths = np.linalg.norm(reduced, axis=1)
        cosines = [float(reduced[i] @ reduced[j] / (lengths[i] * lengths[j])) for i, j in ((1, 2), (0, 2), (0, 1))]
        # Axes may be turned round in pairs, which brings all angles to one side of 90°: that of the cosines' product.
        sign = 1.0 if math.prod(cosines) > 1e-6 else -1.0
        angles = [math.degrees(math.acos(sign * abs(cosine))) for cosine in cosines]
        # Of equal edges, that with the smaller angle opposite comes first.
        edges = sorted((_rounded(float(a), 2).rjust(9), _rounded(w, 1)) for a, w in zip(lengths, angles, strict=True))
        parts = [f"{a.strip()} Å" for a, _ in edges] + [f"{angle}°" for _, angle in edges]
        return "reduced primitive", "edges " + _listed(parts[:3]) + " and angles " + _listed(parts[3:])
    lengths = np.sqrt(np.diagonal(metric))
    if group.crystal_system == "cubic":
        return "conventional", f"a = {_rounded(float(lengths[0]), 2)} Å"
    if group.crystal_system == "orthorhombic":
        return "conventional", "edges " + _listed([f"{_rounded(float(a), 2)} Å" for a in np.sort(lengths)])
    a, c = (_rounded(float(lengths[axis]), 2) for axis in (0, 2))
    return "conventional", f"a = {a} Å and c = {c} Å"


# Sites


@dataclass(frozen=True)
class Surroundings:
    """The neighbours of one site, by element in formula order."""

    atomic_number: int
    shells: tuple[tuple[str, int, float, float], ...]  # (element, how many, shortest and longest distance in Å)

    @property
    def coordination(self) -> int:
        return sum(count for _, count, _, _ in self.shells)

    @functools.cached_property
    def bonds(self) -> str:
        return _bonds([self])


def _bonds(sites: Sequence[Surroundings]) -> str:
    """6 O at 1.95 to 1.98 Å; of several sites also: 4 to 6 O at ..."""
    shells: dict[str, list[tuple[int, float, float]]] = {}
    for site in sites:
        for symbol, count, shortest, longest in site.shells:
            shells.setdefault(symbol, []).append((count, shortest, longest))
    parts = []
    for symbol in sorted(shells, key=ELEMENT_RANK.__getitem__):
        counts = [count for count, _, _ in shells[symbol]]
        fewest = min(counts) if len(counts) == len(sites) else 0  # some of the sites have no such neighbour
        nearest = _rounded(min(low for _, low, _ in shells[symbol]), 2)
        farthest = _rounded(max(high for _, _, high in shells[symbol]), 2)
        parts.append(f"{_range(str(fewest), str(max(counts)))} {symbol} at {_range(nearest, farthest)} Å")
    return _listed(parts)


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _surroundings_of_sites(sites: SymmetricSites, oxidation: Mapping[str, float]) -> list[Surroundings]:
    """Of one atom a site, in the symmetrised conventional cell."""
    orbits = [sites.group.wyckoff[k].orbit(point) for k, point in zip(sites.letters, sites.points, strict=True)]
    counts = np.array([len(orbit) for orbit in orbits])
    centres = np.concatenate([[0], np.cumsum(counts)[:-1]])
    lattice = np.linalg.cholesky(sites.metric_ang2)  # (3, 3), Å, rows a, b, c
    atomic_numbers = np.repeat(sites.atomic_numbers, counts)
    return _surroundings(lattice, np.concatenate(orbits), atomic_numbers, centres, oxidation)


def _surroundings_of_atoms(crystal: Crystal, oxidation: Mapping[str, float]) -> list[Surroundings]:
    centres = np.arange(crystal.n_atoms)
    return _surroundings(crystal.lattice, crystal.frac_coords, crystal.atomic_numbers, centres, oxidation)


def _surroundings(
    lattice: NDArray[np.float64],
    frac_coords: NDArray[np.float64],
    atomic_numbers: NDArray[np.int64],
    centres: NDArray[np.int64],
    oxidation: Mapping[str, float],
) -> list[Surroundings]:
    """Of the atoms `centres`."""
    lattice, matrix = reduce_lattice(lattice)
    frac_coords = frac_coords @ np.linalg.inv(matrix)
    nearest = shortest_distances(lattice, frac_coords[centres], frac_coords)  # (n_centres, n_atoms) Å
    nearest[np.arange(len(centres)), centres] = np.linalg.norm(lattice[0])  # a site's own nearest image
    reach = nearest.min(axis=1) * (1 + POLAR_SHELL) + _SAME_ANG  # (n_centres,) Å
    i, j, _, distances = neighbour_pairs(lattice, frac_coords, float(reach.max()), centres.tolist())
    numbers, opposite = atomic_numbers.tolist(), _opposites(oxidation)
    near = distances <= np.repeat(reach, np.bincount(np.searchsorted(centres, i), minlength=len(centres)))
    neighbours: list[list[tuple[float, int]]] = [[] for _ in centres]
    of_centre = np.searchsorted(centres, i[near])
    for k, length, z in zip(
        of_centre.tolist(), distances[near].tolist(), atomic_numbers[j[near]].tolist(), strict=True
    ):
        neighbours[k].append((length, z))
    found = []
    for centre, pairs in zip(centres.tolist(), neighbours, strict=True):
        z, shortest = numbers[centre], min(pairs)[0]
        # Where several elements stand nearest, it is by the most different one.
        polar = {other for length, other in pairs if length <= shortest + 0.01 and opposite(z, other)}
        if polar:
            pairs = [
                (length, other) for length, other in pairs if opposite(z, other) in {opposite(z, p) for p in polar}
            ]
        else:
            pairs = [(length, other) for length, other in pairs if length <= shortest * (1 + SHELL) + _SAME_ANG]
        lengths: dict[int, list[float]] = {}
        for length, other in pairs:
            lengths.setdefault(other, []).append(length)
        shells = sorted(
            ((SYMBOLS[other - 1], len(group), min(group), max(group)) for other, group in lengths.items()),
            key=lambda shell: ELEMENT_RANK[shell[0]],
        )
        found.append(Surroundings(z, tuple(shells)))
    return found


def _opposites(oxidation: Mapping[str, float]) -> Callable[[int, int], int]:
    """(z, other) -> +1 or -1 where `other` is the positive or the negative partner of a polar bond, else 0.

    By the oxidation states where these are known, else by electronegativities that differ by POLAR_DIFFERENCE.
    """
    charge = {ATOMIC_NUMBERS[symbol]: state for symbol, state in oxidation.items()}
    x = element_table()["electronegativity"]

    def opposite(z: int, other: int) -> int:
        if charge:
            return 0 if charge[z] * charge[other] > 0 else 1 if charge[other] > 0 else -1
        difference = float(x[other - 1] - x[z - 1])  # nan for He and the like: no polar bond
        return 0 if not abs(difference) >= POLAR_DIFFERENCE - 1e-9 else 1 if difference < 0 else -1

    return opposite


@dataclass(frozen=True)
class _Row:
    """A site with the place that it takes in the description."""

    rank: int  # of its element, in formula order
    letter: int  # index of the Wyckoff position; -1 where none is known
    coordination: int
    bonds: str
    site: int


def _smallest_rows(sites: SymmetricSites | None, surroundings: Sequence[Surroundings]) -> list[_Row]:
    """The sites by (element, letter, ...), with the letters of the equivalent description where these come first."""
    ranks = [ELEMENT_RANK[SYMBOLS[s.atomic_number - 1]] for s in surroundings]
    images = np.full((1, len(ranks)), -1) if sites is None else sites.group.normaliser.letters[:, sites.letters]
    best: tuple[tuple, list[_Row]] | None = None
    for letters in np.unique(images, axis=0).tolist():
        rows = [
            _Row(rank, letter, s.coordination, s.bonds, k)
            for k, (rank, letter, s) in enumerate(zip(ranks, letters, surroundings, strict=True))
        ]
        rows.sort(key=lambda row: (row.rank, row.letter, row.coordination, row.bonds))
        key = ([(r.rank, r.letter) for r in rows], [(r.coordination, r.bonds) for r in rows])
        if best is None or key < best[0]:
            best = key, rows
    assert best is not None
    return best[1]


def _site_sentences(
    sites: SymmetricSites | None,
    rows: Sequence[_Row],
    surroundings: Sequence[Surroundings],
    oxidation: Mapping[str, float],
) -> Iterator[Sentence]:
    """One for all the sites of which the same is said; where these are many, one for more and more alike ones."""
    atoms_of_site: list[list[int]] = [[] for _ in surroundings]
    for atom, site in enumerate(range(len(surroundings)) if sites is None else sites.site_of_atom.tolist()):
        atoms_of_site[site].append(atom)
    species, places = {}, {}
    for row in rows:
        symbol = _symbol_of_rank()[row.rank]
        species[row.site] = f"{symbol} ({_charge(oxidation[symbol])})" if symbol in oxidation else symbol
        places[row.site] = "" if sites is None else _place(sites.group, row.letter, int(sites.letters[row.site]))
    said: dict[tuple[str, ...], list[int]] = {}
    for detail in ("all", "counts", "element"):
        said = {}
        for row in rows:
            shells = surroundings[row.site].shells
            parts = {
                "all": (places[row.site], row.bonds),
                "counts": tuple(f"{count} {symbol}" for symbol, count, _, _ in shells),
                "element": (),
            }
            said.setdefault((species[row.site], *parts[detail]), []).append(row.site)
        if len(said) <= MAX_SITE_SENTENCES:
            break
    for members in said.values():
        place = places[members[0]] if len({places[site] for site in members}) == 1 else ""
        many = f" ({len(members)} sites)" if len(members) > 1 else ""
        counts = [surroundings[site].coordination for site in members]
        coordination = _range(str(min(counts)), str(max(counts)))
        yield _sentence(
            "site",
            sorted(atom for site in members for atom in atoms_of_site[site]),
            who=species[members[0]] + place + many,
            neighbours=f"{coordination} neighbour" + ("" if coordination == "1" else "s"),
            bonds=_bonds([surroundings[site] for site in members]),
        )


def _place(group: SpaceGroup, letter: int, own_letter: int) -> str:
    if group.number == 1:
        return ""
    if group.number < _LOWEST_WITH_LETTERS:
        return f" at a {group.wyckoff[own_letter].multiplicity}-fold position"
    position = group.wyckoff[letter]
    return f" at {position.multiplicity}{position.letter}"


def _charge(state: float) -> str:
    """+2, -1, +2.67"""
    return f"{state:+.0f}" if state == round(state) else f"{state:+.2f}"


@functools.cache
def _symbol_of_rank() -> dict[int, str]:
    return {rank: symbol for symbol, rank in ELEMENT_RANK.items()}


# Prototypes


def find_prototype_key(crystal: Crystal) -> tuple[str, str] | None:
    """("225 Aa Bb", "6 6"): the occupied positions, with elements as A, B, ... in formula order; coordination numbers.

    In the order of the positions. None for more sites or elements than prototypes have. Raises SymmetryError.
    """
    sites = find_symmetric_sites(crystal)
    oxidation = guess_oxidation_states(reduce_composition(crystal.composition)[0])
    return _prototype_key(sites.group, _smallest_rows(sites, _surroundings_of_sites(sites, oxidation)))


def _prototype_key(group: SpaceGroup, rows: Sequence[_Row]) -> tuple[str, str] | None:
    if len(rows) > MAX_PROTOTYPE_SITES or len({row.rank for row in rows}) > MAX_PROTOTYPE_ELEMENTS:
        return None
    label = {rank: chr(ord("A") + k) for k, rank in enumerate(dict.fromkeys(row.rank for row in rows))}
    places = " ".join(label[row.rank] + group.wyckoff[row.letter].letter for row in rows)
    return f"{group.number} {places}", " ".join(str(row.coordination) for row in rows)


def _prototype(group: SpaceGroup, rows: Sequence[_Row]) -> str | None:
    key = _prototype_key(group, rows)
    if key is None:
        return None
    places, coordination = key
    entry = _prototypes().get(places, {})
    return entry.get(coordination) or entry.get("any")


@functools.cache
def _prototypes() -> dict[str, dict[str, str]]:
    """Occupied positions -> coordination numbers, or "any" where the positions leave no choice -> name.

    Made by bin/make_prototype_table.py.
    """
    table: dict[str, dict[str, str]] = json.loads(resource_path("resources/prototypes.json").read_text("utf-8"))
    return table


# Robocrystallographer


def _by_robocrys(crystal: Crystal) -> Description:
    try:
        from robocrys import StructureCondenser, StructureDescriber
    except ImportError as err:
        raise ImportError(
            "describing crystals by robocrys needs its package: install crystallm with its extra `describe`, "
            "or describe by 'builtin'"
        ) from err
    from crystallm.interop import to_structure

    condensed = StructureCondenser().condense_structure(to_structure(crystal))
    parts = StructureDescriber(fmt="raw", return_parts=True).describe(condensed)
    sentences = []
    for name, text in parts.items():
        scope: Scope = "local" if name == "components" else "global"
        for part in filter(None, re.split(r"(?<=[.])\s+", text.strip())):
            sentences.append(Sentence(part, scope, "robocrys"))
    return Description(tuple(sentences))
