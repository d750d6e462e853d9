"""The constant tables against pymatgen and spglib."""

import itertools
import warnings

import pytest

from tokenizer.elements import ATOMIC_NUMBERS, ELEMENT_ORDER, ELEMENT_RANK, SYMBOLS
from tokenizer.space_group_symbols import SPACE_GROUP_SYMBOLS


def test_symbols_are_pymatgens():
    pymatgen = pytest.importorskip("pymatgen.core")
    assert [pymatgen.Element.from_Z(number).symbol for number in range(1, 119)] == list(SYMBOLS)
    assert ATOMIC_NUMBERS["H"] == 1 and ATOMIC_NUMBERS["Og"] == 118


def test_every_pair_is_ordered_as_pymatgen_writes_it():
    pymatgen = pytest.importorskip("pymatgen.core")
    assert sorted(ELEMENT_ORDER) == sorted(SYMBOLS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns of each missing electronegativity
        for first, second in itertools.pairwise(ELEMENT_ORDER):
            assert pymatgen.Composition({second: 3, first: 2}).reduced_formula == f"{first}2{second}3"


def test_order_by_hand():
    formulas = (["Na", "Cl"], ["Ca", "Ti", "O"], ["Fe", "O"], ["K", "Rb"], ["Kr", "F"], ["O", "F", "He"])
    for elements in formulas:
        assert sorted(elements, key=ELEMENT_RANK.__getitem__) == elements


@pytest.mark.filterwarnings("ignore::DeprecationWarning:spglib")
def test_space_group_symbols_are_spglibs():
    spglib = pytest.importorskip("spglib")
    short: dict[int, str] = {}
    for hall_number in range(1, 531):
        group = spglib.get_spacegroup_type(hall_number)
        short.setdefault(group.number, group.international_short)  # the first setting of a group is the standard one
    assert [short[number] for number in range(1, 231)] == list(SPACE_GROUP_SYMBOLS)
