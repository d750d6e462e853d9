"""The first of many crystals that another one matches, without holding it against each: an index of one composition.

    index = MatchIndex(texts)      # canonical texts of one formula and one number of formula units
    index.find(text)               # place of the first that is the same crystal, or None

    index = CrystalIndex()         # of any formula
    index.add(text, "gen-000000")
    index.find(text)               # "gen-000000"

The verdict is pymatgen's StructureMatcher's at its defaults (ltol 0.2, angle_tol 5°, stol 0.3, volumes scaled). It can
only be yes where the lattice of the one holds three vectors that are as long, within 20 %, as the edges of the other's
Niggli cell, at its angles within 5°. That is looked at first: of Carbon-24's pairs of one group and number of atoms,
one in six passes (`bin/benchmark_scaling.py` counts them), and no match is lost, because the test is a part of the
matcher's own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from crystallm.asymmetric_unit import AsymmetricUnit, to_primitive
from crystallm.crystal import Crystal
from crystallm.matching import SAME, Reduced, fits, reduce_primitive

Floats = NDArray[np.float64]

_UNITS_LINE, _GROUP_LINE = 1, 2  # of a canonical text
FIRST_LOOK = 16  # crystals; then twice as many, and so on
_CELL_END = 9  # lines of a canonical text up to the end of the cell
_SAME_SHAPE = 1.005
_SLACK = 1e-6  # the test may let through what the matcher refuses by rounding, never the reverse
MAX_REDUCED = 4096  # Niggli cells kept in memory


@functools.lru_cache(2048)
def primitive_crystal(text: str) -> Crystal:
    unit = AsymmetricUnit.from_text(text)
    return to_primitive(unit.to_crystal(), unit.group)


@functools.lru_cache(MAX_REDUCED)
def niggli_cell(text: str) -> Reduced:
    return reduce_primitive(primitive_crystal(text))


def matches(first: str, second: str) -> bool:
    """Of two canonical texts of one formula and number of formula units: StructureMatcher's opinion."""
    return fits(niggli_cell(first), niggli_cell(second), SAME)


def composition_of(text: str) -> str:
    """The lines that state the formula and the formula units."""
    return "\n".join(text.split("\n", 2)[:_GROUP_LINE])


class MatchIndex:
    """Grows by `add`. `n_compared` counts calls of the matcher, `n_pairs` what trying one after the other takes."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts: list[str] = []
        self.n_pairs = self.n_compared = 0
        self._place: dict[str, int] = {}
        self._of_group: dict[str, list[int]] = {}  # places
        self._cells: dict[int, tuple[Floats, Floats]] = {}  # of the Niggli cell at a place, once it has been looked at
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, text: str) -> None:
        """ValueError for another composition than that of the first."""
        if self.texts and composition_of(text) != composition_of(self.texts[0]):
            raise ValueError(
                f"wanted {composition_of(self.texts[0])!r} as the first has it, got {composition_of(text)!r}"
            )
        n = len(self.texts)
        self._place.setdefault(text, n)
        self.texts.append(text)
        self._of_group.setdefault(_group_of(text), []).append(n)

    def find(self, text: str) -> int | None:
        """An equal text, else the first match of the same space group, else the first of another."""
        if text in self._place:
            return self._place[text]
        group = _group_of(text)
        same = self._of_group.get(group, [])
        if same and is_scaled_copy(text, self.texts[same[0]]):
            self.n_pairs += 1
            return same[0]
        found = self._first_match(text, same)
        if found is None and len(same) < len(self):
            others = sorted(k for name, places in self._of_group.items() if name != group for k in places)
            found = self._first_match(text, others)
        return found

    def _first_match(self, text: str, places: Sequence[int]) -> int | None:
        """Looks at a few, then at more and more of them, so that an early match costs little."""
        start, size = 0, FIRST_LOOK
        while start < len(places):
            block = places[start : start + size]
            for k in self._fitting(text, block):
                self.n_compared += 1
                if matches(text, self.texts[k]):
                    self.n_pairs += start + block.index(k) + 1
                    return k
            start, size = start + size, 2 * size
        self.n_pairs += len(places)
        return None

    def _cell(self, place: int) -> tuple[Floats, Floats]:
        """Edges (3,) of the Niggli cell of volume 1; least and largest cosines (2, 3) of its angles that match."""
        if place not in self._cells:
            reduced = niggli_cell(self.texts[place])
            lengths, angles = reduced.parameters
            tolerance = SAME.angle_tol + _SLACK
            limits = np.radians([np.minimum(angles + tolerance, 180), np.maximum(angles - tolerance, 0)])
            self._cells[place] = lengths / reduced.volume ** (1 / 3), np.cos(limits)
        return self._cells[place]

    def _fitting(self, text: str, places: Sequence[int]) -> list[int]:
        """Those of the places whose Niggli cell this crystal's lattice can imitate."""
        reduced = niggli_cell(text)
        matrix = reduced.lattice / reduced.volume ** (1 / 3)
        reach = 1 + SAME.ltol + _SLACK
        edges = np.array([self._cell(k)[0] for k in places])  # (n, 3)
        # The k-th shortest edge of a Niggli cell is the k-th successive minimum of its lattice, and three vectors that
        # imitate another cell are independent: none of its edges can be shorter than this cell's, over the tolerance.
        minima = np.sort(np.linalg.norm(matrix, axis=1))
        near = np.flatnonzero((np.sort(edges, axis=1) * reach >= minima).all(axis=1))
        if not len(near):
            return []
        vectors, lengths = lattice_vectors(matrix, float(edges[near].max()) * reach)
        units = vectors / lengths[:, None]
        low = np.searchsorted(lengths, edges[near] / reach).tolist()  # (n, 3)
        high = np.searchsorted(lengths, edges[near] * reach, side="right").tolist()
        return [
            places[k]
            for k, begin, end in zip(near.tolist(), low, high, strict=True)
            if _imitates([units[i:j] for i, j in zip(begin, end, strict=True)], *self._cell(places[k])[1])
        ]


def _group_of(text: str) -> str:
    return text.split("\n", 3)[_GROUP_LINE]


class CrystalIndex:
    """Grows by `add`: crystals of any composition, each with an id."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[MatchIndex, list[str]]] = {}  # by composition

    def add(self, text: str, record_id: str) -> None:
        index, ids = self._of.setdefault(composition_of(text), (MatchIndex(), []))
        index.add(text)
        ids.append(record_id)

    def find(self, text: str) -> str | None:
        """The id of an equal text, else of the first match of the same group, else of the first of another."""
        index, ids = self._of.get(composition_of(text), (None, []))
        place = None if index is None else index.find(text)
        return None if place is None else ids[place]


def is_scaled_copy(first: str, second: str) -> bool:
    """Of two canonical texts: equal sites in cells of one shape, at right angles or hexagonal. Such crystals match.

    The map between two such cells, their volumes made equal, changes no vector's length by more than the tolerance
    here, so the Niggli cell of one is found in the other, and in it the sites lie at the same places.
    """
    one, two = (text.split("\n", _CELL_END)[_GROUP_LINE:] for text in (first, second))  # group, cell, the rest
    if one[0] != two[0] or one[4:] != two[4:]:  # from alpha on
        return False
    if any(line.partition(" ")[2] not in ("90.0", "120.0") for line in one[4:7]):
        return False
    edges = zip(one[1:4], two[1:4], strict=True)
    ratios = [float(a.partition(" ")[2]) / float(b.partition(" ")[2]) for a, b in edges]
    return max(ratios) <= _SAME_SHAPE * min(ratios)


def lattice_vectors(matrix: Floats, max_length: float) -> tuple[Floats, Floats]:
    """All (n, 3) but 0 up to a length, shortest first, and the lengths (n,). `matrix` (3, 3): the basis as rows."""
    counts = np.floor(max_length * np.linalg.norm(np.linalg.inv(matrix), axis=0) + _SLACK).astype(int)
    steps = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in counts), indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = steps @ matrix
    lengths = np.linalg.norm(vectors, axis=1)
    kept = np.flatnonzero((lengths > 0) & (lengths <= max_length))
    kept = kept[np.argsort(lengths[kept], kind="stable")]
    return vectors[kept], lengths[kept]


def _imitates(units: list[Floats], least: Floats, largest: Floats) -> bool:
    """Whether one vector of each of three lists of unit vectors, (n, 3) each, can be had at the cosines wanted (3,)."""
    a, b, c = units
    fits = []
    for (first, second), low, high in zip(((b, c), (a, c), (a, b)), least.tolist(), largest.tolist(), strict=True):
        cosine = first @ second.T
        fits.append((cosine >= low) & (cosine <= high))
        if not fits[-1].any():
            return False
    alpha, beta, gamma = fits  # (n_b, n_c), (n_a, n_c), (n_a, n_b)
    return bool((gamma & ((beta.astype(np.float32) @ alpha.T.astype(np.float32)) > 0)).any())
