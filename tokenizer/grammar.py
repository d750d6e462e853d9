"""What may follow what in a canonical CIF: a finite automaton over token ids.

It knows the syntax only. That a formula's elements are ordered, that a cubic cell has one length, or that the sites
add up to the formula is crystallography, and not known here.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from tokenizer.cif_tokenizer import CIFTokenizer

State = tuple[str, str, dict[str, str]]  # name, slot, symbol -> name of the next state


class GrammarError(ValueError):
    """A token that the grammar does not allow: `position` in the ids, `token`, and the names of what was `expected`."""

    def __init__(
        self, message: str, position: int | None = None, token: int = -1, expected: tuple[str, ...] = ()
    ):  # defaults, so that a worker process can send it back
        super().__init__(message)
        self.position, self.token, self.expected = position, token, expected


class Grammar:
    """The syntax of the canonical CIF over one vocabulary.

    A *state* is a place in the text. A *slot* is a set of tokens to choose from: states that allow the same tokens
    share it (the three cell lengths are the slot "length"), and a state that allows one token only has none (-1).
    """

    def __init__(self, tokenizer: CIFTokenizer):
        if tokenizer.vocabulary.kind != "lexemes":
            kind = tokenizer.vocabulary.kind
            raise ValueError(f"a grammar needs a vocabulary of lexemes; {tokenizer.name!r} is of kind {kind!r}")
        self.tokenizer = tokenizer
        symbols = _symbols(tokenizer)
        states = _states(tokenizer)
        index = {name: i for i, (name, _, _) in enumerate(states)}
        self.state_names = [name for name, _, _ in states]
        self.n_states = len(states)
        self.start = index["start"]
        self.final = index["end"]
        self._expected = [tuple(edges) for _, _, edges in states]
        self._allowed = [_join([symbols[symbol] for symbol in edges]) for _, _, edges in states]
        self.forced_token = np.array([ids[0] if len(ids) == 1 else -1 for ids in self._allowed], dtype=np.int32)

        self.slot_names: list[str] = []
        self.slot_tokens: list[np.ndarray] = []  # per slot the allowed ids, (n,) int32
        self.slot_of_state = np.full(self.n_states, -1, dtype=np.int16)
        for state, (_, slot, _) in enumerate(states):
            if len(self._allowed[state]) > 1:
                if slot not in self.slot_names:
                    self.slot_names.append(slot)
                    self.slot_tokens.append(self._allowed[state])
                self.slot_of_state[state] = self.slot_names.index(slot)

        # Tokens that belong to the same symbols behave alike: one column of the transition table each.
        membership = np.zeros(tokenizer.vocab_size, dtype=np.int64)  # bit k: the token belongs to symbol k
        bits = {symbol: np.int64(1 << k) for k, symbol in enumerate(symbols)}
        for symbol, ids in symbols.items():
            membership[ids] |= bits[symbol]
        kinds, self._column_of_token = np.unique(membership, return_inverse=True)  # (n_columns,), (vocab_size,)
        self._dead = self.n_states
        table = np.full((self.n_states + 1, len(kinds)), self._dead)  # state, column -> next state
        for state, (_, _, edges) in enumerate(states):
            for symbol, next_name in edges.items():
                taken = (kinds & bits[symbol]) != 0  # (n_columns,)
                assert (table[state, taken] == self._dead).all(), f"{states[state]} is ambiguous"
                table[state, taken] = index[next_name]
        self._rows: list[list[int]] = table.tolist()
        self._rows_many = [*self._rows]
        self._rows_many[self.final] = self._rows[self.start]

    def __reduce__(self) -> tuple[Any, ...]:
        return Grammar, (self.tokenizer,)

    def is_final(self, state: int) -> bool:
        return state == self.final

    def allowed(self, state: int) -> np.ndarray:
        """(n,) int32 ids, by class and then by value; one id is forced, none follows the end."""
        return self._allowed[state]

    def step(self, state: int, token: int) -> int:
        """The state after `token`."""
        if 0 <= token < len(self._column_of_token):
            following = self._rows[state][self._column_of_token[token]]
            if following != self._dead:
                return following
        self._refuse(state, token, position=None)

    def states(self, ids: np.ndarray | list[int], many: bool = False) -> np.ndarray:
        """(n,) int16: the state in which each token was chosen. With `many`, structures may follow one another."""
        return self._run(ids, many)[:-1]

    def state_after(self, ids: np.ndarray | list[int], many: bool = False) -> int:
        """The state that a text, or the beginning of one, leaves."""
        return int(self._run(ids, many)[-1])

    def slots(self, ids: np.ndarray | list[int], many: bool = False) -> np.ndarray:
        """(n,) int16: the slot from which each token was chosen, -1 where there was no choice."""
        return self.slot_of_state[self.states(ids, many)]

    def _run(self, ids: np.ndarray | list[int], many: bool) -> np.ndarray:
        """(n + 1,) int16 states: before each token, and after the last."""
        array = np.asarray(ids, dtype=np.int64)  # (n,)
        if array.ndim != 1:
            raise ValueError(f"ids must be one row of integers, got shape {array.shape}")
        outside = np.flatnonzero((array < 0) | (array >= len(self._column_of_token)))
        inside = array[: outside[0]] if outside.size else array
        rows = self._rows_many if many else self._rows
        visited = [state := self.start]
        for column in self._column_of_token[inside].tolist():
            state = rows[state][column]
            visited.append(state)
        states = np.array(visited, dtype=np.int16)
        if many:
            states[:-1][states[:-1] == self.final] = self.start
        stuck = int(np.argmax(states == self._dead)) - 1 if state == self._dead else len(inside)
        if stuck < len(array):
            self._refuse(int(states[stuck]), int(array[stuck]), stuck)
        return states

    def _refuse(self, state: int, token: int, position: int | None) -> NoReturn:
        known = 0 <= token < self.tokenizer.vocab_size
        text = repr(self.tokenizer.token(token)) if known else "no id of the vocabulary"
        where = f"token {token}" if position is None else f"position {position}: token {token}"
        wanted = " or ".join(self._describe(symbol) for symbol in self._expected[state]) or "nothing more"
        message = f"{where} ({text}) in state {self.state_names[state]!r}: expected {wanted}"
        raise GrammarError(message, position, token, self._expected[state])

    def _describe(self, symbol: str) -> str:
        ids = _symbols(self.tokenizer)[symbol]
        first = repr(self.tokenizer.token(int(ids[0])))
        return first if len(ids) == 1 else f"{symbol} ({first} … {self.tokenizer.token(int(ids[-1]))!r})"


def _symbols(tokenizer: CIFTokenizer) -> dict[str, np.ndarray]:
    """Symbol name -> ids: the terminals of the grammar."""
    vocabulary = tokenizer.vocabulary
    symbols = {name: ids for name, ids in vocabulary.classes.items() if name not in ("byte", "pad")}
    integers = symbols["integer"]
    symbols["count"] = integers[vocabulary.values[integers] >= 2]  # a count of 1 is not written
    for axis, id_ in zip("abc", symbols["length_keyword"], strict=True):
        symbols[f"length_keyword_{axis}"] = id_[None]
    for angle, id_ in zip(("alpha", "beta", "gamma"), symbols["angle_keyword"], strict=True):
        symbols[f"angle_keyword_{angle}"] = id_[None]
    for id_ in symbols["property_keyword"]:
        symbols[f"property_keyword_{_property_name(tokenizer, id_)}"] = id_[None]
    return symbols


def _property_name(tokenizer: CIFTokenizer, id_: int) -> str:
    return tokenizer.token(id_).strip("# ")


def _states(tokenizer: CIFTokenizer) -> list[State]:
    names = [_property_name(tokenizer, id_) for id_ in tokenizer.vocabulary.classes["property_keyword"]]
    states: list[State] = []
    for i, slot in enumerate(["start", *(f"start_after_{name}" for name in names)]):
        edges = {f"property_keyword_{name}": f"property_value_{name}" for name in names[i:]}
        states.append((slot, slot, {**edges, "data": "formula"}))
    for name in names:
        states.append((f"property_value_{name}", "property_value", {"property_value": f"start_after_{name}"}))
    element, units = {"formula_element": "formula_next"}, {"units_keyword": "formula_units"}
    states += [
        ("formula", "formula", element),
        ("formula_next", "formula_next", {**element, "count": "formula_after_count", **units}),
        ("formula_after_count", "formula_after_count", {**element, **units}),
        ("formula_units", "formula_units", {"integer": "space_group_keyword"}),
        ("space_group_keyword", "", {"space_group_keyword": "space_group"}),
        ("space_group", "space_group", {"space_group": "length_keyword_a"}),
    ]
    cell = [("length", axis) for axis in "abc"] + [("angle", angle) for angle in ("alpha", "beta", "gamma")]
    following = [f"{kind}_keyword_{axis}" for kind, axis in cell[1:]] + ["loop_header"]
    for (kind, axis), after in zip(cell, following, strict=True):
        keyword = f"{kind}_keyword_{axis}"
        states.append((keyword, "", {keyword: f"{kind}_{axis}"}))
        states.append((f"{kind}_{axis}", kind, {kind: after}))
    site = {"site_element": "wyckoff"}
    states += [
        ("loop_header", "", {"loop_header": "site_element"}),
        ("site_element", "site_element", site),
        ("wyckoff", "wyckoff", {"wyckoff": "coordinate_x"}),
        ("coordinate_x", "coordinate", {"coordinate": "coordinate_y"}),
        ("coordinate_y", "coordinate", {"coordinate": "coordinate_z"}),
        ("coordinate_z", "coordinate", {"coordinate": "site_element_or_end"}),
        ("site_element_or_end", "site_element_or_end", {**site, "end": "end"}),
        ("end", "", {}),
    ]
    return states


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32)
