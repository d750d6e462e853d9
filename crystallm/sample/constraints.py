"""What the next token may be: the syntax of the canonical CIF and, on top of it, crystallography.

A constraint follows one sequence: `choice()` says what may come next, `advance(token)` takes what came. It knows no
model and draws nothing, so any sampler, search or export can use it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from crystallm.crystal import lattice_from_parameters
from crystallm.geometry import min_allowed_distance, reduce_lattice
from crystallm.sample.cells import CELL_NAMES, NO_CELL, Cell, CellRules, cell_rules, complete_cell, cosine
from crystallm.sample.composition import Formula, Request, possible_groups, possible_units
from crystallm.sample.contacts import Contacts, Orbit, orbit
from crystallm.sample.occupation import Occupation, occupation
from crystallm.sample.rules import Rules
from crystallm.sample.supergroups import all_maps, can_escape, surviving
from tokenizer.elements import ATOMIC_NUMBERS, ELEMENT_ORDER

FORCED = -1  # slot of a token that the grammar leaves no choice about


class DeadEnd(Exception):
    """No token can follow: what is written so far leads to no crystal."""


class Choice(NamedTuple):
    """What may come next: one token, or those tokens of a slot that the mask lets through."""

    slot: int  # the slot in whose softmax the token is scored; FORCED: the grammar allows this one only
    token: int  # the only one allowed, or -1
    mask: np.ndarray | None  # (tokens of the slot,) bool; None: all of them


class Constraint(Protocol):
    finished: bool

    def choice(self) -> Choice:
        """Raises DeadEnd where nothing can follow."""
        ...

    def advance(self, token: int) -> None: ...


class Free:
    """Any token of the vocabulary, until the text ends with one of the given sequences."""

    def __init__(self, slot: int, ends: tuple[tuple[int, ...], ...]):
        self.slot, self.ends = slot, ends
        self.longest = max(map(len, ends))
        self.tail: tuple[int, ...] = ()
        self.finished = False

    def choice(self) -> Choice:
        return Choice(self.slot, -1, None)

    def advance(self, token: int) -> None:
        self.tail = (*self.tail, token)[-self.longest :]
        self.finished = any(self.tail[-len(end) :] == end for end in self.ends)


class Syntax:
    """The grammar, and the formula units and space group that were asked for."""

    def __init__(self, rules: Rules, request: Request | None = None):
        self.rules, self.request = rules, request or Request()
        self.state = rules.grammar.start
        self.finished = False
        self.counts: tuple[int, ...] = ()  # of the formula
        self.formula_units = 0  # in the primitive cell
        self.formula = Formula(self.request, len(ELEMENT_ORDER))
        self._places = _places(type(self), rules)

    def choice(self) -> Choice:
        only, choose, _, slot, axis = self._places[self.state]
        return only or choose(self, slot, axis)

    def advance(self, token: int) -> None:
        """Raises GrammarError for a token that the syntax does not allow here."""
        grammar = self.rules.grammar
        _, _, read, _, axis = self._places[self.state]
        self.state = grammar.step(self.state, token)
        if read is not None:
            read(self, token, axis)
        self.finished = self.state == grammar.final

    def _masked(self, slot: int, mask: np.ndarray, why: str) -> Choice:
        """Raises DeadEnd with the reason if the mask lets nothing through."""
        n_allowed = int(np.count_nonzero(mask))
        if n_allowed == 0:
            raise DeadEnd(why)
        if n_allowed == 1:
            return Choice(slot, int(self.rules.grammar.slot_tokens[slot][int(mask.argmax())]), None)
        return Choice(slot, -1, None if n_allowed == len(mask) else mask)

    # What is written, as numbers

    def _read_formula(self, token: int, axis: int) -> None:
        if token in self.rules.rank_of:  # asked first: the element H and the count 3 are single bytes, but never equal
            self.formula.add_element(self.rules.rank_of[token])
        elif token in self.rules.integer_of:
            self.formula.set_count(self.rules.integer_of[token])
        else:
            self.counts = tuple(self.formula.counts)

    def _read_units(self, token: int, axis: int) -> None:
        self.formula_units = self.rules.integer_of[token]

    def _choose_any(self, slot: int, axis: int) -> Choice:
        return Choice(slot, -1, None)

    # What was asked for

    def _choose_units(self, slot: int, axis: int) -> Choice:
        request, numbers = self.request, self.rules.unit_counts
        if request.formula_units is not None:
            return self._masked(slot, numbers == request.formula_units, "no token for these formula units")
        if request.given_units is not None:
            return self._masked(slot, request.given_units % numbers == 0, "no token for these formula units")
        return Choice(slot, -1, None)

    def _choose_group(self, slot: int, axis: int) -> Choice:
        if self.request.space_groups is None:
            return Choice(slot, -1, None)
        mask = np.isin(self.rules.groups, self.request.space_groups)
        return self._masked(slot, mask, "no token for this space group")

    # By kind of place, see `Rules.places`; each takes the slot or token, and the axis or angle where there are three.
    _choosers: ClassVar[dict[str, Callable[..., Choice]]] = {
        "formula_units": _choose_units,
        "space_group": _choose_group,
    }
    _readers: ClassVar[dict[str, Callable[..., None]]] = {
        "formula": _read_formula,
        "formula_units": _read_units,
    }


class _Place(NamedTuple):
    """What happens in a state of the grammar."""

    only: Choice | None  # where the grammar allows one token
    choose: Callable[..., Choice]
    read: Callable[..., None] | None
    slot: int
    axis: int


def _places(constraint: type[Syntax], rules: Rules) -> list[_Place]:
    """By state. Looked up once, not once a token: that took a fifth of a constraint's time."""
    kept = _PLACES.setdefault(rules, {})
    if constraint in kept:
        return kept[constraint]
    places = []
    for state, (kind, axis) in enumerate(rules.places):
        token, slot = rules.forced_token[state], rules.slot_of_state[state]
        only = Choice(FORCED, token, None) if token >= 0 else None
        choose, read = constraint._choosers.get(kind, Syntax._choose_any), constraint._readers.get(kind)
        places.append(_Place(only, choose, read, slot, axis))
    kept[constraint] = places
    return places


_PLACES: weakref.WeakKeyDictionary[Rules, dict[type[Syntax], list[_Place]]] = weakref.WeakKeyDictionary()


class Full(Syntax):
    """The syntax and crystallography: what ends has the formula, the sites and the cell that it states.

    Elements in order and counts without a common divisor; a space group, and for every site a Wyckoff letter, from
    which the formula can be completed; the ties of the cell; fixed and dependent coordinates; no two sites too close;
    no choice of letters that has a higher symmetry than the group.
    """

    def __init__(self, rules: Rules, request: Request | None = None, min_distance_ang: float | None = None):
        """`min_distance_ang`: one for all pairs; by default each pair's `min_allowed_distance`, as in the checks."""
        super().__init__(rules, request)
        self.min_distance_ang = min_distance_ang
        # Set with the space group
        self.number = 0
        self.occupation: Occupation
        self.cell: CellRules
        self.asked_cell: Cell = NO_CELL  # what was asked of it, and what its ties make of that
        self.arrangements: list[tuple[int, ...]] = []  # letters, site by site, of those asked for and still possible
        self.allowed_ang = np.zeros((0, 0))  # (n_elements, n_elements) between centres
        self.shortest_ang = 0.0  # no lattice vector may be shorter
        self.length_tokens: list[int] = []
        self.lengths = np.zeros(3)  # Å, as far as they are chosen
        self.angles: list[float] = []  # degrees
        self.cosines: list[float] = []
        # Set with the cell
        self.contacts: Contacts
        self.left: list[int] = []  # atoms of the conventional cell still to be placed, by element of the formula
        self.element = 0  # of the current site
        self.first_letter = 0  # letters of one element do not descend
        self.used: tuple[int, ...] = ()  # letters of this element so far, each once
        self.maps = 0  # operations outside the group that the elements before it have not ruled out
        self.n_sites = 0  # placed so far
        # The current site
        self.site: Orbit
        self.letter = 0
        self.frac = np.zeros(3)  # the free coordinates, as far as they are chosen

    # Formula, formula units, space group

    def _choose_formula(self, slot: int, axis: int) -> Choice:
        rules, name = self.rules, self.rules.grammar.slot_names[slot]
        mask = self.formula.may_add(rules.slot_ranks[name])
        if name == "formula_next":
            mask |= self.formula.may_count(rules.slot_counts[name])
        if name != "formula" and self.formula.may_end():
            mask |= rules.slot_ends[name]
        return self._masked(slot, mask, "no formula can be completed from its first elements")

    def _choose_units(self, slot: int, axis: int) -> Choice:
        request = self.request
        if request.space_groups is None and request.conventional_units is None:
            return super()._choose_units(slot, axis)  # P1 holds any number
        possible = possible_units(self.counts, request, len(self.rules.unit_counts))
        return self._masked(slot, possible, "no number of formula units fits the space group")

    def _choose_group(self, slot: int, axis: int) -> Choice:
        possible = possible_groups(self.counts, self.formula_units, self.request)
        return self._masked(slot, possible[self.rules.groups - 1], "no space group holds these formula units")

    def _read_group(self, token: int, axis: int) -> None:
        self.number = self.rules.group_of[token]
        self.occupation, self.cell = occupation(self.number), cell_rules(self.number)
        self.asked_cell = complete_cell(self.number, self.request.cell) or NO_CELL
        self.arrangements = [one.letters for one in self.request.arrangements or () if one.counts == self.counts]
        self.left = [count * self.formula_units * self.occupation.n_centring for count in self.counts]
        self.maps = all_maps(self.number)
        numbers = np.array([ATOMIC_NUMBERS[ELEMENT_ORDER[rank]] for rank in self.formula.ranks])
        if self.min_distance_ang is None:
            self.allowed_ang = min_allowed_distance(numbers[:, None], numbers)
        else:
            self.allowed_ang = np.full((len(numbers), len(numbers)), self.min_distance_ang)
        self.shortest_ang = float(self.allowed_ang.diagonal().max())

    # Cell

    def _choose_length(self, slot: int, axis: int) -> Choice:
        if axis in self.cell.tied_to:
            return Choice(slot, self.length_tokens[self.cell.tied_to[axis]], None)
        least = self.cell.min_length(axis, self.lengths, self.shortest_ang)
        mask, asked = self.rules.lengths >= least, self.asked_cell[axis]
        if asked is None:
            return self._masked(slot, mask, "no cell length keeps the lattice points apart")
        why = f"{'abc'[axis]} = {asked:.2f} Å is asked for, and lattice points keep apart from {least:.2f} Å on"
        return self._masked(slot, mask & (self.rules.lengths == asked), why)

    def _read_length(self, token: int, axis: int) -> None:
        self.length_tokens.append(token)
        self.lengths[axis] = self.rules.length_of[token]

    def _choose_angle(self, slot: int, axis: int) -> Choice:
        fixed = self.cell.angles[axis]
        if fixed is not None:
            return Choice(slot, self.rules.angle_token[fixed], None)
        mask = self.cell.angle_mask(axis, self.rules.cosines, self.lengths, self.cosines, self.shortest_ang)
        asked = self.asked_cell[3 + axis]
        if asked is None:
            return self._masked(slot, mask, "no cell angle leaves a volume and keeps the lattice points apart")
        why = (
            f"{CELL_NAMES[3 + axis]} = {asked:.1f}° is asked for, which leaves no volume or a lattice vector too short"
        )
        return self._masked(slot, mask & (self.rules.angles == asked), why)

    def _read_angle(self, token: int, axis: int) -> None:
        self.angles.append(self.rules.angle_of[token])
        self.cosines.append(cosine(self.angles[axis]))
        if axis == 2:
            lattice = lattice_from_parameters(*self.lengths.tolist(), *self.angles)
            self.contacts = Contacts(self.number, lattice, self.allowed_ang, self.rules.n_values)

    # Sites

    def _choose_element(self, slot: int, axis: int) -> Choice:
        """Elements come in the order of the formula, so what is left decides."""
        if self.element == len(self.left):
            return Choice(slot, self.rules.end_token, None)
        return Choice(slot, self.rules.site_token[self.formula.ranks[self.element]], None)

    def _choose_letter(self, slot: int, axis: int) -> Choice:
        if self.cell.skewed and len(self.contacts.points) == 0:
            shortest = float(np.linalg.norm(reduce_lattice(self.contacts.lattice)[0][0]))
            if shortest < self.shortest_ang:
                raise DeadEnd(f"the lattice has a vector of {shortest:.2f} Å, wanted {self.shortest_ang:.2f} Å")
        own, *later = self.contacts.blocked(self.element, self.left[self.element])
        others = functools.reduce(int.__and__, later, -1)
        letters = self.occupation.letters(tuple(self.left[self.element :]), self.first_letter, own, others)
        if self.request.arrangements is not None:
            asked = {letters[self.n_sites] for letters in self.arrangements}
            letters = tuple(letter for letter in letters if letter in asked)
        mask = np.zeros(len(self.rules.letter_tokens), dtype=bool)
        mask[list(letters)] = True
        higher = [letter for letter in letters if not self._can_escape(letter, own, others)]
        mask[higher] = False
        if higher and len(higher) == len(letters):
            raise DeadEnd(f"any site of {self._symbol()} brings about a higher symmetry than the space group's")
        return self._masked(slot, mask, f"no Wyckoff position is left for {self._symbol()}")

    def _can_escape(self, letter: int, own: int, others: int) -> bool:
        """Whether the structure can be completed without supergroup after a site on this position."""
        if surviving(self.number, self.maps, self.used, False) == 0:
            return True
        if self.occupation.is_point[letter]:
            own, others = own | 1 << letter, others | 1 << letter
        left = (self.left[self.element] - self.occupation.multiplicity[letter], *self.left[self.element + 1 :])
        used = tuple(sorted({*self.used, letter}))
        return can_escape(self.number, left, letter, own, others, used, self.maps)

    def _read_letter(self, token: int, axis: int) -> None:
        self.letter = self.rules.letter_of[token]
        self.arrangements = [one for one in self.arrangements if one[self.n_sites] == self.letter]
        self.n_sites += 1
        self.site = orbit(self.number, self.letter)
        self.frac = np.zeros(3)

    def _choose_coordinate(self, slot: int, axis: int) -> Choice:
        if axis not in self.site.position.free_axes:
            value = round(self.site.coordinate(axis, self.frac) * self.rules.n_values) % self.rules.n_values
            return Choice(slot, self.rules.coordinate_tokens[value], None)
        mask = self.contacts.coordinate_mask(self.site, axis, self.frac, self.element)
        return self._masked(slot, mask, f"no place for {self._symbol()} at {self.site.position.letter}")

    def _read_coordinate(self, token: int, axis: int) -> None:
        if axis in self.site.position.free_axes:
            self.frac[axis] = self.rules.coordinate_of[token] / self.rules.n_values
        if axis == 2:
            self.contacts.place(self.site, self.frac, self.element)
            self.left[self.element] -= self.site.position.multiplicity
            self.first_letter, self.used = self.letter, tuple(sorted({*self.used, self.letter}))
            if self.left[self.element] == 0:
                self.maps = surviving(self.number, self.maps, self.used, True)
                self.element, self.first_letter, self.used = self.element + 1, 0, ()

    def _symbol(self) -> str:
        return ELEMENT_ORDER[self.formula.ranks[self.element]]

    _choosers: ClassVar[dict[str, Callable[..., Choice]]] = {
        "formula": _choose_formula,
        "formula_units": _choose_units,
        "space_group": _choose_group,
        "length": _choose_length,
        "angle": _choose_angle,
        "site_element": _choose_element,
        "wyckoff": _choose_letter,
        "coordinate": _choose_coordinate,
    }
    _readers: ClassVar[dict[str, Callable[..., None]]] = {
        **Syntax._readers,
        "space_group": _read_group,
        "length": _read_length,
        "angle": _read_angle,
        "wyckoff": _read_letter,
        "coordinate": _read_coordinate,
    }
