"""The search for Wyckoff positions against plain enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystallm.sample.composition import Request, possible_units
from crystallm.sample.occupation import MAX_KEPT, Occupation, centrings, feasible_groups, occupation
from crystallm.sample.supergroups import can_escape, surviving
from crystallm.space_groups import space_group


def ways(number: int, counts: tuple[int, ...], closed: frozenset[int] = frozenset()) -> Iterator[tuple[int, ...]]:
    """Every choice of letters for the first element that leaves the others a way to be placed, one by one."""
    positions = space_group(number).wyckoff

    def place(left: int, start: int, used: frozenset[int]) -> Iterator[tuple[tuple[int, ...], frozenset[int]]]:
        if left == 0:
            yield (), used
        for i in range(start, len(positions)):
            if positions[i].multiplicity <= left and i not in used:
                point = positions[i].n_free == 0
                for rest, after in place(left - positions[i].multiplicity, i, used | {i} if point else used):
                    yield (i, *rest), after

    for letters, used in place(counts[0], 0, closed):
        if len(counts) == 1 or next(ways(number, counts[1:], used), None) is not None:
            yield letters


GROUPS = (1, 2, 10, 14, 47, 62, 136, 139, 166, 191, 194, 198, 216, 221, 225, 227, 229, 230)


@pytest.mark.parametrize("number", GROUPS)
def test_first_letters_equal_those_of_all_ways(number: int) -> None:
    group = occupation(number)
    smallest = min(group.multiplicity)
    for factors in itertools.product((1, 2, 3), repeat=2):
        counts = tuple(factor * smallest for factor in factors)
        expected = {letters[0] for letters in ways(number, counts)}
        assert set(group.letters(counts)) == expected, counts
        assert group.feasible(counts) == bool(expected)


def test_a_letter_follows_only_where_the_rest_can_be_placed() -> None:
    group = occupation(225)  # Fm-3m: a, b of 4, c of 8, d and e of 24
    assert group.letters((4, 4)) == (0, 1)
    assert group.letters((4,), start=0, own=0b1) == (1,), "a is taken"
    assert group.letters((4, 4), own=0b1, others=0b1) == (), "one point for two elements"
    assert group.letters((4, 4), own=0b1, others=0b0) == (1,), "only the second element can have a"
    assert group.letters((8,), start=1) == (2,), "b alone leaves 4 atoms over, and letters do not descend"


def test_what_is_kept_does_not_grow_for_ever() -> None:
    for kept in (Occupation.letters, Occupation._free, Occupation._rest_fits, can_escape, surviving):
        assert kept.cache_info().maxsize == MAX_KEPT  # type: ignore[attr-defined]


def test_points_are_shared_by_all_elements() -> None:
    # One atom of each element: Pm-3m has two points of multiplicity 1, P1 as many places as one likes.
    possible = feasible_groups((1,) * 6, 1)
    assert possible[0] and not possible[220]
    assert feasible_groups((1, 1), 1)[220] and not feasible_groups((1, 1, 1), 1)[220]


def test_formula_units_count_the_primitive_cell() -> None:
    assert feasible_groups((1, 1), 1)[224], "NaCl: 4 and 4 atoms in the conventional cell of Fm-3m"
    assert not feasible_groups((1, 1), 3)[224]
    assert feasible_groups((2, 3), 2)[166], "Fe2O3 in R-3c"


def test_centrings_are_those_of_the_symbols() -> None:
    by_letter = {"P": 1, "A": 2, "B": 2, "C": 2, "I": 2, "R": 3, "F": 4}
    assert centrings().tolist() == [by_letter[space_group(n).symbol[0]] for n in range(1, 231)]


def test_general_position_alone_holds_any_multiple() -> None:
    for number in range(1, 231):
        group = occupation(number)
        general = group.multiplicity[-1]
        assert group.feasible((general, 2 * general, 3 * general)), number


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 6))
@settings(max_examples=20)
def test_the_table_of_all_groups_is_that_of_each(formula: list[int], units: int) -> None:
    """It is computed once for groups whose primitive cells hold the same."""
    groups = [occupation(number) for number in range(1, 231)]
    expected = [group.feasible(tuple(n * units * group.n_centring for n in formula)) for group in groups]
    assert feasible_groups(formula, units).tolist() == expected


@pytest.mark.parametrize("number", [14, 47, 136, 166, 194, 205, 221, 225, 227, 230])
def test_formula_units_beyond_ten_periods_repeat(number: int) -> None:
    for formula in ((1,), (1, 1), (2, 3), (1, 1, 3), (1, 2, 4), (3, 2, 12)):
        held = possible_units(formula, Request(space_groups=(number,)), 999)
        group = occupation(number)
        for units in [*range(1, 30), *range(480, 999, 37)]:
            atoms = tuple(n * units * group.n_centring for n in formula)
            assert held[units - 1] == (group.feasible(atoms) and can_escape(number, atoms)), (formula, units)
