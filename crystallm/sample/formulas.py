"""Formulas and chemical systems as people type them. Knows elements only."""

from __future__ import annotations

import difflib
import re

from tokenizer.elements import ELEMENT_RANK

_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_PART = re.compile(r"\s+|[A-Z][a-z]?|[0-9]+(?:\.[0-9]*)?|.", re.DOTALL)


class PromptError(ValueError):
    """A prompt that cannot be read, or that no structure can satisfy."""


def parse_formula(text: str) -> dict[str, int]:
    """Counts by element: "Na Cl", "Fe2O3", "Ca(OH)2", "Fe₂O₃". Raises PromptError with the position, from 1 on."""
    text = text.translate(_SUBSCRIPTS)
    if len(lines := text.strip().splitlines()) > 1:
        raise PromptError(f"{text!r}: got {len(lines)} lines, wanted a formula; prompts, one a line, belong in a file")
    stack: list[dict[str, int]] = [{}]  # one for each bracket that is open
    opened: list[int] = []
    last: dict[str, int] | None = None  # what a number would multiply
    position = 0
    while position < len(text):
        match = _PART.match(text, position)
        assert match is not None
        part = match.group()
        if "A" <= part[0] <= "Z":
            _known_element(part, position, text)
            last = {part: 1}
            _add(stack[-1], last)
        elif "0" <= part[0] <= "9":
            if last is None or not part.isdigit() or int(part) == 0:
                raise PromptError(
                    f"{text!r}, position {position + 1}: got {part!r}, wanted {_wanted_number(last, part)}"
                )
            _add(stack[-1], last, int(part) - 1)
            last = None
        elif part in "([{":
            stack.append({})
            opened.append(position)
            last = None
        elif part in ")]}" and opened:
            opened.pop()
            last = stack.pop()
            _add(stack[-1], last)
        elif not part.isspace():
            raise PromptError(
                f"{text!r}, position {position + 1}: got {part!r}, wanted {_wanted(part, text, position)}"
            )
        position = match.end()
    if opened:
        raise PromptError(f"{text!r}, position {opened[-1] + 1}: this bracket is not closed")
    if not stack[0]:
        raise PromptError(f"{text!r}: no element in it, wanted a formula like NaCl")
    return stack[0]


def _add(total: dict[str, int], part: dict[str, int], times: int = 1) -> None:
    for symbol, count in part.items():
        total[symbol] = total.get(symbol, 0) + count * times


def _wanted_number(last: dict[str, int] | None, part: str) -> str:
    if last is None:
        return "an element before a number"
    return "a count of at least 1" if part.isdigit() else "a whole number: sites are full in the crystals written here"


def _wanted(part: str, text: str, position: int) -> str:
    if part.islower():
        symbol = closest_element(text[position : position + 2].capitalize())
        return f"an element symbol, which begins with a capital; closest is {symbol!r}"
    return "elements, whole numbers and brackets"


def _known_element(symbol: str, position: int, text: str) -> None:
    if symbol not in ELEMENT_RANK:
        closest = closest_element(symbol)
        raise PromptError(f"{text!r}, position {position + 1}: {symbol!r} is no element; closest is {closest!r}")


def closest_element(text: str) -> str:
    return difflib.get_close_matches(text, ELEMENT_RANK, n=1, cutoff=0.0)[0]


def parse_chemical_system(text: str) -> tuple[int, ...]:
    """ "Li-Fe-O" -> ranks of the elements, in formula order. Raises PromptError."""
    ranks = []
    for match in re.finditer(r"[^-]+|(?<=-)(?=-|$)", text):
        symbol = match.group().strip()
        if not re.fullmatch(r"[A-Z][a-z]?", symbol):
            raise PromptError(
                f"{text!r}, position {match.start() + 1}: got {symbol!r}, wanted one element: a chemical system is "
                "elements joined by hyphens, without counts"
            )
        _known_element(symbol, match.start() + len(match.group()) - len(match.group().lstrip()), text)
        if ELEMENT_RANK[symbol] in ranks:
            raise PromptError(f"{text!r}, position {match.start() + 1}: {symbol} stands in it twice")
        ranks.append(ELEMENT_RANK[symbol])
    return tuple(sorted(ranks))
