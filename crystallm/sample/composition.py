"""Which elements, counts, formula units and space groups can still become a structure. Knows integers only."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from crystallm.sample.cells import NO_CELL, Cell, groups_of_cell
from crystallm.sample.occupation import centrings, feasible_groups, occupation
from crystallm.sample.supergroups import can_escape

# With space group and formula units both given but no formula, counts have to be searched for. The general position,
# of at most 48 atoms in a primitive cell, bounds what has to be tried to find any formula at all.
MAX_COUNT_ALLOWED = 192
MAX_COUNT_TRIED = 48


class Arrangement(NamedTuple):
    """One way to put a formula on Wyckoff positions."""

    counts: tuple[int, ...]  # of the reduced formula, in its order
    letters: tuple[int, ...]  # indices, site by site as they are written


@dataclass(frozen=True)
class Request:
    """What a structure has to be, besides beginning with the prompt's tokens. None: anything."""

    elements: tuple[int, ...] | None = None  # exactly these, as ranks in ELEMENT_ORDER, ascending
    space_groups: tuple[int, ...] | None = None  # one of these
    formula_units: int | None = None  # in the primitive cell
    conventional_units: int | None = None  # in the conventional cell; asked only together with a formula
    given_units: int | None = None  # in some cell, primitive or not: the primitive cell's number divides it
    is_open: bool = False  # the prompt states no formula
    # Not in the repr, which seeds random numbers: what is asked without them is drawn as it was before there were any.
    cell: Cell = field(default=NO_CELL, repr=False)  # numbers of the conventional cell
    arrangements: tuple[Arrangement, ...] | None = field(default=None, repr=False)  # one of these


def possible_groups(counts: tuple[int, ...], formula_units: int, request: Request) -> np.ndarray:
    """(230,) bool: space groups, by number - 1, that can hold these formula units and are what was asked for."""
    possible = feasible_groups(counts, formula_units)
    if request.conventional_units is not None:
        possible = possible & (centrings() * formula_units == request.conventional_units)
    if request.space_groups is not None:
        asked = np.zeros(len(possible), dtype=bool)
        asked[[number - 1 for number in request.space_groups if _holds(number, counts, formula_units)]] = True
        possible = possible & asked
    if request.cell != NO_CELL:
        possible = possible & groups_of_cell(request.cell)
    return possible


@functools.lru_cache(maxsize=4096)
def possible_units(counts: tuple[int, ...], request: Request, largest: int) -> np.ndarray:
    """(largest,) bool: formula units in the primitive cell, from 1 on, for which some space group is left."""
    candidates = np.array(candidate_units(request, largest), dtype=np.int64)
    possible = np.zeros(largest, dtype=bool)
    if request.space_groups is None or request.conventional_units is not None:
        possible[candidates - 1] = [possible_groups(counts, units, request).any() for units in candidates.tolist()]
    else:
        held = np.any([_units_held(number, counts, largest) for number in request.space_groups], axis=0)
        possible[candidates - 1] = held[candidates - 1]
    return possible


@functools.lru_cache(maxsize=4096)
def _units_held(number: int, counts: tuple[int, ...], largest: int) -> np.ndarray:
    """(largest,) bool: formula units, from 1 on, that a group holds.

    Where n fit, n and a period more do, on general positions. Besides the general one there are at most seven
    multiplicities, and sites of one that together hold a general position's atoms can be exchanged for it: what fits at
    all, modulo the period, fits within ten.
    """
    group = occupation(number)
    period = group.multiplicity[-1] // group.n_centring
    held: list[bool] = []
    for units in range(1, largest + 1):
        fits_before = units > period and held[units - period - 1]
        held.append(fits_before or (units <= 10 * period and _holds(number, counts, units)))
    return np.array(held)


def candidate_units(request: Request, largest: int) -> list[int]:
    """Formula units in the primitive cell that the request itself allows, whatever the group."""
    if request.formula_units is not None:
        return [request.formula_units] if request.formula_units <= largest else []
    if request.given_units is not None:
        return [units for units in range(1, min(request.given_units, largest) + 1) if request.given_units % units == 0]
    if request.conventional_units is not None:
        found = {request.conventional_units // n for n in (1, 2, 3, 4) if request.conventional_units % n == 0}
        return sorted(units for units in found if units <= largest)
    return list(range(1, largest + 1))


def _has_room(number: int, counts: tuple[int, ...], units: int) -> bool:
    return occupation(number).feasible(_atoms(number, counts, units))


def _holds(number: int, counts: tuple[int, ...], units: int) -> bool:
    """Whether sites of this group, and of no supergroup of it, can be these formula units."""
    return _has_room(number, counts, units) and can_escape(number, _atoms(number, counts, units))


def _atoms(number: int, counts: tuple[int, ...], units: int) -> tuple[int, ...]:
    """In the conventional cell."""
    return tuple(count * units * occupation(number).n_centring for count in counts)


class Formula:
    """A formula as it is written: elements by rank, ascending, counts without a common divisor."""

    def __init__(self, request: Request, n_elements: int):
        self.request, self.n_elements = request, n_elements
        self.ranks: list[int] = []
        self.counts: list[int] = []

    def add_element(self, rank: int) -> None:
        self.ranks.append(rank)
        self.counts.append(1)

    def set_count(self, count: int) -> None:
        self.counts[-1] = count

    def may_add(self, ranks: np.ndarray) -> np.ndarray:
        """Which elements may come next; False where the rank is negative."""
        if not _extendable(tuple(self.counts), self._elements_left(), self.request):
            return np.zeros(len(ranks), dtype=bool)
        if self.request.elements is not None:
            return ranks == self.request.elements[len(self.ranks)]
        return ranks > (self.ranks[-1] if self.ranks else -1)

    def may_count(self, numbers: np.ndarray) -> np.ndarray:
        """Which counts the last element may have; False for 0."""
        before, left = tuple(self.counts[:-1]), self._elements_left()
        if not _is_restricted(self.request):
            if left is None or left > 0:
                return numbers > 0
            return (numbers > 0) & (np.gcd(numbers, math.gcd(*before)) == 1)
        searched = (n if n <= MAX_COUNT_ALLOWED else 0 for n in numbers.tolist())
        return np.array([n > 0 and _completable((*before, n), left, self.request) for n in searched])

    def may_end(self) -> bool:
        return _complete(tuple(self.counts), self._elements_left(), self.request)

    def _elements_left(self) -> int | None:
        """How many more there have to be; None: as many as one likes; 0: no more."""
        if self.request.elements is not None:
            return len(self.request.elements) - len(self.ranks)
        return 0 if self.ranks and self.ranks[-1] == self.n_elements - 1 else None


def _is_restricted(request: Request) -> bool:
    """Whether counts have to be searched for. With one of the two left open, it can fit them: P1, or enough units."""
    if request.arrangements is not None:
        return True
    return request.is_open and request.space_groups is not None and request.formula_units is not None


@functools.lru_cache(maxsize=100_000)
def _complete(counts: tuple[int, ...], left: int | None, request: Request) -> bool:
    if request.arrangements is not None:
        return not left and any(one.counts == counts for one in request.arrangements)
    return not left and math.gcd(*counts) == 1 and _fits(counts, request, True)


def _completable(counts: tuple[int, ...], left: int | None, request: Request) -> bool:
    return _complete(counts, left, request) or _extendable(counts, left, request)


@functools.lru_cache(maxsize=100_000)
def _extendable(counts: tuple[int, ...], left: int | None, request: Request) -> bool:
    """Whether one more element, or as many as have to come, can make it a whole formula."""
    if request.arrangements is not None:
        n, of_request = len(counts), (one.counts for one in request.arrangements)
        begun = [whole for whole in of_request if whole[:n] == counts and len(whole) > n]
        return any(left is None or len(whole) == n + left for whole in begun)
    if left == 0 or not _fits(counts, request, False):
        return False
    if not _is_restricted(request):
        return True
    longer = [(*counts, n) for n in range(1, MAX_COUNT_TRIED + 1)]
    if left is not None:
        return any(_completable(more, left - 1, request) for more in longer)
    # As many as one likes: one more, or two, as in a group where no count alone is without a divisor.
    return any(_complete(more, 0, request) for more in longer) or any(_extendable(more, 1, request) for more in longer)


def _fits(counts: tuple[int, ...], request: Request, is_whole: bool) -> bool:
    """Whether the groups asked for hold these elements. Only of a whole formula is it asked that no supergroup does."""
    if not counts or not _is_restricted(request):
        return True
    assert request.space_groups is not None and request.formula_units is not None
    test = _holds if is_whole else _has_room
    return any(test(number, counts, request.formula_units) for number in request.space_groups)
