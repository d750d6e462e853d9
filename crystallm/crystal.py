"""A crystal as three arrays: the type that travels from parser to report. Needs numpy only: sampling imports it.

Everything here is in Å and degrees; fractional coordinates are in [0, 1).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenizer.elements import ATOMIC_NUMBERS, ELEMENT_RANK, SYMBOLS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Standard atomic weights (IUPAC), g/mol; of elements without one, the mass number of the longest-lived isotope.
_ATOMIC_MASSES = """
    1.008 4.002602 6.94 9.0121831 10.81 12.011 14.007 15.999 18.998403 20.1797 22.989769 24.305 26.981538 28.085
    30.973762 32.06 35.45 39.948 39.0983 40.078 44.955908 47.867 50.9415 51.9961 54.938043 55.845 58.933194 58.6934
    63.546 65.38 69.723 72.63 74.921595 78.971 79.904 83.798 85.4678 87.62 88.90584 91.224 92.90637 95.95 98 101.07
    102.90549 106.42 107.8682 112.414 114.818 118.71 121.76 127.6 126.90447 131.293 132.905452 137.327 138.90547
    140.116 140.90766 144.242 145 150.36 151.964 157.25 158.925354 162.5 164.930328 167.259 168.934218 173.045
    174.9668 178.49 180.94788 183.84 186.207 190.23 192.217 195.084 196.96657 200.592 204.38 207.2 208.9804 209 210
    222 223 226 227 232.0377 231.03588 238.02891 237 244 243 247 247 251 252 257 258 259 262 267 268 269 270 269 278
    281 282 285 286 289 290 293 294 294
"""
_RATIO_TOLERANCE = 1e-3
_GRAMS_PER_CM3 = 1.66053906660  # one atomic mass unit per Å^3


@functools.cache
def atomic_masses() -> Floats:
    """(119,) g/mol by atomic number; nan at 0."""
    return np.array([np.nan, *map(float, _ATOMIC_MASSES.split())])


def reduce_composition(composition: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """{"O": 6, "Fe": 4} -> ({"Fe": 2, "O": 3}, 2): divided by the greatest common divisor, in formula order."""
    divisor = math.gcd(*composition.values())
    ordered = sorted(composition, key=ELEMENT_RANK.__getitem__)
    return {symbol: composition[symbol] // divisor for symbol in ordered}, divisor


def formula_text(composition: Mapping[str, int]) -> str:
    return "".join(symbol + (str(count) if count > 1 else "") for symbol, count in composition.items())


def same_proportions(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    """{"Na": 4, "Cl": 4} and {"Na": 1, "Cl": 1}; to a thousandth, as sums are written with few decimals."""
    if first.keys() != second.keys():
        return False
    ratios = [first[symbol] / second[symbol] for symbol in first]
    return max(ratios) - min(ratios) <= _RATIO_TOLERANCE * max(ratios)


def lattice_from_parameters(a: float, b: float, c: float, alpha: float, beta: float, gamma: float) -> Floats:
    """(3, 3), Å: c along z and a in the xz plane, as pymatgen lays a cell. ValueError where no such cell exists."""
    lengths, angles = (a, b, c), (alpha, beta, gamma)
    if not all(math.isfinite(value) and value > 0 for value in lengths):
        raise ValueError(f"cell lengths must be positive, got a, b, c = {a}, {b}, {c} Å")
    if not all(math.isfinite(value) and 0 < value < 180 for value in angles):
        raise ValueError(f"cell angles must lie between 0 and 180, got alpha, beta, gamma = {alpha}, {beta}, {gamma}")
    # cos(radians(90)) is 6e-17, and such dust would turn up in every orthogonal cell.
    cos_a, cos_b, cos_g = (0.0 if angle == 90 else math.cos(math.radians(angle)) for angle in angles)
    sin_b = math.sin(math.radians(beta))
    unit_volume_squared = 1 + 2 * cos_a * cos_b * cos_g - cos_a**2 - cos_b**2 - cos_g**2
    if unit_volume_squared < 1e-9:
        raise ValueError(f"no cell has the angles alpha, beta, gamma = {alpha}, {beta}, {gamma}: its volume is 0")
    return np.array(
        [
            [a * sin_b, 0.0, a * cos_b],
            [b * (cos_g - cos_a * cos_b) / sin_b, b * math.sqrt(unit_volume_squared) / sin_b, b * cos_a],
            [0.0, 0.0, c],
        ]
    )


def wrap(frac_coords: ArrayLike) -> Floats:
    """Into [0, 1). -1e-17 % 1.0 is exactly 1.0, which is set to 0."""
    wrapped = np.asarray(frac_coords, dtype=np.float64) % 1.0
    wrapped[wrapped == 1.0] = 0.0
    return wrapped


def right_handed(lattice: ArrayLike, frac_coords: ArrayLike) -> Floats:
    """(n, 3): coordinates along -a, -b, -c where a, b, c are left-handed.

    Lengths and angles, which do not tell the two apart, would stand for the mirror image with the coordinates as given.
    """
    frac_coords = np.asarray(frac_coords, dtype=np.float64)
    return wrap(-frac_coords) if _determinant(np.asarray(lattice, dtype=np.float64)) < 0 else frac_coords


@dataclass(frozen=True, slots=True, eq=False)
class Crystal:
    """An ordered crystal: every site is one whole atom. The arrays are read-only copies."""

    lattice: Floats  # (3, 3) float64, rows a, b, c, Å
    frac_coords: Floats  # (n_atoms, 3) float64, in [0, 1)
    atomic_numbers: Ints  # (n_atoms,) int64, Z

    def __post_init__(self) -> None:
        lattice = np.array(self.lattice, dtype=np.float64)
        frac_coords = np.asarray(self.frac_coords, dtype=np.float64)
        atomic_numbers = np.array(self.atomic_numbers)
        n_atoms = len(atomic_numbers) if atomic_numbers.ndim else 0
        if lattice.shape != (3, 3) or atomic_numbers.ndim != 1 or frac_coords.shape != (n_atoms, 3) or not n_atoms:
            raise ValueError(
                "a crystal has a (3, 3) lattice, (n, 3) frac_coords and (n,) atomic_numbers with n >= 1, "
                f"got {lattice.shape}, {frac_coords.shape} and {atomic_numbers.shape}"
            )
        if not np.isfinite(lattice).all() or not _determinant(lattice):
            raise ValueError(f"a lattice is finite and spans a volume, got {lattice.tolist()}")
        if not np.isfinite(frac_coords).all():
            row = int(np.flatnonzero(~np.isfinite(frac_coords).all(axis=1))[0])
            raise ValueError(f"frac_coords must be finite, got {frac_coords[row].tolist()} at atom {row}")
        if atomic_numbers.dtype.kind not in "iu" or atomic_numbers.min() < 1 or atomic_numbers.max() > 118:
            raise ValueError(f"atomic_numbers are whole numbers from 1 to 118, got {atomic_numbers.tolist()}")
        arrays = {
            "lattice": lattice,
            "frac_coords": wrap(frac_coords),
            "atomic_numbers": atomic_numbers.astype(np.int64, copy=False),
        }
        for name, array in arrays.items():
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @classmethod
    def from_parameters(
        cls, cell: Iterable[float], frac_coords: ArrayLike, elements: Sequence[str] | Sequence[int] | Ints
    ) -> Crystal:
        """From a, b, c (Å), alpha, beta, gamma (degrees); the elements as symbols or as atomic numbers."""
        numbers = [_atomic_number(element) if isinstance(element, str) else int(element) for element in elements]
        return cls(lattice_from_parameters(*cell), np.asarray(frac_coords, dtype=np.float64), np.array(numbers))

    @property
    def n_atoms(self) -> int:
        return len(self.atomic_numbers)

    @property
    def cart_coords(self) -> Floats:
        """(n_atoms, 3), Å"""
        return self.frac_coords @ self.lattice

    @property
    def cell(self) -> Floats:
        """(6,): a, b, c in Å, alpha, beta, gamma in degrees."""
        return np.array([*_lengths(self.lattice), *_angles(self.lattice)])

    @property
    def volume_ang3(self) -> float:
        return abs(_determinant(self.lattice))

    @property
    def density_g_per_cm3(self) -> float:
        return float(atomic_masses()[self.atomic_numbers].sum()) * _GRAMS_PER_CM3 / self.volume_ang3

    @property
    def symbols(self) -> list[str]:
        return [SYMBOLS[z - 1] for z in self.atomic_numbers.tolist()]

    @property
    def composition(self) -> dict[str, int]:
        """Atoms in this cell by element, in formula order."""
        reduced, formula_units = reduce_composition(self._counts())
        return {symbol: count * formula_units for symbol, count in reduced.items()}

    @property
    def reduced_formula(self) -> str:
        """By greatest common divisor: O for O2 molecules, NaO for Na2O2."""
        return formula_text(reduce_composition(self._counts())[0])

    @property
    def formula_units(self) -> int:
        """How many reduced formulas this cell holds."""
        return math.gcd(*self._counts().values())

    def _counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for symbol in self.symbols:
            counts[symbol] = counts.get(symbol, 0) + 1
        return counts


def _atomic_number(symbol: str) -> int:
    if symbol not in ATOMIC_NUMBERS:
        raise ValueError(f"{symbol!r} is no element symbol; wanted H, He, ..., Og")
    return ATOMIC_NUMBERS[symbol]


def _determinant(m: Floats) -> float:
    # np.linalg.det calls LAPACK, ten times slower on one 3x3.
    (a, b, c), (d, e, f), (g, h, i) = m.tolist()
    return float(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))


def _lengths(lattice: Floats) -> list[float]:
    return [math.sqrt(sum(x * x for x in row)) for row in lattice.tolist()]


def _angles(lattice: Floats) -> list[float]:
    rows, lengths = lattice.tolist(), _lengths(lattice)
    angles = []
    for i, j in ((1, 2), (0, 2), (0, 1)):
        cosine = sum(x * y for x, y in zip(rows[i], rows[j], strict=True)) / (lengths[i] * lengths[j])
        angles.append(math.degrees(math.acos(max(-1.0, min(1.0, cosine)))))
    return angles
