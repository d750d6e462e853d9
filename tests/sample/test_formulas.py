from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Composition

from crystallm.sample.formulas import PromptError, parse_chemical_system, parse_formula
from tokenizer.elements import ELEMENT_ORDER, SYMBOLS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NaCl", {"Na": 1, "Cl": 1}),
        ("Na Cl", {"Na": 1, "Cl": 1}),
        (" Na  Cl\n", {"Na": 1, "Cl": 1}),
        ("Fe2O3", {"Fe": 2, "O": 3}),
        ("Fe 2 O 3", {"Fe": 2, "O": 3}),
        ("Fe₂O₃", {"Fe": 2, "O": 3}),
        ("Na4Cl4", {"Na": 4, "Cl": 4}),
        ("Ca(OH)2", {"Ca": 1, "O": 2, "H": 2}),
        ("[Co(NH3)6]Cl3", {"Co": 1, "N": 6, "H": 18, "Cl": 3}),
        ("CoCO3", {"Co": 1, "C": 1, "O": 3}),
        ("CHCl3", {"C": 1, "H": 1, "Cl": 3}),
    ],
)
def test_formulas(text: str, expected: dict[str, int]) -> None:
    assert parse_formula(text) == expected


@given(
    st.lists(st.tuples(st.sampled_from(SYMBOLS[:94]), st.integers(1, 99)), min_size=1, max_size=6), st.integers(1, 9)
)
def test_as_pymatgen_reads_them(parts: list[tuple[str, int]], times: int) -> None:
    text = "".join(f"{symbol}{count}" for symbol, count in parts[1:])
    text = f"{parts[0][0]}{parts[0][1]}({text}){times}" if text else f"{parts[0][0]}{parts[0][1]}"
    expected = {symbol: int(count) for symbol, count in Composition(text).get_el_amt_dict().items()}
    assert parse_formula(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NaXl", r"'NaXl', position 3: 'Xl' is no element; closest is '(Al|Tl|Xe|Cl)'"),
        ("nacl", r"position 1: got 'n', wanted an element symbol, which begins with a capital; closest is 'Na'"),
        ("Nacl", r"position 3: got 'c'.*closest is 'Cl'"),
        ("NaCl0.5", r"position 5: got '0.5', wanted a whole number"),
        ("Na0Cl", r"position 3: got '0', wanted a count of at least 1"),
        ("2Na", r"position 1: got '2', wanted an element before a number"),
        ("Na22 2", r"position 6: got '2', wanted an element before"),
        ("Na(Cl", r"position 3: this bracket is not closed"),
        ("NaCl)", r"position 5: got '\)'"),
        ("Na+", r"position 3: got '\+'"),
        ("NaCl\nKBr", r"^'NaCl\\nKBr': got 2 lines, wanted a formula; prompts, one a line, belong in a file$"),
        ("", "no element"),
        ("()", "no element"),
    ],
)
def test_bad_formulas(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse_formula(text)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(PromptError):
        assert all(count >= 1 for count in parse_formula(text).values())


def test_chemical_systems() -> None:
    for text in ("Li-Fe-O", "O - Li-Fe"):
        assert [ELEMENT_ORDER[rank] for rank in parse_chemical_system(text)] == ["Li", "Fe", "O"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Li-Fe2-O", "position 4: got 'Fe2', wanted one element"),
        ("Li-Xx", "position 4: 'Xx' is no element"),
        ("Li-O-Li", "position 6: Li stands in it twice"),
        ("Li-", "position 4: got '', wanted one element"),
    ],
)
def test_bad_chemical_systems(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse_chemical_system(text)
