"""The syntax of CrystaLLM's text, token by token, and what of it follows from what is written already.

Forced: keywords, atom types, formulas, formula units, labels, the ties and angles that the group fixes, the group's
number and the volume. Open: the space group (one that holds the formula), lengths and free angles, element and
multiplicity of each site (such that the formula can be completed), coordinates. Whether the coordinates lie on a
position of the stated multiplicity is left to the checks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import ClassVar

import numpy as np

from crystallm.crystal import formula_text, lattice_from_parameters
from crystallm.sample.composition import Request
from crystallm.sample.constraints import Choice, DeadEnd, Free
from crystallm.sample.crystallm_text import (
    BLOCK_HEADER,
    GROUP_LINE,
    OPERATORS,
    SITE_HEADER,
    atom_types,
    structural_formula,
)
from crystallm.sample.occupation import occupation
from crystallm.space_groups import N_GROUPS, space_group, space_group_number
from tokenizer import CIFTokenizer, GrammarError, Vocabulary
from tokenizer.elements import ELEMENT_ORDER, ELEMENT_RANK

SLOT = 0  # the only one: all tokens, among which these models were trained to choose
MAX_DIGITS = 3  # of a count in the formula
N_DECIMALS = 4
MAX_ENCODED = 4096  # texts: those of every sample stay, those of one cell go
CELL_TAGS = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
# What may stand before the point. 1.0000 and -0.0000 come of rounding.
LENGTHS_ANG = frozenset(map(str, range(1, 1000)))
ANGLES_DEG = frozenset(map(str, range(10, 170)))
COORDINATES = frozenset(("0", "-0", "1"))

Step = int | tuple[str, str]  # a token that is forced, or (what is chosen, of which kind it is)


class Words:
    """The vocabulary's tokens as the syntax reckons with them. Built once, shared by all."""

    def __init__(self, tokenizer: CIFTokenizer):
        classes = tokenizer.vocabulary.classes
        self.tokenizer, self.size = tokenizer, tokenizer.vocab_size
        self.character_of = {t: tokenizer.token(t) for name in ("digit", "symbol") for t in classes[name].tolist()}
        self.id_of = {character: t for t, character in self.character_of.items()}
        self.symbol_of = {t: tokenizer.token(t) for t in classes["element"].tolist()}
        self.element_id = {symbol: t for t, symbol in self.symbol_of.items()}
        group_symbols = {t: tokenizer.token(t).removesuffix("_sg") for t in classes["space_group"].tolist()}
        self.group_of = {t: space_group_number(symbol) for t, symbol in group_symbols.items()}
        self.group_symbol = {self.group_of[t]: symbol for t, symbol in group_symbols.items()}
        self.known = np.ones(self.size, dtype=bool)  # all but <unk>, which is never drawn
        self.known[classes["unknown"]] = False

    @functools.lru_cache(MAX_ENCODED)  # noqa: B019  (`words_of` keeps a few)
    def encode(self, text: str) -> list[int]:
        """ValueError for what has no token."""
        return self.tokenizer.encode(text)

    def ids(self, characters: Collection[str]) -> list[int]:
        return [self.id_of[character] for character in characters]


@functools.lru_cache(maxsize=8)
def words_of(vocabulary: Vocabulary) -> Words:
    return Words(CIFTokenizer(vocabulary, on_unknown="raise"))


class FreeText(Free):
    """Any token but `<unk>`, until two newlines follow each other."""

    def __init__(self, words: Words):
        newline = words.id_of["\n"]
        super().__init__(SLOT, ((newline, newline),))
        self.mask = words.known

    def choice(self) -> Choice:
        return Choice(SLOT, -1, self.mask)


class CrystaLLMSyntax:
    """A Constraint. What is to come is a stack of forced tokens and choices; what is read pushes what follows of it."""

    def __init__(self, words: Words, request: Request | None = None):
        self.words, self.request = words, request or Request()
        self.finished = False
        self.problem = ""  # why nothing can follow
        self.composition: dict[str, int] = {}  # atoms in the conventional cell, in the order of data_
        self.space_group_number = 0
        self.cell: list[str] = []  # lengths and angles, as written
        self.left: dict[str, int] = {}  # atoms still to be placed, by element
        self.taken = 0  # bit mask of the Wyckoff positions without parameters that are occupied
        self.n_sites = 0
        self.element = ""  # the current one, in the formula or of the site
        self.positions: dict[int, int] = {}  # of the current site: multiplicity -> index of a position
        self.number = ""  # as far as the current one is written
        self.todo: list[Step] = []  # the next one last
        self._push("data_", ("element", "formula"))

    def _push(self, *steps: str | tuple[str, str]) -> None:
        """These come next, in this order: texts, whose tokens are forced, and choices."""
        for step in reversed(steps):
            if isinstance(step, str):
                self.todo.extend(reversed(self.words.encode(step)))
            else:
                self.todo.append(step)

    def choice(self) -> Choice:
        if self.problem:
            raise DeadEnd(self.problem)
        step = self.todo[-1]
        if not isinstance(step, int) and step[0] == "known" and step[1].startswith(self.number):
            return Choice(SLOT, self.words.id_of[step[1][len(self.number)]], None)
        allowed = self.allowed()
        if not allowed:
            raise DeadEnd(self._why_nothing())
        if len(allowed) == 1:
            return Choice(SLOT, allowed[0], None)
        mask = np.zeros(self.words.size, dtype=bool)
        mask[allowed] = True
        return Choice(SLOT, -1, mask)

    def allowed(self) -> list[int]:
        """Tokens that a text may go on with. Wider than `choice` where a number is known: a prompt may misstate it."""
        step = self.todo[-1]
        return [step] if isinstance(step, int) else self._choosers[step[0]](self, step[1])

    def advance(self, token: int) -> None:
        """Raises GrammarError for a token that the syntax does not allow here."""
        allowed = self.allowed()
        if token not in allowed:
            shown = ", ".join(repr(self.words.tokenizer.token(t)) for t in allowed[:8])
            wanted = (shown + (", …" if len(allowed) > 8 else "")) or self._why_nothing()
            raise GrammarError(f"got {self.words.tokenizer.token(token)!r}, expected {wanted}")
        step = self.todo.pop()
        if not isinstance(step, int):
            self._readers[step[0]](self, token, step[1])
        self.finished = not self.todo and not self.problem

    def _why_nothing(self) -> str:
        if self.composition and not self.space_group_number:
            held = "any space group" if self.request.space_groups is None else "the space group asked for"
            return f"no conventional cell of {held} holds {formula_text(self.composition)}"
        return f"nothing can follow {self.number!r}"

    # The formula, and the atom types that follow from it

    def _choose_element(self, kind: str) -> list[int]:
        if kind == "site":
            symbols: Collection[str] = [symbol for symbol, n in self.left.items() if n]
            return [self.words.element_id[symbol] for symbol in symbols] or [self.words.id_of["\n"]]
        asked = self.request.elements
        if asked is None:
            symbols = self.words.element_id.keys() - self.composition.keys()
        else:  # in their order, so that none is left behind
            symbols = [ELEMENT_ORDER[rank] for rank in asked[len(self.composition) :][:1]]
        return [self.words.element_id[symbol] for symbol in symbols]

    def _read_element(self, token: int, kind: str) -> None:
        self.number = ""
        self.element = self.words.symbol_of.get(token, "")
        if kind == "formula":
            self.composition[self.element] = 0
            self._push(("count", ""))
        elif self.element:  # or else the newline that ends the text
            self.positions = self._possible_positions()
            place = ("number", "coordinate")
            label = f" {self.element}{self.n_sites} "
            self._push(label, ("number", "multiplicity"), place, " ", place, " ", place, " 1", ("occupancy", ""))
            self.n_sites += 1

    def _choose_count(self, kind: str) -> list[int]:
        if not self.number:
            return self.words.ids("123456789")
        allowed = self._choose_element("formula")
        if len(self.number) < MAX_DIGITS:
            allowed += self.words.ids("0123456789")
        if self.request.elements is None or len(self.composition) == len(self.request.elements):
            allowed.append(self.words.id_of["\n"])
        return allowed

    def _read_count(self, token: int, kind: str) -> None:
        if token in self.words.symbol_of:
            self._read_element(token, "formula")
        elif token != self.words.id_of["\n"]:
            self.number += self.words.character_of[token]
            self.composition[self.element] = int(self.number)
            self._push(("count", ""))
        else:
            self.number = ""
            steps: list[str | tuple[str, str]] = []
            for symbol in sorted(self.composition, key=ELEMENT_RANK.__getitem__):
                values = zip(atom_types()[symbol], (" ", " ", "\n"), strict=True)
                steps += [f"{symbol} ", *(("known", value + end) for value, end in values)]
            self._push(BLOCK_HEADER, *steps, GROUP_LINE, ("space_group", ""))

    # Numbers

    def _choose_known(self, kind: str) -> list[int]:
        """A number that follows from what is written; its last character is what stands behind it."""
        allowed = self.words.ids("0123456789")
        if self.number and "." not in self.number:
            allowed += self.words.ids(".")
        elif "." in self.number and self.number[-1] != ".":
            allowed += self.words.ids(kind[-1])
        return allowed

    def _read_known(self, token: int, kind: str) -> None:
        character = self.words.character_of[token]
        if character == kind[-1]:
            self.number = ""
        else:
            self.number += character
            self._push(("known", kind))

    def _choose_number(self, kind: str) -> list[int]:
        wholes = {"length": LENGTHS_ANG, "angle": ANGLES_DEG, "coordinate": COORDINATES}.get(kind)
        if wholes is None:
            wholes = frozenset(map(str, self.positions))
        whole, point, _ = self.number.partition(".")
        if point:  # nothing lies beyond 1
            return self.words.ids("0" if whole == "1" and kind == "coordinate" else "0123456789")
        return self.words.ids(_continuations(wholes, " " if kind == "multiplicity" else ".")[whole])

    def _read_number(self, token: int, kind: str) -> None:
        character = self.words.character_of[token]
        if character != " ":
            self.number += character
        if character == " " or len(self.number.partition(".")[2]) == N_DECIMALS:
            written, self.number = self.number, ""
            self._read_whole_number(written, kind)
        else:
            self._push(("number", kind))

    def _read_whole_number(self, written: str, kind: str) -> None:
        if kind in ("length", "angle"):
            self.cell.append(written)
            self._push_rest_of_cell()
        elif kind == "multiplicity":
            position = self.positions[int(written)]
            self.left[self.element] -= int(written)
            if occupation(self.space_group_number).is_point[position]:
                self.taken |= 1 << position

    # Space group and cell

    def _choose_group(self, kind: str) -> list[int]:
        held, asked = groups_that_hold(tuple(sorted(self.composition.values()))), self.request.space_groups
        return [t for t, n in self.words.group_of.items() if held[n - 1] and (asked is None or n in asked)]

    def _read_group(self, token: int, kind: str) -> None:
        self.space_group_number = self.words.group_of[token]
        self.left = dict(self.composition)
        self._push_rest_of_cell()

    def _push_rest_of_cell(self) -> None:
        """Up to the next length or angle that the crystal system leaves open."""
        ties = space_group(self.space_group_number).ties
        equal, text = dict(ties.equal_lengths), ""
        while (n := len(self.cell)) < len(CELL_TAGS):
            text += f"\n_cell_{CELL_TAGS[n]} "
            angle = ties.angles[n - 3] if n >= 3 else None
            if n in equal:
                self.cell.append(self.cell[equal[n]])
            elif angle is not None:
                self.cell.append(f"{angle:.{N_DECIMALS}f}")
            else:
                self._push(text, ("number", "length" if n < 3 else "angle"))
                return
            text += self.cell[-1]
        try:
            lattice = lattice_from_parameters(*map(float, self.cell))
        except ValueError as err:
            self.problem = str(err)
            return
        structural, units = structural_formula(self.composition)
        atoms = " ".join(f"{symbol}{count}" for symbol, count in self.composition.items())
        quote = "'" if len(self.composition) > 1 else ""
        self._push(
            f"{text}\n_symmetry_Int_Tables_number {self.space_group_number}\n"
            f"_chemical_formula_structural {structural}\n_chemical_formula_sum {quote}{atoms}{quote}\n_cell_volume ",
            ("known", f"{abs(np.linalg.det(lattice)):.{N_DECIMALS}f}\n"),
            f"_cell_formula_units_Z {max(units, 1)}\n{OPERATORS}{SITE_HEADER}",
            ("element", "site"),
        )

    # Sites

    def _possible_positions(self) -> dict[int, int]:
        """By multiplicity, a position for the next site of the current element that lets all others be placed.

        Of several with one multiplicity it is one with parameters, which can be taken again, or else any that is left.
        """
        group = occupation(self.space_group_number)
        others = tuple(n for symbol, n in self.left.items() if symbol != self.element)
        found: dict[int, int] = {}
        for position in sorted(range(len(group.multiplicity)), key=group.is_point.__getitem__):
            multiplicity, bit = group.multiplicity[position], group.is_point[position] << position
            left = self.left[self.element] - multiplicity
            if multiplicity in found or left < 0 or self.taken & bit:
                continue
            if group.feasible((left, *others), 0, self.taken | bit, self.taken | bit):
                found[multiplicity] = position
        return found

    def _choose_occupancy(self, kind: str) -> list[int]:
        """1 or 1.0: pymatgen's versions differ."""
        return self.words.ids("\n.")

    def _read_occupancy(self, token: int, kind: str) -> None:
        self._push(*(["0\n"] if self.words.character_of[token] == "." else []), ("element", "site"))

    _choosers: ClassVar[dict[str, Callable[[CrystaLLMSyntax, str], list[int]]]] = {
        "element": _choose_element,
        "count": _choose_count,
        "known": _choose_known,
        "number": _choose_number,
        "space_group": _choose_group,
        "occupancy": _choose_occupancy,
    }
    _readers: ClassVar[dict[str, Callable[[CrystaLLMSyntax, int, str], None]]] = {
        "element": _read_element,
        "count": _read_count,
        "known": _read_known,
        "number": _read_number,
        "space_group": _read_group,
        "occupancy": _read_occupancy,
    }


@functools.lru_cache(maxsize=1024)
def _continuations(wholes: frozenset[str], end: str) -> dict[str, str]:
    """What may follow each beginning of these numbers; `end` where one is complete."""
    following: dict[str, str] = {}
    for whole in sorted(wholes):
        for k, character in enumerate(whole + end):
            seen = following.setdefault(whole[:k], "")
            if character not in seen:
                following[whole[:k]] = seen + character
    return following


@functools.lru_cache(maxsize=10_000)
def groups_that_hold(counts: tuple[int, ...]) -> np.ndarray:
    """(230,) bool: space groups, by number - 1, whose positions can hold these counts in the conventional cell."""
    return np.array([occupation(number).feasible(counts) for number in range(1, N_GROUPS + 1)])
