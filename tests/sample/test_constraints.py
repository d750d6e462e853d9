"""Whatever is drawn, what ends is a crystal with the formula, sites and cell that it states."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pymatgen.io.cif import CifFile, CifParser

from crystallm.asymmetric_unit import AsymmetricUnit
from crystallm.canonical import canonicalize
from crystallm.cif import parse_cif, write_cif
from crystallm.geometry import distance_violations
from crystallm.sample.composition import Request, possible_units
from crystallm.sample.constraints import DeadEnd, Free, Full, Syntax
from crystallm.sample.prompts import begin, parse_prompt
from crystallm.sample.rules import Rules
from crystallm.space_groups import space_group


def walk(constraint: Syntax, rules: Rules, rng: np.random.Generator, limit: int = 4000) -> list[int] | str:
    """Tokens drawn evenly from what is allowed, or why there is no end. Cells of 4 to 14 Å: larger ones never fill."""
    ids: list[int] = []
    while not constraint.finished:
        try:
            slot, token, mask = constraint.choice()
        except DeadEnd as err:
            return str(err)
        if token < 0:
            tokens = rules.grammar.slot_tokens[slot]
            tokens = tokens if mask is None else tokens[mask]
            if rules.grammar.slot_names[slot] == "length":
                wanted = [t for t in tokens.tolist() if 4 < rules.length_of[t] < 14]
                tokens = np.array(wanted or tokens)
            token = int(rng.choice(tokens))
        constraint.advance(token)
        ids.append(token)
        assert len(ids) < limit
    return ids


def check(text: str, formula: str) -> None:
    """Against the space group's own tables, the distances of geometry.py, and pymatgen."""
    lines = text.splitlines()
    assert lines[0] == f"data_{formula}"
    units = int(lines[1].split()[1])
    group = space_group(lines[2].split()[1])
    cell = [float(line.split()[1]) for line in lines[3:9]]
    for later, first in group.ties.equal_lengths:
        assert cell[later] == cell[first]
    for angle, fixed in zip(cell[3:], group.ties.angles, strict=True):
        assert fixed is None or angle == fixed
    assert group.crystal_system != "monoclinic" or cell[4] >= 90
    sites = [(line.split()[0], line.split()[1], np.array(line.split()[2:], float)) for line in lines[15:]]
    atoms: Counter[str] = Counter()
    for symbol, letter, frac in sites:
        position = group.position(letter)
        atoms[symbol] += position.multiplicity
        assert np.abs((position.coordinates(frac) - frac + 0.5) % 1 - 0.5).max() <= 0.0005 + 1e-9, "on its position"
        assert len(np.unique(position.orbit(frac).round(6), axis=0)) == position.multiplicity, "and on no special one"
    counts = {s: int(n or 1) * units * group.n_centring for s, n in re.findall(r"([A-Z][a-z]?)(\d*)", formula)}
    assert atoms == counts
    assert list(dict.fromkeys(symbol for symbol, *_ in sites)) == list(counts), "elements in formula order"
    for symbol in counts:
        letters = [group.position(letter).index for s, letter, _ in sites if s == symbol]
        assert letters == sorted(letters)
    crystal = AsymmetricUnit.from_text(text).to_crystal()
    assert not distance_violations(crystal.lattice, crystal.frac_coords, crystal.atomic_numbers)
    cif = write_cif(AsymmetricUnit.from_text(text))
    assert CifFile.from_str(cif).data
    if crystal.n_atoms < 24:  # pymatgen takes seconds to expand large cubic cells
        (structure,) = CifParser.from_str(cif).parse_structures(primitive=False)
        assert structure.composition.get_el_amt_dict() == dict(counts)


FORMULAS = ("Si", "NaCl", "Fe2O3", "CaTiO3", "InCuS2", "Li3PO4", "KMgF3", "Na3Zr2Si2PO12", "HNO3", "Al2O3", "CsPb2Br5")


@pytest.mark.parametrize("first", range(1, 231, 23))
def test_every_structure_that_ends_is_right_in_all_groups(first: int, rules: Rules) -> None:
    rng = np.random.default_rng(first)
    for number in range(first, min(first + 23, 231)):
        for attempt in range(40):
            formula = str(rng.choice(FORMULAS))
            counts = tuple(int(n or 1) for n in re.findall(r"[A-Z][a-z]?(\d*)", formula))
            units = np.flatnonzero(possible_units(counts, Request(space_groups=(number,)), 48)) + 1
            chosen = int(units[0] if attempt < 4 else rng.choice(units[:8]))
            _, make = begin(parse_prompt(formula, number, chosen), rules)
            constraint = make()
            assert isinstance(constraint, Full)
            ids = walk(constraint, rules, rng)
            if not isinstance(ids, str):
                check(text_of(rules, formula, number, constraint, ids), formula)
                break
        else:
            pytest.fail(f"no structure ended in group {number}")


def text_of(rules: Rules, formula: str, number: int, constraint: Full, ids: list[int]) -> str:
    head = f"data_{formula}\n_crystallm_primitive_formula_units {constraint.formula_units}\n"
    return f"{head}_symmetry_space_group_name_H-M {space_group(number).symbol}{rules.tokenizer.decode(ids)}"


def test_everything_left_to_chance(rules: Rules) -> None:
    """Formula, units and group drawn as well: what ends is right, and most does."""
    rng = np.random.default_rng(0)
    ended = 0
    for trial in range(40):
        request = Request(formula_units=int(rng.integers(1, 4)), elements=(8, 58, 98) if trial % 2 else None)
        ids: list[int] | str = "formula too long"
        for _ in range(200):  # until the formula is a small one
            constraint = Full(rules, request)
            constraint.advance(rules.tokenizer.id("data_"))
            formula = draw_formula(constraint, rules, rng)
            if sum(constraint.counts) < 30:
                ids = walk(constraint, rules, rng)
                break
        if not isinstance(ids, str):
            ended += 1
            text = "data_" + formula + rules.tokenizer.decode(ids)
            check(text, text.splitlines()[0].removeprefix("data_"))
            if trial % 2:
                assert re.fullmatch(r"data_Li\d*Fe\d*O\d*", text.splitlines()[0])
    assert ended >= 12


def draw_formula(constraint: Full, rules: Rules, rng: np.random.Generator) -> str:
    ids = []
    while not constraint.counts:
        slot, token, mask = constraint.choice()
        if token < 0:
            tokens = rules.grammar.slot_tokens[slot]
            tokens = tokens if mask is None else tokens[mask]
            small = [t for t in tokens.tolist() if t not in rules.integer_of or rules.integer_of[t] < 6]
            ends = [t for t in small if t == rules.units_keyword]
            token = ends[0] if ends and rng.random() < 0.5 else int(rng.choice(small or tokens))
        constraint.advance(token)
        ids.append(token)
    return rules.tokenizer.decode(ids)


def test_real_crystals_are_allowed(root: Path, rules: Rules) -> None:
    """No constraint stands in the way of what exists: each token of a canonical text is among those allowed."""
    texts = []
    for path in sorted((root / "tests/cifs").glob("*.cif")):
        try:
            texts.append(canonicalize(parse_cif(path.read_text())[0]).to_text())
        except (ValueError, UnicodeDecodeError):
            continue  # files that are there to be refused
    assert len(texts) >= 4
    for text in texts:
        constraint = Full(rules)
        for token in rules.tokenizer.encode(text):
            slot, forced, mask = constraint.choice()
            if forced >= 0:
                assert token == forced, (text, rules.tokenizer.token(token))
            else:
                tokens = rules.grammar.slot_tokens[slot]
                assert token in (tokens if mask is None else tokens[mask]), (text, rules.tokenizer.token(token))
            constraint.advance(token)
        assert constraint.finished


def test_elements_of_a_formula_ascend_and_it_is_reduced(rules: Rules) -> None:
    tokenizer = rules.tokenizer

    def allowed(text: str) -> set[str]:
        constraint = Full(rules)
        for token in tokenizer.encode(text):
            constraint.advance(token)
        slot, token, mask = constraint.choice()
        tokens = rules.grammar.slot_tokens[slot]
        return {tokenizer.token(int(t)) for t in ([token] if token >= 0 else tokens if mask is None else tokens[mask])}

    units = "\n_crystallm_primitive_formula_units "
    assert {"O", "Cl", "2", "999", units} <= allowed("data_Na")
    assert not {"K", "Na"} & allowed("data_Na")
    assert units not in allowed("data_Na2"), "Na2 is Na"
    assert units in allowed("data_Na2O") and units not in allowed("data_Na2O2")
    assert {"2", "3"} <= allowed("data_Na2O"), "a later element may have an odd count"
    assert allowed("data_Na2Ts") == {units, *(str(n) for n in range(3, 1000, 2))}, "the last of all elements"
    assert allowed("data_Ts") == {units}


def test_points_are_taken_once(rules: Rules) -> None:
    _, make = begin(parse_prompt("NaCl", "Fm-3m", 1), rules)
    letters = set()
    for seed in range(6):
        constraint = make()
        ids = walk(constraint, rules, np.random.default_rng(seed))  # type: ignore[arg-type]
        letters.add(tuple(re.findall(r" ([a-z]) ", rules.tokenizer.decode(ids))))
    assert letters == {("a", "b"), ("b", "a")}


def test_dead_ends_say_why(rules: Rules) -> None:
    """Eight Cs atoms cannot be put in a cell with an edge of 3 Å."""
    head = "data_Cs\n_crystallm_primitive_formula_units 8\n_symmetry_space_group_name_H-M P-1\n_cell_length_a 3.00"
    head += "\n_cell_length_b 3.00\n_cell_length_c 3.00"
    _, make = begin(parse_prompt(head), rules)
    results = [walk(make(), rules, np.random.default_rng(seed)) for seed in range(5)]  # type: ignore[arg-type]
    assert all(isinstance(result, str) and re.search("no place for Cs|left for Cs|angle", result) for result in results)


def test_one_distance_for_all_pairs(rules: Rules) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        _, make = begin(parse_prompt("NaCl", "P-1", 2), rules, min_distance_ang=3.0)
        constraint = make()
        assert isinstance(constraint, Full)
        ids = walk(constraint, rules, rng)
        if not isinstance(ids, str):
            crystal = AsymmetricUnit.from_text(text_of(rules, "NaCl", 2, constraint, ids)).to_crystal()
            assert not distance_violations(crystal.lattice, crystal.frac_coords, crystal.atomic_numbers, 0, 3.0)


def test_syntax_knows_what_was_asked_for(rules: Rules) -> None:
    rng = np.random.default_rng(0)
    within_four = replace(parse_prompt("NaCl"), request=Request(given_units=4))
    for prompt, pattern in ((parse_prompt("NaCl", 225), "units \\d+\n.* Fm-3m\n"), (within_four, "units [124]\n")):
        _, make = begin(prompt, rules, "syntax")
        constraint = make()
        assert type(constraint) is Syntax
        ids: list[int] = []
        while constraint.state == constraint.state and len(ids) < 3:
            slot, token, mask = constraint.choice()
            tokens = rules.grammar.slot_tokens[slot] if slot >= 0 else np.array([token])
            token = token if token >= 0 else int(rng.choice(tokens if mask is None else tokens[mask]))
            constraint.advance(token)
            ids.append(token)
        assert re.match(pattern, "units " + rules.tokenizer.decode(ids) + "\n")


def test_free_text_ends_with_one_of_its_ends() -> None:
    constraint = Free(7, ((1, 1), (2,)))
    for token, finished in ((1, False), (3, False), (1, False), (1, True)):
        assert constraint.choice() == (7, -1, None)
        constraint.advance(token)
        assert constraint.finished is finished
