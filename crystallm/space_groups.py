"""The 230 space groups in one setting each: operations, Wyckoff positions, normalisers. Reads a generated table with
numpy.

Setting: unique axis b and cell choice 1, hexagonal axes, origin choice 2 (International Tables, vol. A).
"""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass, field

import numpy as np

from crystallm.resources import resource_path

N_GROUPS = 230
_DENOMINATOR = 24  # translations in the table are integers in 24ths


class SpaceGroupError(ValueError):
    """A symbol or number that names no space group."""


@dataclass(frozen=True, eq=False)
class WyckoffPosition:
    """Points x = linear @ p + offset (modulo 1): the first representative of the International Tables."""

    letter: str
    index: int  # 0 for letter a
    multiplicity: int  # points in the conventional cell
    linear: np.ndarray  # (3, 3) int64, parameters stand in the slots of their own axes
    offset: np.ndarray  # (3,) float64
    orbit_rotations: np.ndarray = field(repr=False)  # (multiplicity, 3, 3) int64, one operation per point of the orbit
    orbit_translations: np.ndarray = field(repr=False)  # (multiplicity, 3) float64
    stabiliser_rotations: np.ndarray = field(repr=False)  # (n, 3, 3): operations that map this representative to itself
    stabiliser_translations: np.ndarray = field(repr=False)  # (n, 3)
    free_axes: tuple[int, ...]  # coordinates that carry a free parameter; the others are fixed or follow from these
    affine: np.ndarray = field(repr=False)  # (3, 3) float64 and
    constant: np.ndarray = field(repr=False)  # (3,): coordinates(x) = affine @ x + constant

    @property
    def n_free(self) -> int:
        return len(self.free_axes)

    def coordinates(self, frac: np.ndarray) -> np.ndarray:
        """(..., 3) -> (..., 3) in [0, 1): keeps the free coordinates, restores fixed and dependent ones exactly."""
        return wrap(np.asarray(frac, dtype=np.float64) @ self.affine.T + self.constant)

    def orbit(self, frac: np.ndarray) -> np.ndarray:
        """(3,) -> (multiplicity, 3): the equivalent points in the conventional cell, in [0, 1)."""
        return wrap(self.orbit_rotations @ self.coordinates(frac) + self.orbit_translations)

    def holds(self, frac: np.ndarray, tolerance: float = 1e-3) -> np.ndarray:
        """(..., 3) -> (...,) bool: whether points lie on this representative, within `tolerance` of a cell edge."""
        delta = frac - (frac @ self.affine.T + self.constant)
        return np.abs(delta - np.rint(delta)).max(axis=-1) <= tolerance


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Changes of description that keep the group: x' = rotations[k] x + translations[k], modulo the group itself.

    Proper operations only, so a crystal never turns into its mirror image. Along a polar axis the origin is free
    besides. For triclinic groups any unimodular change of basis serves as well; these are not listed.
    """

    rotations: np.ndarray  # (n_cosets, 3, 3) int64
    translations: np.ndarray  # (n_cosets, 3) float64
    letters: np.ndarray  # (n_cosets, n_positions) int64: index of the position that the image lies on
    operations: (
        np.ndarray
    )  # (n_cosets, n_positions) int64: operation that brings the image to that first representative
    polar: np.ndarray  # (3,) bool


@dataclass(frozen=True)
class CellTies:
    """What a crystal system fixes in its conventional cell."""

    equal_lengths: tuple[tuple[int, int], ...]  # (1, 0): b equals a
    angles: tuple[float | None, float | None, float | None]  # degrees; None where free


@dataclass(frozen=True, eq=False)
class SpaceGroup:
    number: int
    symbol: str  # short Hermann-Mauguin, e.g. "P2_1/c"
    hall_number: int
    crystal_system: str
    rotations: np.ndarray = field(repr=False)  # (n_ops, 3, 3) int64, centring included, the identity first
    translations: np.ndarray = field(repr=False)  # (n_ops, 3) float64
    wyckoff: tuple[WyckoffPosition, ...] = field(repr=False)  # a first, the general position last
    normaliser: Normaliser = field(repr=False)
    # (n_maps, n_positions): for operations outside the group, the position that each position is carried to as a whole;
    # -1 where it is not, and for positions with parameters wherever it is not the same one
    position_maps: np.ndarray = field(repr=False)
    default_origin_shift: np.ndarray = field(repr=False)  # (3,): x = x_spglib + shift, from spglib's default setting

    @functools.cached_property
    def n_centring(self) -> int:
        """Lattice points in the conventional cell: 1 (P), 2 (A, B, C, I), 3 (R), 4 (F)."""
        return int((self.rotations == np.eye(3, dtype=int)).all(axis=(1, 2)).sum())

    @property
    def ties(self) -> CellTies:
        return cell_ties(self.crystal_system)

    def position(self, letter: str) -> WyckoffPosition:
        """Raises SpaceGroupError where the group has no such letter."""
        for position in self.wyckoff:
            if position.letter == letter:
                return position
        have = "".join(p.letter for p in self.wyckoff)
        raise SpaceGroupError(f"{self.symbol} (no. {self.number}) has no Wyckoff position {letter!r}; it has {have}")


def wrap(frac: np.ndarray) -> np.ndarray:
    """Fractional coordinates to [0, 1); what lies within 1e-9 below 1 is 0."""
    frac = frac - np.floor(frac)
    return np.where(frac > 1.0 - 1e-9, 0.0, frac)


def crystal_system(number: int) -> str:
    names = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
    last = (2, 15, 74, 142, 167, 194, 230)
    return names[int(np.searchsorted(last, number))]


def cell_ties(system: str) -> CellTies:
    """Raises KeyError for a name that is no crystal system."""
    hexagonal = CellTies(((1, 0),), (90.0, 90.0, 120.0))
    return {
        "triclinic": CellTies((), (None, None, None)),
        "monoclinic": CellTies((), (90.0, None, 90.0)),
        "orthorhombic": CellTies((), (90.0, 90.0, 90.0)),
        "tetragonal": CellTies(((1, 0),), (90.0, 90.0, 90.0)),
        "trigonal": hexagonal,
        "hexagonal": hexagonal,
        "cubic": CellTies(((1, 0), (2, 0)), (90.0, 90.0, 90.0)),
    }[system]


@functools.cache
def _table() -> dict[str, np.ndarray]:
    with np.load(resource_path("resources/space_groups.npz"), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@functools.cache
def _numbers() -> dict[str, int]:
    """Number by spelling, blanks and underscores removed, lower case."""
    table = _table()
    return dict(zip(table["alias"].tolist(), table["alias_number"].tolist(), strict=True))


@functools.cache
def space_group_symbols() -> tuple[str, ...]:
    """The 230 short Hermann-Mauguin symbols, by number."""
    return tuple(_table()["symbol"].tolist())


def space_group_number(key: int | str) -> int:
    """The number of a group given as number or as symbol in any spelling or setting ("P m -3 m", "Pbnm", "R-3m:H").

    Raises SpaceGroupError with the closest symbol.
    """
    text = str(key).strip()
    if text.lstrip("+-").isdigit():
        number = int(text)
        if not 1 <= number <= N_GROUPS:
            raise SpaceGroupError(f"space group number {number} is outside 1-{N_GROUPS}")
        return number
    spelling = text.split(":")[0].translate(str.maketrans("", "", " _()'\"\t")).casefold()
    known = _numbers()
    if spelling in known:
        return known[spelling]
    symbols = space_group_symbols()
    by_spelling = {s.replace("_", "").casefold(): s for s in symbols}
    closest = difflib.get_close_matches(spelling, by_spelling, n=1, cutoff=0.0)[0]
    raise SpaceGroupError(f"{key!r} names no space group; the closest is {by_spelling[closest]!r}")


def space_group(key: int | str) -> SpaceGroup:
    """The space group of a number or of a symbol in any spelling. Raises SpaceGroupError."""
    return _space_group(space_group_number(key))


def _affine(linear: np.ndarray, offset: np.ndarray) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """Free axes, and the map that restores the other coordinates from them: x -> affine @ x + constant."""
    parameters: dict[int, tuple[np.ndarray, float]] = {}  # slot -> (row, constant): p = row @ x + constant
    axes = []
    for i in range(3):
        new = [j for j in range(3) if linear[i, j] and j not in parameters]
        if not new:
            continue
        (j,) = new  # the tables hold at most one new parameter a coordinate, with factor 1 or -1
        row, constant = np.eye(3)[i], -offset[i]
        for k, (known_row, known_constant) in parameters.items():
            row, constant = row - linear[i, k] * known_row, constant - linear[i, k] * known_constant
        parameters[j] = (linear[i, j] * row, linear[i, j] * constant)
        axes.append(i)
    affine, restored = np.zeros((3, 3)), np.array(offset, dtype=np.float64)
    for j, (row, constant) in parameters.items():
        affine += np.outer(linear[:, j], row)
        restored += linear[:, j] * constant
    return tuple(axes), affine, restored


@functools.cache
def _space_group(number: int) -> SpaceGroup:
    table = _table()
    n = number - 1

    def part(start: str, *names: str) -> list[np.ndarray]:
        begin, end = table[start][n], table[start][n + 1]
        return [table[name][begin:end] for name in names]

    rotations, translations = part("op_start", "rotations", "translations")
    rotations = rotations.astype(np.int64)
    translations = translations / _DENOMINATOR
    first, last = table["position_start"][n : n + 2]
    positions = []
    for i in range(first, last):
        orbit = table["orbit"][table["orbit_start"][i] : table["orbit_start"][i + 1]]
        stabiliser = table["stabiliser"][table["stabiliser_start"][i] : table["stabiliser_start"][i + 1]]
        linear, offset = table["linear"][i].astype(np.int64), table["offset"][i] / _DENOMINATOR
        free_axes, affine, constant = _affine(linear, offset)
        positions.append(
            WyckoffPosition(
                letter=str(table["letter"][i]),
                index=int(i - first),
                multiplicity=int(table["multiplicity"][i]),
                linear=linear,
                offset=offset,
                orbit_rotations=rotations[orbit],
                orbit_translations=translations[orbit],
                stabiliser_rotations=rotations[stabiliser],
                stabiliser_translations=translations[stabiliser],
                free_axes=free_axes,
                affine=affine,
                constant=constant,
            )
        )
    coset_m, coset_t = part("coset_start", "coset_m", "coset_t")
    letters, operations = part("image_start", "coset_letter", "coset_op")
    return SpaceGroup(
        number=number,
        symbol=str(table["symbol"][n]),
        hall_number=int(table["hall_number"][n]),
        crystal_system=crystal_system(number),
        rotations=rotations,
        translations=translations,
        wyckoff=tuple(positions),
        normaliser=Normaliser(
            rotations=coset_m.astype(np.int64),
            translations=coset_t / _DENOMINATOR,
            letters=letters.reshape(len(coset_m), -1).astype(np.int64),
            operations=operations.reshape(len(coset_m), -1).astype(np.int64),
            polar=table["polar"][n],
        ),
        position_maps=part("map_start", "maps")[0].astype(np.int64).reshape(-1, len(positions)),
        default_origin_shift=table["shift"][n] / _DENOMINATOR,
    )
